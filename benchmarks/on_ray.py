"""Compares `lit-debias ray` with two workers, one of which is killed, with two processes that nothing happens to.

    python -m benchmarks.on_ray --out benchmarks/results/ray_cpu.json

It needs `pip install 'lit-debias[ray]'`, and runs on this machine's CPU alone. Exits with 1 where an adapter differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load

from benchmarks import report
from benchmarks.shapes import save_model

ROOT = Path(__file__).parents[1]
RUN = """
seed_everything: 1
trainer:
  accelerator: cpu
  max_steps: 4
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  limit_val_batches: 0
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {every_n_train_steps: 1, save_last: true, dirpath: checkpoints}
    - class_path: AdapterExport
      init_args: {out: adapter}
    - class_path: benchmarks.on_ray_faults.Killed
      init_args: {rank: 1, step: 2, file: killed}
model:
  class_path: GRPO
  init_args:
    policy: {class_path: QLoRAPolicy, init_args: {model: ../model, quantization: none, dtype: float32, rank: 4}}
    engine: {class_path: LocalEngine, init_args: {max_new_tokens: 8}}
    group_size: 4
    rewards: {vowels: {class_path: benchmarks.fault_runs.Vowels}}
    aggregator: {class_path: WeightedSum, init_args: {weights: {vowels: 1.0}}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
data:
  class_path: PromptDataModule
  init_args: {path: ../prompts.jsonl, batch_size: 4}
"""
RAY = {"run": "run.yaml", "workers": 2, "resources": {"CPU": 1}, "restarts": 2, "storage": "storage"}
ARMS = {
    "two processes": ["fit", "-c", "run.yaml", "--trainer.devices=2", "--trainer.strategy=ddp"],
    "Ray": ["ray", "-c", "ray.yaml"],
    "Ray, a worker killed": ["ray", "-c", "ray.yaml"],
}
KILLED = "Ray, a worker killed"


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.on_ray", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench/ray_cpu.json"), help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), [*ARMS])
    report.write(options.out, {**report.origin("cpu"), "ray": version("ray"), **found})
    print(json.dumps(found, indent=2))
    return 0 if found["passed"] else 1


def measure(folder: Path, arms: list[str]) -> dict[str, Any]:
    """Run the arms, the first of which is the one to compare with; return how each ended."""
    save_model("tiny", folder / "model", "cpu")
    rows = [{"prompt": f"w{number} w{number + 1} are"} for number in range(1, 13)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = {arm: run(folder, arm) for arm in arms}
    first = adapter(folder / arms[0])
    for arm, ended in found.items():
        ended["same adapter, bitwise"] = adapter(folder / arm) == first
    assert all(value.any() for value in load(first).values()), "nothing was trained"  # B starts at zero
    passed = all(ended["code"] == 0 and ended["same adapter, bitwise"] for ended in found.values())
    return {"passed": passed and all(found[arm]["restarts"] == 1 for arm in arms if arm == KILLED), "arms": found}


def run(folder: Path, arm: str) -> dict[str, Any]:
    """Run one arm in a folder of its own."""
    place = folder / arm
    place.mkdir()
    (place / "run.yaml").write_text(RUN)
    (place / "ray.yaml").write_text(yaml.safe_dump(RAY | {"storage": str(place / "storage")}))
    if arm != KILLED:
        (place / "killed").touch()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    own = {"PYTHONPATH": path, "HOME": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "lit_debias", *ARMS[arm]]
    done = subprocess.run(command, cwd=place, env=os.environ | own, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    if done.returncode:
        print(text[-3000:], file=sys.stderr)
    shutil.rmtree(place / "storage", ignore_errors=True)
    restarts = int("this run was started again" in text)
    return {"code": done.returncode, "restarts": restarts}


def adapter(place: Path) -> bytes:
    """Return the weights that a run has written, nothing where there are none."""
    file = place / "adapter" / "adapter_model.safetensors"
    return file.read_bytes() if file.is_file() else b""


if __name__ == "__main__":
    sys.exit(main())
