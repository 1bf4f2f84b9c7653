"""Faster forward passes of models that are loaded, and what they need."""
