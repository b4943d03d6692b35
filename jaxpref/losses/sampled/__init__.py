"""Losses on several responses of one prompt: samples of the policy or of another model, with scores or without."""
