"""Vectors of directions made of the gradients of several objectives."""

import jax

from jaxpref import losses

NAMES = ("raco",)


def evaluate(name, inputs, params):
    weights = params["weights"]
    options = {key: params[key] for key in ("c", "clip") if key in params}
    solve = jax.jit(lambda gradients: losses.raco_direction(gradients, weights, **options))
    direction, aux = solve(inputs["objective_gradients"])
    return {"update_direction": direction, **aux._asdict()}
