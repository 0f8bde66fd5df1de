"""DINO's loss against its twin, its closed forms, its slopes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.losses.clustering import self_distillation

TEMPERATURES = {'student_temperature': 0.5, 'teacher_temperature': 0.2}
loss_of = jax.jit(functools.partial(self_distillation, **TEMPERATURES))
all_slopes = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1, 2)))
"""The loss and its gradients to student, teacher and centre."""


def scores(n=6, v=5, t=2, k=7, seed=0):
    draw = np.random.default_rng(seed).normal
    return [0.5 * draw(size=shape) for shape in ((n, v, k), (n, t, k), (k,))]


@pytest.mark.parametrize(('v', 't'), [(5, 2), (2, 2), (3, 1), (3, 3)])
def test_is_its_float64_twin(x64, v, t):
    arrays = scores(n=3, v=v, t=t)
    twin = lambda *arrays: reference.self_distillation(*arrays, *TEMPERATURES.values())
    loss, slopes = all_slopes(*arrays)
    np.testing.assert_allclose(loss, twin(*arrays), rtol=1e-12)
    for at in range(3):
        np.testing.assert_allclose(slopes[at], reference.gradient(twin, arrays, at), atol=1e-8)


@pytest.mark.parametrize(('k', 'want'), [(2, 0.693147), (3000, 8.006368), (65_536, 11.090355)])
def test_uniform_teacher_and_student_cost_ln_k(x64, k, want):
    loss = loss_of(jnp.ones((2, 3, k)), jnp.zeros((2, 2, k)), jnp.full(k, 0.3))
    np.testing.assert_allclose(loss, np.log(k), rtol=1e-12)
    np.testing.assert_allclose(loss, want, atol=5e-7)


def test_agreement_without_doubt_costs_nothing_and_contradiction_the_gap(x64):
    sure = 40.0 * jnp.eye(3)[:, None]
    loss = loss_of(sure.repeat(4, 1), sure.repeat(2, 1), jnp.zeros(3))
    np.testing.assert_allclose(loss, 0, atol=1e-30)
    other = jnp.roll(sure, 1, axis=-1)
    loss = loss_of(other.repeat(4, 1), sure.repeat(2, 1), jnp.zeros(3))
    np.testing.assert_allclose(loss, 40 / 0.5, rtol=1e-12)


def test_is_the_teachers_entropy_and_a_divergence(x64):
    student, teacher, center = scores()
    p = jax.nn.softmax((teacher - center) / 0.2)
    entropy = jnp.mean(-jnp.sum(p * jnp.log(p), axis=-1))
    assert float(loss_of(student, teacher, center)) > float(entropy)
    # No student does better than one that says what the teacher says, to all of its views.
    same = np.repeat(teacher[:, :1], 2, axis=1)
    agreed = loss_of((same - center) * (0.5 / 0.2), same, center)
    p = jax.nn.softmax((same - center) / 0.2)
    np.testing.assert_allclose(agreed, jnp.mean(-jnp.sum(p * jnp.log(p), axis=-1)), rtol=1e-12)


def test_no_view_is_compared_with_itself(x64):
    student, teacher, center = scores(v=2)
    # View 0 of the student meets view 1 of the teacher alone.
    slope = jax.grad(lambda t: loss_of(student[:, :1].repeat(2, 1), t, center))(teacher)
    assert np.all(np.any(slope != 0, axis=-1))
    only = lambda s: loss_of(jnp.stack([s, student[:, 1]], 1), teacher, center)
    moved = teacher.copy()
    moved[:, 0] += np.arange(7)
    again = lambda s: loss_of(jnp.stack([s, student[:, 1]], 1), moved, center)
    np.testing.assert_array_equal(jax.grad(only)(student[:, 0]), jax.grad(again)(student[:, 0]))


def test_every_pair_weighs_the_same(x64):
    student, teacher, center = scores(v=10, t=2)
    slopes = []
    for t in range(2):
        for v in range(10):
            if t != v:
                pair = [student[:, v : v + 1], student[:, v : v + 1]]
                alone = loss_of(np.concatenate(pair, 1), teacher[:, t : t + 1], center)
                slopes.append(float(alone))
    assert len(slopes) == 18
    np.testing.assert_allclose(loss_of(student, teacher, center), np.mean(slopes), rtol=1e-12)


def test_a_constant_on_all_scores_changes_nothing(x64):
    student, teacher, center = scores()
    want = all_slopes(student, teacher, center)
    for shifted in (
        (student + 3, teacher, center),
        (student, teacher - 7, center),
        (student, teacher, center + 5),
        (student, teacher + center, 2 * center),
    ):
        chex.assert_trees_all_close(all_slopes(*shifted), want, rtol=1e-10, atol=1e-13)


def test_only_the_teacher_is_centred(x64):
    student, teacher, center = scores()
    shifted = loss_of(student, teacher + center, center)
    np.testing.assert_allclose(shifted, loss_of(student, teacher, 0 * center), rtol=1e-12)
    assert abs(loss_of(student + center, teacher + center, center) - shifted) > 1e-3


def test_gradient_is_the_slope(x64):
    arrays = [jnp.asarray(a) for a in scores(n=2, v=3)]
    chex.assert_numerical_grads(
        jax.jit(loss_of), arrays, order=1, modes=['rev'], atol=1e-6, rtol=1e-6
    )


def test_float32_is_float64_to_1e_5():
    arrays = scores(n=32, v=4, k=64)
    single = all_slopes(*[a.astype(np.float32) for a in arrays])
    with jax.enable_x64(True):
        double = all_slopes(*arrays)
    chex.assert_trees_all_close(single, double, rtol=1e-4, atol=1e-6)
    assert single[0].dtype == jnp.float32


def test_bfloat16_is_computed_in_float32():
    student, teacher, center = (jnp.asarray(a, jnp.bfloat16) for a in scores())
    loss = loss_of(student, teacher, center)
    wide = [a.astype(jnp.float32) for a in (student, teacher, center)]
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(float(loss_of(*wide)), rel=1e-6)


def test_large_scores_stay_finite():
    student, teacher, center = (1e4 * a.astype(np.float32) for a in scores())
    loss, slopes = all_slopes(student, teacher, center)
    assert np.isfinite(loss) and all(np.isfinite(slope).all() for slope in slopes)


def test_one_and_eight_devices_agree(x64, mesh8):
    student, teacher, center = (jnp.asarray(a) for a in scores(n=24))
    split = NamedSharding(mesh8, PartitionSpec('data'))
    whole = NamedSharding(mesh8, PartitionSpec())
    function = jax.value_and_grad(loss_of, argnums=(0, 1, 2))
    with jax.set_mesh(mesh8):
        eight = jax.jit(function, in_shardings=(split, split, whole))(student, teacher, center)
    chex.assert_trees_all_close(eight, all_slopes(student, teacher, center), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ('v', 't', 'temperatures', 'says'),
    [
        (1, 1, {}, 'student has 1'),
        (2, 3, {}, 'the teacher 3'),
        (2, 2, {'teacher_temperature': 0.0}, 'teacher_temperature is 0.0'),
        (2, 2, {'student_temperature': -1.0}, 'student_temperature is -1.0'),
    ],
)
def test_what_cannot_be_is_refused(v, t, temperatures, says):
    arrays = [jnp.asarray(a) for a in scores(v=v, t=t)]
    with pytest.raises(ValueError, match=says):
        self_distillation(*arrays, **{**TEMPERATURES, **temperatures})
