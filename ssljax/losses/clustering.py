"""Losses in which one view predicts what another is assigned to, among K clusters or prototypes.

All are functions of the whole batch, compute in at least float32, and let gradients flow to every
argument; where a method stops one (SwAV's codes, DINO's teacher), the method says so.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def sinkhorn(
    scores: Float[Array, 'b k'], *, epsilon: float, iterations: int
) -> Float[Array, 'b k']:
    """Soft assignments of examples to prototypes that use all prototypes about equally.

    Of all Q with rows of sum 1 and columns of sum b / k, the limit maximises

        sum_ij Q_ij scores_ij + epsilon H(Q).

    It is exp(scores / epsilon) with rows and columns scaled, found by scaling columns to their sum,
    then rows to theirs, again and again (Sinkhorn and Knopp), here by adding to logarithms, in
    which nothing overflows. Rows come last: their sums are exact after any number of iterations,
    the columns' only in the limit.

    Args:
        scores: of every example with every prototype, of the whole batch. A constant added to a
            prototype's scores changes nothing; one added to an example's does, before the limit.
        epsilon: positive; the smaller, the closer to one prototype an example. SwAV: 0.05. Too
            large a one makes all assignments alike.
        iterations: at least 1. SwAV: 3.

    Returns:
        The assignments Q, one distribution a row, of at least float32.

    Raises:
        ValueError: if epsilon is not positive or there is no iteration.

    Reference:
        Caron et al. (2020), arXiv:2006.09882, equations 3 to 5; Cuturi (2013), arXiv:1306.0895,
        algorithm 1.
    """
    if not isinstance(epsilon, jax.core.Tracer) and not epsilon > 0:
        raise ValueError(f'epsilon is {epsilon}; it must be above 0, such as 0.05')
    if iterations < 1:
        raise ValueError(f'there are {iterations} iterations; use at least 1, such as 3')
    log_q = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / epsilon
    # The sums themselves, b / k and 1, are left out: they are the same for all columns, all rows.
    scale = lambda _, log_q: jax.nn.log_softmax(jax.nn.log_softmax(log_q, axis=0), axis=1)
    return jnp.exp(jax.lax.fori_loop(0, iterations, scale, log_q))


def swapped_prediction(
    scores: Float[Array, 'n v k'], codes: Float[Array, 'n c k'], *, temperature: float
) -> Float[Array, '']:
    """Each view predicts the codes of the others, by a softmax over its own scores.

    With p_iv = softmax(scores_iv / temperature), the mean over examples i, coded views u and all
    other views v != u of the cross-entropy

        H(codes_iu, p_iv) = - sum_k codes_iuk log p_ivk.

    Args:
        scores: of v views of each of n examples with k prototypes.
        codes: assignments of the first c <= v of these views, each a distribution over prototypes.
        temperature: positive. SwAV: 0.1.

    Returns:
        The loss, a non-negative scalar of at least float32; log k where scores are all equal.

    Raises:
        ValueError: if there are fewer than two views, or more codes than views, or the temperature
            is not positive.

    Reference:
        Caron et al. (2020), arXiv:2006.09882, equations 1, 2 and 6.
    """
    (n, v, _), c = scores.shape, codes.shape[1]
    if not (v >= 2 and 1 <= c <= v):
        raise ValueError(
            f'there are scores of {v} view(s) and codes of {c}; a view predicts the code of '
            'another, so pass scores of at least 2 views and codes of the first of them'
        )
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f'temperature is {temperature}; it must be above 0, such as 0.1')
    dtype = jnp.promote_types(jnp.result_type(scores, codes), jnp.float32)
    log_p = jax.nn.log_softmax(scores.astype(dtype) / temperature, axis=-1)
    # A sum of products of tf32 or bfloat16 would be a coarser logarithm than the one above.
    crossed = jnp.einsum(
        'nck,nvk->cv', codes.astype(dtype), log_p, precision=jax.lax.Precision.HIGHEST
    )
    own = jnp.eye(c, v, dtype=bool)
    return -jnp.sum(jnp.where(own, 0, crossed)) / (n * c * (v - 1))


def self_distillation(
    student: Float[Array, 'n v k'],
    teacher: Float[Array, 'n t k'],
    center: Float[Array, 'k'],
    *,
    student_temperature: float,
    teacher_temperature: float | Float[Array, ''],
) -> Float[Array, '']:
    """DINO's cross entropy: each view of the student predicts the teacher's other views.

    With P_i = softmax((teacher_i - center) / teacher_temperature) and Q_j = softmax(student_j /
    student_temperature), the mean over the examples and over the t (v - 1) pairs of a teacher's
    view i and a student's view j != i of

        - sum_k P_ik log Q_jk,

    which is the entropy of P_i and what Q_j diverges from it: at least 0, ln K where both are
    uniform. Centring keeps one prototype from winning everywhere, and a teacher's temperature below
    the student's keeps the assignments from becoming uniform; either alone lets the other happen.

    Args:
        student: scores of v >= 2 views over K prototypes.
        teacher: scores of the first t of these views, 1 <= t <= v, in the same order.
        center: taken off the teacher's scores, for every view.
        student_temperature: positive; DINO has 0.1.
        teacher_temperature: positive; DINO has 0.04 to 0.07.

    Returns:
        The loss, a non-negative scalar of at least float32.

    Raises:
        ValueError: if there is no pair of different views, the teacher has more views than the
            student, or a temperature is not positive.

    Reference:
        Caron et al. (2021), arXiv:2104.14294, equations 1 to 4 and algorithm 1.
    """
    (n, v, _), t = student.shape, teacher.shape[1]
    if v < 2 or not 1 <= t <= v:
        raise ValueError(
            f'the student has {v} view(s) and the teacher {t}; give the student two or more and '
            'the teacher the first of them, at least one'
        )
    for name, temperature in (('student', student_temperature), ('teacher', teacher_temperature)):
        if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
            raise ValueError(f'{name}_temperature is {temperature}; it must be above 0')
    dtype = jnp.promote_types(jnp.result_type(student, teacher), jnp.float32)
    p = jax.nn.softmax((teacher.astype(dtype) - center) / teacher_temperature)
    log_q = jax.nn.log_softmax(student.astype(dtype) / student_temperature)
    costs = -jnp.einsum('nik,njk->nij', p, log_q, precision=jax.lax.Precision.HIGHEST)
    others = ~jnp.eye(t, v, dtype=bool)
    return jnp.sum(jnp.where(others, costs, 0)) / (n * t * (v - 1))
