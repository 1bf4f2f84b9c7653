"""One arm of ``benchmarks.vs_trl`` in a process of its own; called by it, and of no use alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file

from benchmarks.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Write tensors for the gates, or seconds; that memory did not suffice is an answer too."""
    parser = argparse.ArgumentParser("python -m benchmarks.arm", description=__doc__)
    parser.add_argument("task", choices=["parity", "steps"])
    parser.add_argument("--side", choices=["our_side", "trl_side"], required=True)
    parser.add_argument("--settings", required=True, help="JSON of benchmarks.settings.Settings")
    parser.add_argument("--micro-batch", type=int, default=0, help="completions in one of TRL's passes")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    settings, side = Settings(**json.loads(options.settings)), import_module(f"benchmarks.{options.side}")
    if options.task == "parity":
        save_file(side.parity(settings), options.out)
        return 0
    try:
        found = side.steps(settings, micro_batch=options.micro_batch, checkpointing=options.checkpointing)
    except torch.OutOfMemoryError:
        found = {"out_of_memory": True}
    options.out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
