"""Vectors of the elementary functions."""

import cases

from jaxpref import losses


def evaluate(name, inputs, params):
    if name == "stability_log1mexp":
        return {"value": losses.log1mexp(inputs["x"])}
    outputs = cases.evaluate(losses.links.logistic, inputs, params)
    return outputs | {"grad": outputs["grad_sum_margin"]}
