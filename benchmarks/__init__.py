"""Measurements of speed and of agreement with other implementations."""

import warnings

from lit_debias.support.terminal import quiet_libraries

quiet_libraries()
warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")  # on purpose
