"""Two processes that share the base out train what one does that has all of it; servers sample for both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import sharded_worker
import torch
import yaml
from command_line import run
from safetensors.torch import load_file
from support import save_tiny_model
from vllm_server import serving

from lit_debias.training.checkpoints import read
from lit_debias_vllm import VLLMEngine

pytestmark = pytest.mark.processes
SHARDED = {"class_path": "ModelParallelStrategy", "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1}}
RUN = """
seed_everything: 1
trainer:
  accelerator: cpu
  max_steps: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  limit_val_batches: 0
  callbacks:
    - {class_path: EMAWeightAveraging, init_args: {decay: 0.5, update_every_n_steps: 1}}
model:
  class_path: GRPO
  init_args:
    policy: {class_path: QLoRAPolicy, init_args: {dtype: float32, rank: 4}}
    engine: {class_path: VLLMEngine, init_args: {max_new_tokens: 6, max_gap: 9.0}}
    group_size: 4
    micro_batch_tokens: 147
    rewards: {vowels: {class_path: grpo_runs.Vowels}}
    aggregator: {class_path: WeightedSum, init_args: {weights: {vowels: 1.0}}}
    loss: {class_path: DAPOLoss, init_args: {beta: 0.05}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
data: {class_path: PromptDataModule, init_args: {path: prompts.jsonl, batch_size: 4}}
"""
LONG = (1, 3, 5, 6, 7)
"""Prompts of 70 tokens, not 25: in both steps the second process has two, which do not share a micro-batch, and the
first has one at most, so that it makes fewer passes."""


def written(name, urls, quantization, **trainer) -> str:
    """Write the configuration of a run, and return its command."""
    config = yaml.safe_load(RUN)
    policy, engine = (config["model"]["init_args"][part]["init_args"] for part in ("policy", "engine"))
    policy |= {"model": "model", "quantization": quantization}
    engine |= {"urls": urls, "folder": "weights", "sync": "adapter"}
    kept = {"dirpath": f"{name}/kept", "every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    added = [("ModelCheckpoint", kept), ("AdapterExport", {"out": f"{name}/adapter"})]
    config["trainer"]["callbacks"] += [{"class_path": kind, "init_args": options} for kind, options in added]
    config["trainer"] |= {"default_root_dir": name, **trainer}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"fit -c {name}.yaml"


@contextmanager
def chdir(folder):
    """Do within the context what ``contextlib.chdir`` of Python 3.11 does."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What runs on one process and on two have left."""
    folder = tmp_path_factory.mktemp("sharded")
    save_tiny_model(folder / "model")
    rows = [{"prompt": f"people from {'the far ' * 9 * (n in LONG)}{p} are"} for n, p in enumerate("abcdefgh")]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    two = {"devices": 2, "strategy": SHARDED}
    with chdir(folder), serving(folder / "model") as first, serving(folder / "model") as second:
        urls = [first.url, second.url]
        commands = [written(f"sharded-{bits}", urls, bits, **two) for bits in ("none", "nf4")]
        commands += [
            written("ddp", urls, "none", devices=2, strategy="ddp"),
            written("resumed", urls, "none", **two) + " --ckpt_path sharded-none/kept/step=1.ckpt",
        ]
        with start(folder, commands) as together:
            try:
                for bits in ("none", "nf4"):
                    assert run(*written(f"one-{bits}", urls, bits, devices=1).split()) == 0
                said = together.communicate(timeout=1000)[1]
            finally:
                together.kill()
    codes = folder / "codes"
    assert (codes.read_text().split() if codes.is_file() else []) == ["0"] * len(commands), said[-3000:]
    return folder


def start(folder, commands) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(sharded_worker.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PL_GLOBAL_SEED", None)
    command = [sys.executable, sharded_worker.__file__, str(folder / "codes"), *commands]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def test_merged_weights_need_the_whole_base():
    assert VLLMEngine(["http://localhost:9"], sync="merged").needs_base
    assert not VLLMEngine(["http://localhost:9"]).needs_base  # auto then takes adapters


def adapter(folder, name) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "adapter" / "adapter_model.safetensors")


def assert_close(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("bits", ["none", "nf4"])
def test_two_processes_with_parts_of_the_base_train_the_adapter_of_one(folder, bits):
    alone = adapter(folder, f"one-{bits}")
    assert all(value.any() for value in alone.values())
    assert_close(adapter(folder, f"sharded-{bits}"), alone)


def test_they_train_the_adapter_of_two_that_have_all_of_it(folder):
    assert_close(adapter(folder, "sharded-none"), adapter(folder, "ddp"))


def test_checkpoints_are_one_file_with_the_adapter_alone_as_under_ddp(folder):
    sharded, ddp = (read(folder / name / "kept" / "step=2.ckpt") for name in ("sharded-none", "ddp"))
    assert sharded["state_dict"].keys() == ddp["state_dict"].keys()
    assert all("lora_" in name for name in sharded["state_dict"])
    [mine], [theirs] = (content["optimizer_states"] for content in (sharded, ddp))
    assert mine["param_groups"] == theirs["param_groups"]
    for number, state in theirs["state"].items():
        assert_close(mine["state"][number], state)


def test_a_resumed_run_is_bitwise_the_whole_one(folder):
    whole, resumed = adapter(folder, "sharded-none"), adapter(folder, "resumed")
    first, last = (read(folder / "sharded-none" / "kept" / f"step={step}.ckpt")["state_dict"] for step in (1, 2))
    assert not any(torch.equal(first[name], value) for name, value in last.items())
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
