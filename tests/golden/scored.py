"""Vectors of pairs made out of scored completions."""

import jax.numpy as jnp

from jaxpref.data import transforms

NAMES = ("data_uf_binarize",)


def evaluate(name, inputs, params):
    """What :func:`jaxpref.data.transforms.binarize_ultrafeedback` says of each sample, as arrays."""
    samples = [{key: values.tolist() for key, values in sample.items()} for sample in inputs["samples"]]
    results = transforms.binarize_ultrafeedback(samples, **params)
    types = {"scores": float, "skip": bool}
    return {"results": [{key: jnp.asarray(v, types.get(key, int)) for key, v in each.items()} for each in results]}
