"""Losses on pairs of a chosen and a rejected response, against a reference."""
