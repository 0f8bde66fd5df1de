"""CPC's toy: classes in ascending order. What comes next can be told; in a random order not.

A sequence is an image of eight pictures, one above the other, whose classes are c, c + 1, ... (9 is
followed by 0) from a random c on. The four after the fourth are predicted. Labels put the sequences
together and are not seen in training.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import rearrange

from ssljax.core import Now, Run, with_keys
from ssljax.data import fashion
from ssljax.data.graph import tensorflow
from ssljax.methods.cpc import CPC
from ssljax.nets.column_gru import ColumnGRU
from ssljax.nets.patch_encoder import PatchEncoder
from ssljax.nets.preact_resnet import PreActResNet

LENGTH, BATCH, STEPS, CLASSES = 8, 64, 200, 10
RUN = Run(examples=7_000, batch=BATCH, steps=STEPS, steps_per_epoch=STEPS)
PICTURE = 14
OPTIMIZED = {'xla_backend_optimization_level': 2}
"""The step takes longer to run than to compile, unlike other tests'."""
METHOD = CPC(
    PatchEncoder(
        PreActResNet((16, 32), (1, 1), 'imagenet', 'layer', zero_init=False), PICTURE, PICTURE
    ),
    ColumnGRU(32),
    steps=4,
    first_step=1,
    subcrop=0,
)


def pictures(split):
    """Pictures at half their size in [-1, 1], and the places of each class."""
    source = fashion.load(split)
    every = tensorflow().range(source.examples, dtype='int64')
    images, labels = np.asarray(source.records(every)['image']), source.labels()
    small = rearrange(images / 127.5 - 1, 'n (i a) (j b) c -> n i j a b c', a=2, b=2).mean((3, 4))
    return small.astype(np.float32), [np.flatnonzero(labels == c) for c in range(CLASSES)]


def drawn(rng, places, classes):
    """A random picture of each class."""
    return np.vectorize(lambda c: rng.choice(places[c]))(classes)


def sequences(rng, places, n, ordered=True):
    """Classes [n, LENGTH] and pictures of them."""
    classes = (rng.integers(0, CLASSES, (n, 1)) + np.arange(LENGTH)) % CLASSES
    if not ordered:
        classes = rng.integers(0, CLASSES, (n, LENGTH))
    return classes, drawn(rng, places, classes)


def trained(ordered, steps=STEPS):
    """Parameters and the last information after so many steps of Adam."""
    images, places = pictures('train')
    rng = np.random.default_rng(0)

    def batch():
        _, which = sequences(rng, places, BATCH, ordered)
        tall = rearrange(images[which], 'n t h w c -> n 1 (t h) w c')
        raw = {'image': jnp.asarray(tall), 'index': jnp.arange(BATCH)}
        return with_keys(raw, jax.random.key(0))

    optimizer = optax.adam(3e-3)
    params, state = jax.jit(lambda b: METHOD.init(jax.random.key(0), b, RUN))(batch())
    moments = optimizer.init(params)

    @functools.partial(jax.jit, compiler_options=OPTIMIZED)
    def step(params, moments, batch):
        def loss(params):
            outputs, _ = METHOD.forward(params, state, batch, jax.random.key(1))
            now = Now(jnp.asarray(0), jax.random.key(2), RUN)
            return METHOD.objective(params, outputs, state, now)

        grads, (_, metrics) = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), moments, metrics

    for _ in range(steps):
        params, moments, metrics = step(params, moments, batch())
    return params, float(metrics['information'])


def accuracy(params):
    """On new pictures: how often, of one of each class, the next class scores highest; how often
    each of the next four scores higher than a picture of a class that does not come now."""
    images, places = pictures('test')
    rng = np.random.default_rng(1)
    n = 300
    classes, which = sequences(rng, places, n)
    every = drawn(rng, places, np.tile(np.arange(CLASSES), (n, 1)))
    encode = jax.jit(
        lambda x: METHOD.encoder.apply(
            {'params': params['encoder']}, x[:, None], train=False, method='of_patches'
        )[:, 0]
    )
    z, candidates = encode(images[which[:, :4]]), encode(images[every])
    c = METHOD.context.apply({'params': params['context']}, z[:, :, None], train=False)[:, 3, 0]
    scores = jnp.einsum('nad,kdc,nc->nka', candidates, params['weights'], c)
    scores, rows = np.asarray(scores), np.arange(n)
    next_class = np.mean(np.argmax(scores[:, 0], axis=1) == classes[:, 4])
    pairs = []
    for k in range(4):
        right = classes[:, 4 + k]
        wrong = (right + rng.integers(1, CLASSES, n)) % CLASSES
        pairs.append(np.mean(scores[rows, k, right] > scores[rows, k, wrong]))
    return next_class, np.mean(pairs)


@pytest.mark.slow
def test_the_next_class_is_told_where_classes_ascend():
    params, information = trained(ordered=True)
    next_class, pairs = accuracy(params)
    assert information > 1
    assert next_class > 0.7
    assert pairs > 0.95


@pytest.mark.slow
def test_it_is_not_where_they_come_at_random():
    params, _ = trained(ordered=False, steps=STEPS // 2)
    next_class, pairs = accuracy(params)
    assert next_class < 0.25
    assert pairs < 0.6
