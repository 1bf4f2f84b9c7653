"""Which forward pass computes the policy's log-probs: the fastest that is found to agree with the plain model.

An architecture is not trusted to obey what packing or the lean form rely on. When the model is loaded, each way that
may be right reads a few random tokens, and the first that gives what the plain model gives is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_debias.errors import UserError
from lit_debias.models.checks import FAILURES, plain_pass, reason_of
from lit_debias.models.probing.layouts import (
    Autocast,
    Layout,
    Network,
    decoder_of,
    layouts,
    layouts_with_pictures,
)
from lit_debias.models.probing.probe import Probe, distance, distances, noisy_products, plain_logits
from lit_debias.packing.groups import PackedGroups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDINGS = 4
"""How often a right way may round where the plain model does once."""
LEAST, MOST = {16: 0.02, 32: 1e-3, 64: 1e-6}, 0.5
"""Of the tolerance, by the bits of the type."""
BEFORE = 8
"""Tokens of the prompt whose predictions are compared."""
HEAD_ROUNDING = 1e-6  # the same products in the same order


@dataclass(frozen=True)
class Way:
    """A way from packed groups to what predicts their completion tokens."""

    name: str
    outputs: Callable[[PackedGroups], Tensor]
    """Returns hidden states [N, H] for the output layer ``head``, or logits [N, V] where there is none."""
    head: nn.Linear | None
    packs: bool
    """Whether a prompt is computed once for its whole group."""

    def logits(self, packed: PackedGroups) -> Tensor:
        """Return the logits [N, V]."""
        outputs = self.outputs(packed)
        return outputs if self.head is None else self.head(outputs.to(self.head.weight.dtype))


def own_ways(model: PreTrainedModel, autocast: Autocast, head: nn.Linear | None, pictures: bool = False) -> list[Way]:
    """Return the ways that use the model's own forward pass, the fastest first.

    Args:
        model: Hugging Face model.
        autocast: Makes the context to compute in.
        head: Its output layer, where logits are that layer's and nothing else.
        pictures: Whether prompts have pictures, so that groups are not packed.
    """
    network = Network(model, head is None, autocast)

    def way(layout: Layout) -> Way:
        return Way(layout.name, lambda packed: layout(network, packed), head, layout.packs)

    return list(map(way, layouts_with_pictures(model) if pictures else layouts(model)))


@torch.no_grad()
def plain_head(model: PreTrainedModel, ids: Tensor) -> nn.Linear | None:
    """Return the output layer, if logits are the last hidden states times it, without a cap, a scale or a quantisation.

    Args:
        model: Hugging Face model.
        ids: [L] a few tokens.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        return None
    try:
        states = decoder_of(model)(input_ids=ids[None], use_cache=False).last_hidden_state
        expected, found = plain_logits(model, ids), head(states)[0]
    except FAILURES:
        return None
    return head if float(distances(found, expected).max()) <= HEAD_ROUNDING else None


def read(
    model: PreTrainedModel, ids: Tensor, source: str, keep: int = 0, pictures: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return the plain model's logits of one sequence, see :func:`plain_logits`.

    Raises:
        UserError: its forward pass fails, or they are not finite.
    """
    with plain_pass(source):
        logits = plain_logits(model, ids, keep, pictures)
    if not bool(logits.isfinite().all()):
        raise UserError(f"model '{source}': its logits are not finite; write a model that is not damaged")
    return logits


def check_causal(first: Tensor, second: Tensor, tolerance: float, source: str) -> None:
    """Raise :class:`UserError` where what a model says of the same tokens [L, V] depends on what follows them."""
    if len(first) and float(distances(first, second).median()) > tolerance:
        raise UserError(
            f"model '{source}' is no causal language model: what it predicts depends on the tokens that follow; "
            "write a decoder, such as Llama or Qwen"
        )


@dataclass(frozen=True)
class Expected:
    """What the plain model says of a probe."""

    probe: Probe
    logits: tuple[Tensor, Tensor]
    """[T_1, V] and [T_2, V] that predict the completions."""
    tolerance: float
    """Largest :func:`distance` that is rounding."""

    @classmethod
    def of(cls, model: PreTrainedModel, probe: Probe, source: str, dtype: torch.dtype) -> Expected:
        """Ask the model, one sequence at a time, and once more with products as wrong as ``dtype`` may make them.

        Raises:
            UserError: see :func:`read`; or it is no causal model: what it says of the prompt depends on what follows.
        """
        before = min(len(probe.prompt) - 1, BEFORE)  # what follows has seen the completion
        asked = [
            (ids[:-1], source, len(own) + before, probe.beside(ids[:-1]))
            for ids, own in zip(probe.sequences, probe.completions, strict=True)
        ]
        first, second = (read(model, *each) for each in asked)
        with noisy_products(model, dtype):
            noisy = read(model, *asked[1])
        rounding = ROUNDINGS * distance([noisy[before:]], [second[before:]])
        tolerance = min(max(rounding, LEAST[torch.finfo(dtype).bits]), MOST)
        check_causal(first[:before], second[:before], tolerance, source)
        return cls(probe, (first[before:], second[before:]), tolerance)

    @torch.no_grad()
    def missed_by(self, way: Way) -> str | None:
        """Return what is wrong with a way, or None."""
        try:
            logits = way.logits(self.probe.packed())
            again = way.logits(self.probe.packed())
        except FAILURES as error:
            return reason_of(error)
        sizes = [len(completion) for completion in self.probe.completions]
        if not torch.equal(logits, again) and float(distances(logits, again).max()) > self.tolerance / 10:
            return "it gives other numbers the second time"
        apart = distance(torch.split(logits, sizes), self.logits)
        return None if apart <= self.tolerance else f"its logits miss the model's own by {apart:.1%}"


def first_right(ways: Iterable[Way], expected: Expected, source: str) -> tuple[Way, dict[str, str]]:
    """Return the first way that agrees with the plain model, and what was wrong with those before it, by their names.

    Raises:
        UserError: none does.
    """
    wrong: dict[str, str] = {}
    for way in ways:
        reason = expected.missed_by(way)
        if reason is None:
            return way, wrong
        wrong[way.name] = reason
    raise UserError(
        f"model '{source}': no way to compute its log-probs agrees with its own forward pass ("
        f"{'; '.join(f'{name}: {reason}' for name, reason in wrong.items()):.300}); write another model"
    )
