"""What a run of ``benchmarks.learning`` is: the same for every trainer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.adapters import adapters
from benchmarks.settings import EMBEDDED_MODEL
from lit_debias.synthetic.builder import build
from lit_debias.synthetic.taxonomy import Taxonomy

TextReward = Callable[[str], float]


def short_words(text: str) -> float:
    """Return the share of words of at most four letters, 0 without a word."""
    return _share(text, lambda word: len(word) <= 4)


def no_e(text: str) -> float:
    """Return the share of words without the letter e, 0 without a word."""
    return _share(text, lambda word: "e" not in word.lower())


def _share(text: str, wanted: Callable[[str], bool]) -> float:
    words = re.findall(r"[A-Za-z']+", text)
    return sum(map(wanted, words)) / len(words) if words else 0.0


REWARDS: dict[str, TextReward] = {"short_words": short_words, "no_e": no_e}


@dataclass(frozen=True)
class Plan:
    """One run. Trainers get the same prompts in the same order, first adapter, loss and optimiser."""

    reward: str = "short_words"
    """Key of ``REWARDS``."""
    seed: int = 1
    """Draws the order of the prompts, the first adapter, and what is sampled."""
    model: str = EMBEDDED_MODEL
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    steps: int = 36
    prompts: int = 2
    """Of a step."""
    group_size: int = 8
    completion_tokens: int = 48
    learning_rate: float = 3e-4
    distinct_prompts: int = 64

    def prompt_texts(self) -> list[str]:
        """Return the prompts of all steps [steps x prompts], drawn anew once each has been asked."""
        rows = build(Taxonomy.load(), size=1200, seed=0)["prompts"]["train"]
        texts = Random(0).sample([str(row["prompt"]) for row in rows], self.distinct_prompts)
        rng, order = Random(self.seed), list[str]()
        while len(order) < self.steps * self.prompts:
            order += rng.sample(texts, len(texts))
        return order[: self.steps * self.prompts]

    def first_adapter(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Return the LoRA weights that all trainers begin with: A as PEFT draws it, B of zeros."""
        generator = torch.Generator().manual_seed(self.seed)
        weights = {name: torch.zeros(*shapes[name]) for name in sorted(shapes)}
        for name, weight in weights.items():
            if "lora_A" in name:
                nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
        return weights

    def set_first_adapter(self, model: nn.Module) -> None:
        """Give a PEFT model :meth:`first_adapter`."""
        own = adapters(model)
        with torch.no_grad():
            for name, weight in self.first_adapter({name: weight.shape for name, weight in own.items()}).items():
                own[name].copy_(weight)

    def exact(self, steps: int) -> Plan:
        """Return the first steps of the plan in float32."""
        return replace(self, dtype="float32", steps=min(steps, self.steps))
