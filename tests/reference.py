"""Every loss once more in float64 NumPy, loop by loop from its equation: slow and obvious."""

import numpy as np


def gradient(function, arrays, at=0, step=1e-5):
    """Central differences of `function(*arrays)` in every entry of `arrays[at]`."""
    arrays = [np.array(a, np.float64) for a in arrays]
    slopes = np.zeros_like(arrays[at])
    for place in np.ndindex(slopes.shape):
        middle = arrays[at][place]
        ends = []
        for moved in (middle + step, middle - step):
            arrays[at][place] = moved
            ends.append(function(*arrays))
        arrays[at][place] = middle
        slopes[place] = (ends[0] - ends[1]) / (2 * step)
    return slopes


def cosine(a, b):
    """The cosine between two vectors; 0 if one of them is zero."""
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.dot(a, b) / lengths) if lengths > 0 else 0.0


def nt_xent(z, temperature):
    """SimCLR, equation 1, over all ordered pairs of different views of one example."""
    z = np.asarray(z, np.float64)
    n, v, _ = z.shape
    views = [(example, view) for example in range(n) for view in range(v)]
    terms = []
    for i in views:
        similarity = {k: cosine(z[i], z[k]) / temperature for k in views if k != i}
        denominator = sum(np.exp(s) for s in similarity.values())
        for j in similarity:
            if j[0] == i[0]:
                terms.append(-np.log(np.exp(similarity[j]) / denominator))
    return np.mean(terms)


def info_nce(query, key, negatives, temperature):
    """MoCo, equation 1; without negatives, the other keys of the batch."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    terms = []
    for i in range(len(query)):
        others = np.delete(key, i, axis=0) if negatives is None else np.asarray(negatives)
        positive = np.exp(cosine(query[i], key[i]) / temperature)
        rest = sum(np.exp(cosine(query[i], other) / temperature) for other in others)
        terms.append(-np.log(positive / (positive + rest)))
    return np.mean(terms)


def sigmoid_pairs(a, b, log_temperature, bias):
    """SigLIP: every pair told by itself to match (on the diagonal) or not."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    total = 0.0
    for i, j in np.ndindex(len(a), len(b)):
        z = np.exp(log_temperature) * cosine(a[i], b[j]) + bias
        total -= np.log(1 / (1 + np.exp(-z if i == j else z)))
    return total / len(a)


def negative_cosine(prediction, target):
    """BYOL, equation 2: squared distances of unit vectors; a zero vector has cosine 0."""
    prediction, target = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    pairs = np.ndindex(prediction.shape[:-1])
    return np.mean([2 - 2 * cosine(prediction[i], target[i]) for i in pairs])


def sinkhorn(scores, epsilon, iterations):
    """SwAV, as its authors scale a matrix of prototypes by examples: rows, then columns."""
    q = np.exp(np.asarray(scores, np.float64) / epsilon).T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = np.stack([row / row.sum() / k for row in q])
        q = np.stack([column / column.sum() / b for column in q.T]).T
    return (q * b).T


def swapped_prediction(scores, codes, temperature):
    """SwAV, equation 2: the code of a view against the scores of each other view."""
    scores, codes = np.asarray(scores, np.float64), np.asarray(codes, np.float64)
    terms = []
    for example in range(len(scores)):
        for i, code in enumerate(codes[example]):
            for j, s in enumerate(scores[example]):
                if j != i:
                    p = np.exp(s / temperature)
                    terms.append(-np.sum(code * np.log(p / p.sum())))
    return np.mean(terms)


def self_distillation(student, teacher, center, student_temperature, teacher_temperature):
    """DINO, algorithm 1: each view of the student against each other view of the teacher."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    terms = []
    for example in range(len(student)):
        for i, target in enumerate(teacher[example]):
            p = np.exp((target - center) / teacher_temperature)
            for j, scores in enumerate(student[example]):
                if j != i:
                    q = np.exp(scores / student_temperature)
                    terms.append(-np.sum(p / p.sum() * np.log(q / q.sum())))
    return np.mean(terms)


def masked_mse(prediction, target, mask, normalize):
    """MAE, section 3: squared errors of hidden patches, each of them normalised by itself."""
    terms = []
    for i, t in np.argwhere(mask):
        y = np.asarray(target[i][t], np.float64)
        if normalize:
            mean = sum(y) / len(y)
            variance = sum((y - mean) ** 2) / (len(y) - 1)
            y = (y - mean) / np.sqrt(variance + 1e-6)
        terms.append(np.mean((np.asarray(prediction[i][t], np.float64) - y) ** 2))
    return np.mean(terms)


def gan_discriminator(real, fake):
    """Goodfellow et al. 2014, equation 1, negated: D's probabilities, then their logarithms."""
    of_real = [np.log(1 / (1 + np.exp(-d))) for d in np.ravel(real)]
    of_fake = [np.log(1 - 1 / (1 + np.exp(-d))) for d in np.ravel(fake)]
    return -np.mean(of_real) - np.mean(of_fake)


def gan_generator(fake):
    """The non-saturating side of the generator: -log D."""
    return np.mean([-np.log(1 / (1 + np.exp(-d))) for d in np.ravel(fake)])


def region_mse(prediction, target, weight):
    """Context encoder, equation 1, over pixels of a weight above 0, image by image."""
    images = []
    for p, t, w in zip(prediction, target, weight, strict=True):
        region = [at for at in np.ndindex(w.shape) if w[at] > 0]
        terms = [w[at] * np.mean((p[at] - t[at]) ** 2) for at in region]
        images.append(sum(terms) / len(region) if region else 0.0)
    return np.mean(images)


def instance_softmax(v, bank, index, temperature):
    """Instance discrimination, equation 2, over all rows of the bank."""
    v, bank = np.asarray(v, np.float64), np.asarray(bank, np.float64)
    terms = []
    for x, own in zip(v, index, strict=True):
        scores = [np.exp(np.dot(row, x / np.linalg.norm(x)) / temperature) for row in bank]
        terms.append(-np.log(scores[own] / sum(scores)))
    return np.mean(terms)


def nce(positive, noise, z, rows):
    """Instance discrimination, equations 4 to 6: chances h, then their logarithms."""
    k = len(noise[0])
    h = lambda s: np.exp(s) / z / (np.exp(s) / z + k / rows)
    terms = [
        -np.log(h(p)) - sum(np.log(1 - h(s)) for s in others)
        for p, others in zip(positive, noise, strict=True)
    ]
    return np.mean(terms)


def log_bilinear(context, targets, weights, first_step):
    """CPC, equations 3 and 4: each step's mean, then their sum."""
    c, z = np.asarray(context, np.float64), np.asarray(targets, np.float64)
    n, t, _ = c.shape
    total = 0.0
    for k, w in enumerate(np.asarray(weights, np.float64), first_step):
        terms = []
        for m, i in np.ndindex(n, t - k):
            f = {place: np.exp(z[place] @ w @ c[m, i]) for place in np.ndindex(n, t)}
            terms.append(-np.log(f[m, i + k] / sum(f.values())))
        total += np.mean(terms)
    return total
