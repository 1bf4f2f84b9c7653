"""Commands on two processes, one after the other, whose codes are written down; see test_vllm_sharded.py.

Usage: python sharded_worker.py CODES "COMMAND" ...
"""

import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from lit_debias.cli.main import main


def run(codes: str, *commands: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for command in commands:
        code = main(command.split())
        if rank_zero_only.rank == 0:
            with Path(codes).open("a") as file:
                file.write(f"{code}\n")


if __name__ == "__main__":
    run(*sys.argv[1:])
