"""A few random tokens that show whether a faster forward pass computes what the plain model does.

Plain is Hugging Face's own forward pass on one sequence at a time, without padding, cache or mask. Whatever computes
for many sequences at once has to agree with it, here on two completions behind one prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lit_debias.models.attention_windows import longest_window
from lit_debias.models.positions import positions_held
from lit_debias.packing.groups import PackedGroups, pack
from lit_debias.types import PictureInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHORTEST_PROMPT, COMPLETIONS = 12, (6, 9)
SHORTER = 3
"""Tokens that another prompt lacks, so that there is padding."""
SECONDS = 0.5
"""What one sequence may take; a prompt that reaches beyond a window is cut to it."""
ADAPTER_STD = 0.02
"""Of what is added to B of each adapter meanwhile: a fresh one is zero, and would hide what is done with it."""


@dataclass(frozen=True)
class Probe:
    """Two sequences with the same prompt."""

    prompt: Tensor
    """[S] int64, longer than the windows of the model's attention where that takes no longer than ``SECONDS``."""
    completions: tuple[Tensor, Tensor]
    """[T_1] and [T_2] int64."""
    pictures: PictureInputs | None = None
    """What the prompt shows, to a model that reads pictures."""
    other: Probe | None = None
    """Another prompt with the same completions, where cutting this one would cut its pictures."""

    @property
    def sequences(self) -> tuple[Tensor, Tensor]:
        """The prompt with each of the completions, [S + T_1] and [S + T_2]."""
        first, second = (torch.cat((self.prompt, completion)) for completion in self.completions)
        return first, second

    def packed(self) -> PackedGroups:
        """The same as one group."""
        length = max(map(len, self.completions))
        ids = torch.stack([pad(ids, (0, length - len(ids))) for ids in self.completions])
        mask = torch.stack([torch.arange(length, device=ids.device) < len(each) for each in self.completions])
        prompt, pictures = self.prompt[None], None if self.pictures is None else [self.pictures]
        return pack(prompt, torch.ones_like(prompt, dtype=torch.bool), ids[None], mask[None], pictures)

    def beside(self, ids: Tensor) -> dict[str, Tensor]:
        """Return what the plain model takes beside the prompt and what follows it, [L]; nothing without pictures."""
        return self.pictures.beside(ids, len(self.prompt)) if self.pictures else {}

    def another(self) -> Probe:
        """Return one with the same completions behind another prompt, a shorter one where there are tokens to spare."""
        if self.other is not None:
            return self.other
        return self.shortened(len(self.prompt) - SHORTER) if len(self.prompt) > SHORTER else self

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Probe:
        """Draw the tokens, ordinary ones, always the same."""
        generator = torch.Generator().manual_seed(0)
        words = ordinary_tokens(model, tokenizer)
        wanted = max(SHORTEST_PROMPT, longest_window(model.config) + 2)
        context = positions_held(model) or wanted + max(COMPLETIONS)
        lengths = (max(1, min(wanted, context - max(COMPLETIONS))), *COMPLETIONS)
        drawn = [words[torch.randint(len(words), (length,), generator=generator)] for length in lengths]
        prompt, first, second = (ids.to(model.device) for ids in drawn)
        if len(prompt) > SHORTEST_PROMPT:
            prompt = prompt[: affordable(model, prompt)]
        return cls(prompt, (first, second))

    def shortened(self, tokens: int) -> Probe:
        """Return the same with a prompt of at most so many tokens."""
        return replace(self, prompt=self.prompt[:tokens])

    @staticmethod
    def shortest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Return a few of the tokens [L]."""
        words = ordinary_tokens(model, tokenizer)
        generator = torch.Generator().manual_seed(0)
        length = min(SHORTEST_PROMPT, positions_held(model) or SHORTEST_PROMPT)
        return words[torch.randint(len(words), (length,), generator=generator)].to(model.device)


def ordinary_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the ids [N] that stand for text: no control tokens, no placeholders of images, none beyond the model."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    embedding: Any = model.get_input_embeddings()
    rows = min(len(tokenizer), embedding.weight.shape[0])
    return torch.tensor([number for number in range(rows) if number not in special] or [0])


def affordable(model: PreTrainedModel, prompt: Tensor) -> int:
    """Return how many tokens the model reads in ``SECONDS``, at least a few, judged by its second short pass."""
    short = prompt[: 2 * SHORTEST_PROMPT]
    for _ in range(2):
        start = time.perf_counter()
        plain_logits(model, short)
    rate = len(short) / (time.perf_counter() - start)
    return max(SHORTEST_PROMPT, int(rate * SECONDS))


@torch.no_grad()
def plain_logits(
    model: PreTrainedModel, ids: Tensor, keep: int = 0, pictures: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return the logits [L, V] fp32 of one sequence [L] by the model's own forward pass.

    Args:
        model: Hugging Face model.
        ids: [L] int64.
        keep: Return the last so many only; 0 is all. All of a long sequence's may not fit into memory.
        pictures: Arguments beside the ids.
    """
    able = keep and "logits_to_keep" in signature(model.forward).parameters
    options = {"logits_to_keep": keep} if able else {}
    logits: Tensor = model(input_ids=ids[None], use_cache=False, **options, **(pictures or {})).logits[0]
    return logits[-keep:].float()


def distances(found: Tensor, expected: Tensor) -> Tensor:
    """Return how far logits [N, V] are from others, [N]: the norm of the difference over that of the logits.

    What all entries of a row share does not count, as it changes no probability.
    """
    found, expected = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in (found, expected))
    apart = torch.linalg.vector_norm(found - expected, dim=-1)
    relative: Tensor = apart / torch.linalg.vector_norm(expected, dim=-1).clamp_min(1e-20)
    return relative.nan_to_num(nan=torch.inf)


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest of the medians over parts of some sequences.

    The parts are the first three tokens of each and the rest: what runs over from a sequence before shows in the
    first tokens, a missing window in all. A median, since a token of a mixture of experts may go to another expert
    for a difference in rounding.
    """
    parts = []
    for mine, plain in zip(found, expected, strict=True):
        apart = distances(mine, plain)
        parts += [part.sort().values[len(part) // 2] for part in (apart[:3], apart[3:]) if len(part)]
    return float(torch.stack(parts).max())


@contextmanager
def noisy_products(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the context, the products of linear layers are as wrong as rounding to ``dtype`` may make them.

    How far that takes the logits of a model is how far a right way may be from the plain one, which rounds elsewhere.
    """
    from transformers.pytorch_utils import Conv1D

    half = torch.finfo(dtype).eps / 2
    generators: dict[torch.device, torch.Generator] = {}

    def rounded(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        generator = generators.setdefault(output.device, torch.Generator(output.device).manual_seed(2))
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        noise = torch.randn(wide.shape, generator=generator, device=wide.device, dtype=wide.dtype)
        return (wide + half * wide * noise).to(output.dtype)

    linear = (nn.Linear, Conv1D)
    hooks = [layer.register_forward_hook(rounded) for layer in model.modules() if isinstance(layer, linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def moved_adapter(parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Within the context, B of each trained adapter holds small random numbers beside its own."""
    generator = torch.Generator().manual_seed(1)
    kept = {name: p.detach().clone() for name, p in parameters.items() if "lora_B" in name}
    with torch.no_grad():
        for name in kept:
            noise = torch.randn(parameters[name].shape, generator=generator) * ADAPTER_STD
            parameters[name].add_(noise.to(parameters[name]))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)


@contextmanager
def without_adapter_dropout(model: nn.Module) -> Iterator[None]:
    """Within the context, dropout of adapters is off."""
    on = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    for module in on:
        module.training = False
    try:
        yield
    finally:
        for module in on:
            module.training = True
