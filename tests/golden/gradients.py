"""Vectors of directions made of the gradients of several objectives."""

from jaxpref import losses

NAMES = ("raco",)


def evaluate(name, inputs, params):
    weights = params["weights"]
    options = {key: params[key] for key in ("c", "clip") if key in params}
    direction, aux = losses.raco_direction(inputs["objective_gradients"], weights, **options)
    return {"update_direction": direction, **aux._asdict()}
