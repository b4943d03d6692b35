"""Losses on pairs of a chosen and a rejected response, without a reference."""
