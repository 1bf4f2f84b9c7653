"""Measurements of speed and of agreement with other implementations."""

from lit_debias.support.terminal import quiet_libraries

quiet_libraries()
