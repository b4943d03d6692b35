"""Sections of configs that the planning tests share."""

import types


def mesh_section(**sizes):
    """The mesh section of a config: axes that are not named have size 1."""
    return types.SimpleNamespace(**({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | sizes))
