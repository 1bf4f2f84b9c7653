"""Measurements of speed and of agreement with other implementations."""

import lit_debias  # noqa: F401  before the programs here load torch, which asks once how its threads are to wait
