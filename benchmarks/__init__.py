"""Measurements of speed and of agreement with other implementations."""
