"""Directions made of the gradients of several objectives."""
