"""One run on a number of CPU processes; the first one writes the adapter. Started by test_ddp.py.

Usage: python ddp_worker.py MODEL PROMPTS OUT DEVICES AGGREGATOR
"""

import sys
import warnings
from pathlib import Path

import torch
from lightning import Trainer
from support import perturb

from lit_debias.data import PromptDataModule
from lit_debias.grpo.loss import DAPOLoss
from lit_debias.module import GRPO
from lit_debias.policy import QLoRAPolicy
from lit_debias.rewards.aggregators import GDPO, WeightedSum
from lit_debias.rewards.base import Reward
from lit_debias.rollout.local import LocalEngine


class Vowels(Reward):
    def score(self, batch):
        return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in batch.completions]


class Length(Reward):
    def score(self, batch):
        return [len(text) / 40 if len(text) % 4 else None for text in batch.completions]


class Perturbed(GRPO):
    """Starts away from zero, so that both factors of LoRA get a gradient."""

    def on_fit_start(self):
        torch.manual_seed(1)
        perturb(self.policy)


def main(model: str, prompts: str, out: str, devices: str, aggregator: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(7)
    weights = {"vowels": 1.0, "length": 0.5}
    module = Perturbed(
        QLoRAPolicy(model, quantization="none", dtype="float32", rank=4),
        {"vowels": Vowels(), "length": Length()},
        aggregator={"sum": WeightedSum(weights, scale="batch"), "gdpo": GDPO(weights)}[aggregator],
        engine=LocalEngine(6),
        loss=DAPOLoss(beta=0.05),
        group_size=4,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
        max_grad_norm=1e9,
    )
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
        default_root_dir=str(Path(out).parent),
    )
    trainer.fit(module, PromptDataModule(prompts, batch_size=4, seed=3))
    if trainer.is_global_zero:
        torch.save(
            {
                "adapter": {name: p.detach().clone() for name, p in module.policy.trainable_parameters().items()},
                "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
                "prompts": len(module.experience.rollout.prompts),
            },
            out,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
