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


def negative_cosine(prediction, target):
    """BYOL, equation 2: squared distances of unit vectors; a zero vector has cosine 0."""
    prediction, target = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    pairs = np.ndindex(prediction.shape[:-1])
    return np.mean([2 - 2 * cosine(prediction[i], target[i]) for i in pairs])
