"""DeepCluster's own facts: what is clustered and how, what a cluster weighs, what starts afresh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from sklearn.metrics import normalized_mutual_info_score

from ssljax.core import Now, Run, Signature
from ssljax.methods.deepcluster import DeepCluster, cluster_weights, whitened
from ssljax.methods.kmeans import kmeans
from ssljax.nets.small import SmallResNet
from ssljax.optim.paths import matches

EXAMPLES, K = 60, 6
RUN = Run(examples=EXAMPLES, batch=20, steps=9, steps_per_epoch=3)


class Pixels(nn.Module):
    """An encoder that hands the pixels on, times a number."""

    @nn.compact
    def __call__(self, x, train):
        return self.param('factor', nn.initializers.ones, ()) * x.reshape(len(x), -1)


METHOD = DeepCluster(Pixels(), clusters=K, components=4, iterations=20)


def pictures(kinds=3, seed=0):
    """Images of some kinds, as far apart as black and white, and the kind of each."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, kinds, EXAMPLES)
    patterns = np.eye(kinds, 4 * 4)[kind].reshape(-1, 4, 4, 1)
    return jnp.asarray(patterns + 0.01 * rng.normal(size=patterns.shape), jnp.float32), kind


def fresh(method=METHOD, images=None):
    images = pictures()[0] if images is None else images
    return method.init(jax.random.key(0), {'image': images[:2, None]}, RUN)


def refresh(params, state, images, method=METHOD, seed=1):
    now = Now(jnp.asarray(0), jax.random.key(seed), RUN)
    return method.refresh(params, state, now, lambda fn: fn(params, state, images))


def objective(scores, state, index=None, method=METHOD):
    index = jnp.arange(len(scores)) if index is None else index
    now = Now(jnp.asarray(0), jax.random.key(0), RUN)
    return method.objective({}, {'scores': scores, 'index': index}, state, now)


def state_of(assignment, clusters=K):
    assignment = jnp.asarray(assignment, jnp.int32)
    weight = cluster_weights(assignment, clusters)
    return {'assignment': assignment, 'weight': weight, 'agreement': 0.0, 'empty': 0.0}


def test_images_of_a_kind_share_a_cluster():
    images, kind = pictures()
    method = dataclasses.replace(METHOD, clusters=3, components=2)
    found = [refresh(*fresh(method), images, method, seed)[1]['assignment'] for seed in range(6)]
    # From some first centroids k-means goes no further than two in one kind: most do.
    right = [normalized_mutual_info_score(kind, a) > 0.999 for a in found]
    assert sum(right) >= 3


@pytest.mark.parametrize('used', [K, K - 2])
def test_the_loss_is_the_mean_over_clusters_of_their_means(x64, used):
    rng = np.random.default_rng(0)
    cluster = np.concatenate([np.arange(used), rng.choice(used, EXAMPLES - used, p=_skewed(used))])
    scores = rng.normal(size=(EXAMPLES, 2, K))
    log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    costs = -log_p[np.arange(EXAMPLES), :, cluster].mean(1)
    want = np.mean([costs[cluster == c].mean() for c in range(used)])
    loss, _ = objective(jnp.asarray(scores), state_of(cluster))
    np.testing.assert_allclose(loss, want, rtol=1e-6)  # weights are float32


def _skewed(used):
    return np.arange(1, used + 1) ** 2 / np.sum(np.arange(1, used + 1) ** 2)


def test_each_cluster_in_use_weighs_the_same():
    cluster = np.asarray([0] * 40 + [2] * 15 + [5] * 5)
    weight = np.asarray(cluster_weights(jnp.asarray(cluster), K))
    np.testing.assert_allclose(weight[[0, 2, 5]], EXAMPLES / 3 / np.asarray([40, 15, 5]), rtol=1e-6)
    np.testing.assert_array_equal(weight[[1, 3, 4]], 0)
    np.testing.assert_allclose(weight[cluster].sum(), EXAMPLES, rtol=1e-6)


def test_a_guess_costs_the_logarithm_of_the_clusters():
    cluster = np.random.default_rng(0).integers(0, 10_000, EXAMPLES)
    loss, _ = objective(jnp.zeros((EXAMPLES, 1, 10_000)), state_of(cluster, 10_000))
    np.testing.assert_allclose(loss, 9.210340, rtol=1e-6)


def test_clusters_are_looked_up_by_the_index_of_the_example():
    cluster = np.random.default_rng(0).integers(0, K, EXAMPLES)
    index = np.random.default_rng(1).permutation(EXAMPLES)[:20]
    sure = 50 * jnp.eye(K)[cluster[index]][:, None]
    loss, (_, metrics) = objective(sure, state_of(cluster), jnp.asarray(index))
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    assert float(metrics['accuracy']) == 1
    loss, (_, metrics) = objective(sure, state_of(cluster), jnp.asarray(index[::-1].copy()))
    assert float(loss) > 10 and float(metrics['accuracy']) < 0.6


def test_whitened_rows_have_the_identity_as_covariance(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 9)) + 3  # of rank 6 in 9 dimensions
    white = np.asarray(whitened(jnp.asarray(x), 4))
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(white.T @ white / 200, np.eye(4), atol=1e-10)
    # The four directions of greatest variance, and no other.
    u = np.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, :4]
    np.testing.assert_allclose(u @ (u.T @ white), white, atol=1e-9)


def test_directions_without_variance_stay_zero():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8)), jnp.float32)
    white = np.asarray(whitened(x, 20))
    assert white.shape == (50, 8)
    np.testing.assert_allclose(white[:, :3].T @ white[:, :3] / 50, np.eye(3), atol=1e-3)
    np.testing.assert_array_equal(white[:, 3:], 0)
    np.testing.assert_array_equal(whitened(jnp.ones((5, 4)), 3), 0)


def test_what_is_clustered_are_whitened_features_at_length_1(monkeypatch):
    seen = []

    def spy(key, rows, **options):
        seen.append(rows)
        return kmeans(key, rows, **options)

    monkeypatch.setattr('ssljax.methods.deepcluster.kmeans', spy)
    images, _ = pictures()
    refresh(*fresh(), images)
    white = np.asarray(whitened(images.reshape(EXAMPLES, -1), 4))
    want = white / np.linalg.norm(white, axis=1, keepdims=True)
    np.testing.assert_allclose(seen[0], want, rtol=1e-4, atol=1e-5)


def test_refresh_gives_a_fresh_classifier_and_leaves_the_encoder():
    images, _ = pictures()
    method = dataclasses.replace(METHOD, clusters=50)
    params, state = fresh(method)
    trained = jax.tree.map(lambda leaf: leaf + 1, params)
    new, after = refresh(trained, state, images, method)
    head = new['head']['linear']
    assert np.std(head['kernel']) == pytest.approx(0.01, rel=0.1)
    assert abs(np.mean(head['kernel'])) < 0.002
    np.testing.assert_array_equal(head['bias'], 0)
    np.testing.assert_array_equal(new['encoder']['factor'], trained['encoder']['factor'])
    other = refresh(trained, state, images, method, seed=2)
    assert np.abs(other[0]['head']['linear']['kernel'] - head['kernel']).max() > 1e-3
    assert (other[1]['assignment'] != after['assignment']).any()
    for a, b in zip(*map(jax.tree.leaves, ((new, after), (params, state))), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
    again = refresh(trained, state, images, method)
    jax.tree.map(np.testing.assert_array_equal, again, (new, after))


def test_agreement_is_that_of_the_last_two_clusterings():
    images, _ = pictures()
    params, state = fresh()
    params, first = refresh(params, state, images)
    assert float(first['agreement']) == 0  # with all images in one cluster
    _, second = refresh(params, first, images, seed=7)
    want = normalized_mutual_info_score(
        first['assignment'], second['assignment'], average_method='geometric'
    )
    assert 0.1 < want < 1
    np.testing.assert_allclose(second['agreement'], want, rtol=1e-5)
    _, (_, metrics) = objective(jnp.zeros((EXAMPLES, 1, K)), second)
    assert metrics['agreement'] == second['agreement']


def test_empty_clusters_are_reported():
    images = jnp.asarray(np.eye(2, 16)[np.arange(EXAMPLES) % 2].reshape(-1, 4, 4, 1), jnp.float32)
    _, state = refresh(*fresh(), images)
    assert sorted(np.unique(state['assignment'], return_counts=True)[1]) == [30, 30]
    np.testing.assert_allclose(state['empty'], (K - 2) / K, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(state['weight'])[state['assignment']], 1, rtol=1e-6)


@pytest.mark.parametrize(('every', 'steps'), [(1.0, 3), (2.0, 6), (0.1, 1)])
def test_refreshes_come_in_epochs(every, steps):
    assert dataclasses.replace(METHOD, every=every).refresh_every(RUN) == steps


def test_only_the_classifier_starts_afresh_in_the_optimizer():
    params, _ = fresh()
    found = matches(METHOD.resets(), params)
    assert all(jax.tree.leaves(found['head'])) and not any(jax.tree.leaves(found['encoder']))


def test_features_are_those_of_evaluation():
    method = dataclasses.replace(METHOD, encoder=SmallResNet(2, None, (4,), (1,)))
    images, _ = pictures()
    params, state = fresh(method)
    alone = method.features(params, state, images[:1])
    np.testing.assert_allclose(method.features(params, state, images)[:1], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'views', 'message'),
    [
        ({'clusters': 61}, ('image',), '60 images cannot be put into 61 clusters'),
        ({'clusters': 1}, ('image',), 'into 1 clusters'),
        ({'components': 0}, ('image',), 'components is 0'),
        ({'iterations': 0}, ('image',), 'iterations 0'),
        ({'every': 0.0}, ('image',), 'every is 0.0 epochs'),
        ({}, ('other',), "views named 'image'"),
    ],
)
def test_refuses_what_does_not_fit(changes, views, message):
    data = Signature(tuple((name, (1, 4)) for name in views), 1, None, EXAMPLES)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(METHOD, **changes).check(data, RUN)
