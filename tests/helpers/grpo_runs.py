"""Small runs of GRPO: a policy, rewards that are worked out by hand, and a trainer."""

import json
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from torch.optim import AdamW

from lit_debias.grpo.loss import DAPOLoss
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.reward import Reward
from lit_debias.rollout.local import LocalEngine
from lit_debias.training.grpo import GRPO


class Vowels(Reward):
    """Share of vowels: something that differs between the completions of a random model."""

    def score(self, batch):
        return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in batch.completions]


class Flaky(Vowels):
    def __init__(self, value):
        self.value = value

    def score(self, batch):
        return [self.value, *super().score(batch)[1:]]


class NeedsReference(Reward):
    needs_reference_logprobs = True
    columns = ("place",)

    def score(self, batch):
        return [float(row.exp().mean()) for row in batch.reference_logprobs]


@pytest.fixture
def prompts(tmp_path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl")


def write_prompts(file: Path) -> Path:
    rows = [{"prompt": f"people from {place} are", "place": place} for place in "abcdefgh"]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def grpo(model, **kwargs) -> GRPO:
    torch.manual_seed(7)  # LoRA's A
    policy = kwargs.pop("policy", None) or QLoRAPolicy(str(model), quantization="none", dtype="float32", rank=4)
    rewards = kwargs.pop("rewards", {"vowels": Vowels()})
    defaults = {
        "engine": LocalEngine(6),
        "group_size": 4,
        "optimizer": lambda parameters: AdamW(parameters, lr=1e-2),
        "loss": DAPOLoss(beta=0.02),
    }
    return kwargs.pop("cls", GRPO)(policy, rewards, **{**defaults, **kwargs})


def baseline(cls, model, **kwargs):
    """Return SFT or DPO of a tiny model."""
    torch.manual_seed(7)  # LoRA's A
    policy = QLoRAPolicy(str(model), quantization="none", dtype="float32", rank=4)
    return cls(policy, **{"optimizer": lambda parameters: AdamW(parameters, lr=1e-2), **kwargs})


def trainer(folder, **kwargs) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "max_steps": 4,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(**{**defaults, **kwargs})


def adapter_of(module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.policy.trainable_parameters().items()}


def assert_same(first, second) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Interruption(Exception):  # noqa: N818  (what happens, no mistake)
    pass


class InterruptAt(Callback):
    """Stops with gradients computed and not yet used, at the given optimiser step."""

    def __init__(self, optimizer_step):
        self.optimizer_step = optimizer_step

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.optimizer_step:
            raise Interruption
