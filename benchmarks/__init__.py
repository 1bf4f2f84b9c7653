"""Measurements of speed and of agreement with other implementations."""

import warnings

import lit_debias  # noqa: F401  before the programs here load torch, which asks once how its threads are to wait
from lit_debias.support.terminal import quiet_libraries

quiet_libraries()
warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")  # on purpose
