"""Losses on pairs that see the whole batch: sorts, contrasts of all with all, running statistics."""
