"""Directions made of the gradients of several objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpref import losses
from jaxpref.losses.gradients import raco
from tests.losses.strategies import close

seeds = st.integers(0, 10**6)
reaches = st.floats(0, 0.95)
compiled = jax.jit(losses.raco_direction, static_argnames="clip")


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def problem(seed, objectives, size=5):
    """Random gradients, more in conflict than not, and weights."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(objectives, size)) * rng.uniform(0.2, 5, (objectives, 1))
    return gradients - 0.9 * gradients.mean(0), rng.dirichlet(np.ones(objectives))


def value(gradients, weights, c, p):
    """What p minimises on the simplex."""
    first = weights @ gradients
    return first @ (p @ gradients) + c * np.linalg.norm(first) * np.linalg.norm(p @ gradients)


@pytest.mark.parametrize("objectives", [1, 2, 3, 5, 8])
@given(seed=seeds, c=reaches)
def test_raco_finds_the_least_value_of_the_simplex(objectives, seed, c):
    gradients, weights = problem(seed, objectives)
    _, aux = compiled(gradients, weights, c=c)
    p = np.asarray(aux.p)
    close(np.sum(p), 1.0)
    assert np.all(p >= 0)
    least = value(gradients, weights, c, p)
    close(aux.phi, least, rtol=1e-7)
    rng = np.random.default_rng(seed)
    near = [(1 - t) * p + t * q for q in rng.dirichlet(np.ones(objectives), 20) for t in (1e-4, 0.03, 1.0)]
    vertices = list(np.eye(objectives))
    assert min(value(gradients, weights, c, q) for q in near + vertices) >= least - 1e-8 * max(1, abs(least))


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
@given(seed=seeds, c=st.floats(0.05, 0.95))
def test_raco_line_searches_agree_with_the_faces(objectives, seed, c):
    gradients, weights = problem(seed, objectives)
    gram = gradients @ gradients.T / np.max(np.abs(gradients @ gradients.T))
    linear = gram @ weights
    radius = c * np.sqrt(weights @ linear)
    exact = raco._value(gram, linear, radius, compiled_minimizer(gram, linear, radius))
    close(raco._value(gram, linear, radius, line_searches(gram, linear, radius)), exact, rtol=1e-8)


compiled_minimizer, line_searches = jax.jit(raco._minimizer), jax.jit(raco._by_line_searches)


@pytest.mark.parametrize("objectives", [1, 2, 3, 8])
@pytest.mark.parametrize("clip", [True, False])
@given(seed=seeds, c=reaches)
def test_raco_stays_within_reach_of_the_weighted_gradient(objectives, clip, seed, c):
    gradients, weights = problem(seed, objectives)
    direction, aux = compiled(gradients, weights, c=c, clip=clip)
    first = weights @ gradients
    close(direction, np.asarray(aux.coef) @ gradients)
    assert np.linalg.norm(direction - first) <= (c + 1e-6) * np.linalg.norm(first)
    assert direction @ first >= (1 - c - 1e-6) * (first @ first)
    clipped = np.minimum(aux.p, weights) if clip else aux.p
    close(aux.p_clipped, clipped)
    if np.all(np.asarray(aux.p) <= weights):
        jax.tree.map(close, compiled(gradients, weights, c=c, clip=not clip)[0], direction)


@given(seeds)
def test_raco_without_reach_is_the_weighted_gradient(seed):
    gradients, weights = problem(seed, 3)
    direction, aux = compiled(gradients, weights, c=0.0)
    close(direction, weights @ gradients)
    close(aux.coef, weights)


@pytest.mark.parametrize("objectives", [1, 2, 3, 8])
def test_raco_of_identical_gradients_is_a_longer_step(objectives):
    gradient, weights = np.array([1.0, -2.0, 0.5]), np.full(objectives, 1 / objectives)
    direction, _ = compiled(np.tile(gradient, (objectives, 1)), weights, c=0.4)
    close(direction, 1.4 * gradient, rtol=1e-6)


def test_raco_worked_example():
    _, aux = losses.raco_direction(np.array([[1.0, -4.0], [-1.0, 1.0]]), np.array([0.2, 0.8]), c=0.5)
    close(aux.p, [0.356145, 0.643855], rtol=1e-5)
    close(aux.p_clipped, [0.2, 0.643855], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_raco_does_not_depend_on_the_unit_of_gradients(scale):
    gradients, weights = problem(7, 3)
    expected, expected_aux = losses.raco_direction(gradients, weights)
    with jax.enable_x64(False):
        direction, aux = losses.raco_direction(scale * gradients, weights)
    close(direction / scale, expected, rtol=1e-4)
    close(aux.p, expected_aux.p, rtol=1e-4)


@pytest.mark.parametrize("x64", [True, False])
def test_raco_of_gradients_that_cancel_is_the_weighted_one(x64):
    """Two objectives cancel and a third is orthogonal: no combination falls below the one that vanishes."""
    gradients, weights = np.array([[0.3, 0.4, 0.0], [-0.3, -0.4, 0.0], [0.0, 0.0, 2.0]]), np.array([0.25, 0.25, 0.5])
    with jax.enable_x64(x64):
        direction, aux = losses.raco_direction(gradients, weights)
        close(aux.p, [0.5, 0.5, 0.0], rtol=1e-3)
        close(direction, [0.0, 0.0, 1.0], rtol=1e-5)
        close(aux.coef, weights, rtol=1e-5)


def test_raco_of_zero_gradients_is_zero():
    direction, aux = losses.raco_direction(np.zeros((3, 2)), np.array([0.2, 0.3, 0.5]))
    assert not np.any(direction) and all(np.all(np.isfinite(part)) for part in aux)


def test_raco_clip_of_a_small_weight_keeps_the_correction():
    """The clipped combination is short because of the weight, not because gradients cancel."""
    with jax.enable_x64(False):
        gradients = np.array([[1.0, 0.2], [-0.5, 1.0]])
        direction, aux = losses.raco_direction(gradients, np.array([0.9999, 0.0001]), c=0.5)
        assert aux.p[1] > 0.5 and aux.p_clipped[1] == np.float32(0.0001)
        reach = np.linalg.norm(direction - np.array([0.9999, 0.0001]) @ gradients)
        close(reach, 0.5 * np.linalg.norm(np.array([0.9999, 0.0001]) @ gradients), rtol=1e-4)


def test_raco_reads_trees_and_keeps_their_types():
    gradients, weights = problem(3, 3, size=10)
    tree = {"a": gradients[:, :4].reshape(3, 2, 2), "b": [gradients[:, 4:].astype(np.float32)]}
    direction, aux = losses.raco_direction(tree, weights)
    whole, whole_aux = losses.raco_direction(gradients, weights)
    close(direction["a"].ravel(), whole[:4], rtol=1e-6)
    close(direction["b"][0], whole[4:], rtol=1e-5)
    close(aux.p, whole_aux.p, rtol=1e-5)
    assert direction["a"].shape == (2, 2) and direction["b"][0].dtype == jnp.float32


def test_raco_refuses_wrong_weights_and_shapes():
    gradients = np.ones((2, 3))
    for weights, message in (([0.5, 0.6], "must sum to 1"), ([1.2, -0.2], r"weights\[1\] is -0.2")):
        with pytest.raises(ValueError, match=message):
            losses.raco_direction(gradients, np.array(weights))
    with pytest.raises(ValueError, match="c is 1.0, but must be between 0 and 1, 1 excluded"):
        losses.raco_direction(gradients, np.array([0.5, 0.5]), c=1.0)
    with pytest.raises(AssertionError, match="argument grads"):
        losses.raco_direction(np.ones((3, 3)), np.array([0.5, 0.5]))
