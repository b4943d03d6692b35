"""Losses on single responses with a binary label."""
