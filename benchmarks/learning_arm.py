"""One run of ``benchmarks.learning`` in a process of its own; called by it, and of no use alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from safetensors.torch import save_file

from benchmarks.learning_plan import Plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``curve.json`` and ``adapter.safetensors`` into a folder."""
    parser = argparse.ArgumentParser("python -m benchmarks.learning_arm", description=__doc__)
    parser.add_argument("--side", choices=["learning_ours", "learning_trl"], required=True)
    parser.add_argument("--plan", required=True, help="JSON of benchmarks.learning_plan.Plan")
    parser.add_argument("--given", type=Path, help="curve.json whose completions are trained on")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    given = None if options.given is None else json.loads(options.given.read_text())["completions"]
    curve, adapter = import_module(f"benchmarks.{options.side}").learn(Plan(**json.loads(options.plan)), given)
    save_file(
        {name: weight.float().contiguous() for name, weight in adapter.items()}, options.out / "adapter.safetensors"
    )
    (options.out / "curve.json").write_text(json.dumps(curve))
    return 0


if __name__ == "__main__":
    sys.exit(main())
