"""Runs `lit-debias ray` with vLLM servers as actors, and kills servers and a worker in the middle.

    python -m benchmarks.on_ray_servers --vllm .venv-vllm/bin/python --model runs/base --out FILE.json

It needs `pip install 'lit-debias[ray]'`, a python that has vLLM (`make test-vllm` makes one), and a model as a folder,
which `python -m lit_debias_vllm MODEL FOLDER` writes. Without them, the server of this repository's tests stands in
for vLLM, with a tiny model. It runs on this machine's CPU, with vLLM in 6 GiB of memory. Exits with 1 where a step or a
group was lost, or a process was left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks import report
from benchmarks.on_ray import ROOT, adapter
from benchmarks.shapes import save_model

STEPS, PROMPTS = 5, 4
ARMS: dict[str, dict[str, Any]] = {
    "one worker, a server killed": {"workers": 1},
    "two workers, an actor and a worker killed": {"workers": 2, "more": True},
}
SWITCHES = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": 1,
    "VLLM_SERVER_DEV_MODE": 1,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # servers and workers share the cores
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": 1,
    "PYTHONPATH": "",  # this repository's packages are for another python
}
COMMAND = (
    "-m vllm.entrypoints.openai.api_server --served-model-name base --dtype bfloat16 --max-model-len 512 "
    "--max-num-seqs 64 --logprobs-mode processed_logprobs --no-enable-chunked-prefill --max-num-batched-tokens 8192 "
    "--uvicorn-log-level warning --enforce-eager --kv-cache-memory-bytes 134217728"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.on_ray_servers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm", help="python that has vLLM")
    parser.add_argument("--model", type=Path, help="folder of the base, which goes with it")
    parser.add_argument("--arms", type=int, default=len(ARMS), help="how many of the arms")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/ray_servers_cpu.json"), help="JSON file to write")
    options = parser.parse_args()
    found = {}
    for arm, given in list(ARMS.items())[: options.arms]:
        with tempfile.TemporaryDirectory() as folder:
            found[arm] = run(Path(folder), *base(Path(folder), options.vllm, options.model), **given)
    server = f"vLLM {version_of_vllm(options.vllm)}, {options.model.name}" if options.vllm else "stand-in, tiny"
    told = {"ray": version("ray"), "server": server, "steps": STEPS}
    passed = all(ended["passed"] for ended in found.values())
    report.write(options.out, {**report.origin("cpu"), **told, "passed": passed, "arms": found})
    print(json.dumps(found, indent=2))
    return 0 if passed else 1


def base(place: Path, vllm: str | None, model: Path | None) -> tuple[str, Path]:
    """Return what starts a server, and the model that is trained."""
    if vllm is not None and model is not None:
        return f"{vllm} {COMMAND} --model {model.resolve()}", model.resolve()
    save_model("tiny", place / "model", "cpu")
    return f"{sys.executable} {ROOT / 'tests' / 'helpers' / 'vllm_server.py'} {place / 'model'}", place / "model"


def run(place: Path, command: str, model: Path, workers: int, more: bool = False) -> dict[str, Any]:
    """Run one arm in an empty folder; return how it ended."""
    rows = [{"prompt": f"People from place {number} are"} for number in range(STEPS * PROMPTS)]
    (place / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (place / "run.yaml").write_text(yaml.safe_dump(training(place, model, more)))
    (place / "ray.yaml").write_text(yaml.safe_dump(cluster(place, command, workers)))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    own = {"PYTHONPATH": path, "HOME": str(place), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    asked = [sys.executable, "-m", "lit_debias", "ray", "-c", "ray.yaml"]
    done = subprocess.run(asked, cwd=place, env=os.environ | own, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    rollouts = recorded(place)
    steps = {line["step"]: 0 for line in rollouts}
    for line in rollouts:
        steps[line["step"]] += line["groups"]
    found = {
        "code": done.returncode,
        "workers": workers,
        "servers": 2,
        "groups of each step": [steps[step] for step in sorted(steps)],
        "workers started again": "this run was started again" in text,
        "server killed": (place / "server-killed").exists(),
        "server answers at another address": (place / "server-back").exists(),
        "server samples again": "samples again" in text,
        "processes left": left(model),
    }
    whole_steps = found["groups of each step"] == [PROMPTS] * STEPS and all(line["all"] for line in rollouts)
    faults = [found[key] for key in found if key.startswith("server ")] + [found["workers started again"] is more]
    found["passed"] = bool(not done.returncode and whole_steps and all(faults) and adapter(place)) and not left(model)
    if not found["passed"]:
        print(text[-8000:], file=sys.stderr)
    return found


def recorded(place: Path) -> list[dict[str, Any]]:
    """Return the rollout of each rank and step; the later one where the workers were started again in a step."""
    found = {}
    for file in place.glob("rollouts-*"):
        for line in file.read_text().splitlines():
            rollout = json.loads(line)
            found[file.name, rollout["step"]] = rollout
    return [*found.values()]


def training(place: Path, model: Path, more: bool) -> dict[str, Any]:
    """Return the run's own configuration; ``more`` kills the actor with its server, and a worker."""
    watched = {"step": 3, "steps": STEPS, "whole": more, "folder": str(place)}
    killed = {"rank": 1, "step": 2, "file": "worker-killed"}
    kept = {"every_n_train_steps": 1, "save_last": True, "dirpath": "checkpoints"}
    callbacks = [
        {"class_path": "ModelCheckpoint", "init_args": kept},
        {"class_path": "AdapterExport", "init_args": {"out": "adapter"}},
        {"class_path": "benchmarks.on_ray_faults.ServerKilled", "init_args": watched},
        *([{"class_path": "benchmarks.on_ray_faults.Killed", "init_args": killed}] if more else []),
    ]
    policy = {"model": str(model), "quantization": "none", "dtype": "bfloat16", "rank": 8}
    engine = {"urls": ["ray://servers"], "max_new_tokens": 24, "patience": 300, "check_every": 2}
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
            "callbacks": callbacks,
        },
        "model": {
            "class_path": "GRPO",
            "init_args": {
                "policy": {"class_path": "QLoRAPolicy", "init_args": policy},
                "engine": {"class_path": "VLLMEngine", "init_args": engine},
                "correction": {"class_path": "ImportanceCorrection"},
                "group_size": 4,
                "micro_batch_tokens": 256,
                "rewards": {"vowels": {"class_path": "benchmarks.fault_runs.Vowels"}},
                "aggregator": {"class_path": "WeightedSum", "init_args": {"weights": {"vowels": 1.0}}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}},
            },
        },
        "data": {"class_path": "PromptDataModule", "init_args": {"path": "prompts.jsonl", "batch_size": PROMPTS}},
    }


def cluster(place: Path, command: str, workers: int) -> dict[str, Any]:
    """Return the configuration of `lit-debias ray`; all share two cores."""
    servers = {
        "number": 2,
        "resources": {"CPU": 0.5},
        "command": command,
        "environment": SWITCHES,
        "timeout": 900,
    }
    storage = str(place / "storage")
    return {
        "run": "run.yaml",
        "workers": workers,
        "resources": {"CPU": 0.5},
        "restarts": 2,
        "storage": storage,
        "servers": servers,
    }


def left(model: Path, seconds: float = 30) -> int:
    """Return how many processes still serve a model; those that are ending get some time."""
    for _ in range(int(seconds)):
        found = 0
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = file.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            found += str(model) in words and "--port" in words
        if not found:
            return 0
        time.sleep(1)
    return found


def version_of_vllm(python: str) -> str:
    """Return which vLLM a python has."""
    code = "from importlib.metadata import packages_distributions as of, version; print(version(of()['vllm'][0]))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
