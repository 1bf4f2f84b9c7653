"""Runs on a number of CPU processes, one after the other; the first process writes what is found. See test_ddp.py.

Usage: python ddp_worker.py MODEL FOLDER DEVICES MODULE...
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from support import perturb

from lit_debias.aggregators import GDPO, WeightedSum
from lit_debias.data import PromptDataModule
from lit_debias.evaluation.callback import EvaluationCallback
from lit_debias.grpo.loss import DAPOLoss
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.reward import Reward
from lit_debias.rollout.local import LocalEngine
from lit_debias.training.adapter_module import AdapterModule
from lit_debias.training.callbacks import RewardHackingAlarm
from lit_debias.training.dpo import DPO
from lit_debias.training.dynamic_sampling import DynamicSampling
from lit_debias.training.grpo import GRPO
from lit_debias.training.sft import SFT


class Vowels(Reward):
    def score(self, batch):
        return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in batch.completions]


class Length(Reward):
    def score(self, batch):
        return [len(text) / 40 if len(text) % 4 else None for text in batch.completions]


class Settled(Vowels):
    """Has nothing to choose from for half of the prompts."""

    def score(self, batch):
        settled = [prompt.split()[-2] in "abcd" for prompt in batch.prompts]
        return [1.0 if same else score for same, score in zip(settled, super().score(batch), strict=True)]


class Perturb(Callback):
    """Starts away from zero, so that both factors of LoRA get a gradient."""

    def on_fit_start(self, trainer, pl_module):
        torch.manual_seed(1)
        perturb(pl_module.policy)


WEIGHTS = {"vowels": 1.0, "length": 0.5}
AGGREGATORS = {"sum": WeightedSum(WEIGHTS, scale="batch"), "gdpo": GDPO(WEIGHTS), "dynamic": WeightedSum({"vowels": 1})}
BASELINES = {"sft": SFT, "dpo": DPO}


def build(name: str, model: str) -> AdapterModule:
    policy = QLoRAPolicy(model, quantization="none", dtype="float32", rank=4)
    common: dict[str, Any] = {
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
        "max_grad_norm": 1e9,
    }
    if name in BASELINES:
        return BASELINES[name](policy, **common)
    if name == "dynamic":
        common["dynamic_sampling"] = DynamicSampling(max_resamples=2)
    return GRPO(
        policy,
        {"vowels": Settled()} if name == "dynamic" else {"vowels": Vowels(), "length": Length()},
        aggregator=AGGREGATORS[name],
        engine=LocalEngine(6),
        loss=DAPOLoss(beta=0.05),
        group_size=4,
        **common,
    )


def main(model: str, folder: str, devices: str, *names: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in names:
        run(model, Path(folder), devices, name)


def run(model: str, folder: Path, devices: str, name: str) -> None:
    torch.manual_seed(7)
    module = build(name, model)
    prompts = str(folder / "prompts.jsonl")
    look = EvaluationCallback(["preference_margin", "length"], 1, str(folder / "held_out.jsonl"), bootstrap=20)
    trainer = Trainer(
        accelerator="cpu",
        devices=int(devices),
        strategy="ddp" if devices != "1" else "auto",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
        callbacks=[Perturb(), RewardHackingAlarm(warmup=1, window=1), *([look] if name == "sum" else [])],
    )
    trainer.fit(module, PromptDataModule(prompts, batch_size=4, seed=3))
    if trainer.is_global_zero:
        torch.save(
            {
                "adapter": {name: p.detach().clone() for name, p in module.policy.trainable_parameters().items()},
                "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
                "prompts": len(module.experience.rollout.prompts) if name in AGGREGATORS else None,
            },
            folder / f"{name}-{devices}.pt",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
