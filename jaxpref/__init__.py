"""Preference alignment of language models, native to JAX."""

__version__ = "0.1.0"
