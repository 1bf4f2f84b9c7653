"""Base and adapter in one weight: a plain model, held to what the policy answers before the two are one.

An adapter that was trained on a 4-bit base learned to correct those 4 bits. Onto the 16-bit weights that they were
rounded from it would be another model, so by default it goes onto the numbers that the 4 bits stand for.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.models.adapter_config import read_adapter_config
from lit_debias.models.adapters import continued_adapter
from lit_debias.models.base_weights import load_base
from lit_debias.models.checks import settle_mode
from lit_debias.models.layers import is_quantized
from lit_debias.models.loading import load_causal_lm, load_tokenizer
from lit_debias.models.prompt_encoder import PromptEncoder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Onto = Literal["trained", "plain"]
SAID = (
    ("People from the countryside are", "as different from each other as people anywhere else."),
    ("Who should get the job, the nurse or the engineer?", "The one whose work and experience fit it best."),
    ("Write a sentence about migrant workers.", "Many of them send money home to their families every month."),
    ("Why is the sky blue?", "Air scatters short waves of light more than long ones."),
)
"""Prompts and answers; models are compared where they predict the answers' tokens."""
APART = 0.05
"""Nats a token: a merged model that is further from base + adapter is refused. Rounding to bf16 makes 0.001."""


@dataclass(frozen=True)
class Distance:
    """How much two models' predictions of the same tokens differ."""

    kl: float
    """Kullback-Leibler divergence of the second from the first, in nats, mean over tokens."""
    largest: float
    """Largest difference of the log-probability of a token that is there, in nats."""
    other_choices: float
    """Share of tokens where the most probable one is another, in [0, 1]."""

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"KL divergence {self.kl:.2g} nats a token, a log-probability at most {self.largest:.2g} apart, "
            f"{self.other_choices:.0%} of the most probable tokens are others"
        )


@dataclass(frozen=True)
class Merge:
    """What is merged into what."""

    model: str
    """The base, as policies take it."""
    adapter: str
    """Folder."""
    quantization: Literal["nf4", "none"]
    """How the base was loaded in training."""
    onto: Onto = "trained"
    """``trained``: the numbers that the base had in training; ``plain``: the base's own, which 4 bits round."""

    @property
    def loaded_as(self) -> Literal["nf4", "none"]:
        """How the base is loaded that the adapter goes onto."""
        return "none" if self.onto == "plain" else self.quantization

    @property
    def said(self) -> str:
        """What was done, for the card."""
        if self.quantization == "none":
            return "the adapter is added to the base's weights"
        if self.onto == "plain":
            return "the adapter, trained on the base in 4 bits, is added to the base's own weights, which it never saw"
        return "the adapter is added to the numbers that the 4-bit weights of its training stand for"


@torch.no_grad()
def write_merged(merge: Merge, out: Path, dtype: torch.dtype) -> dict[str, Distance]:
    """Write base and adapter as one plain model that ``AutoModelForCausalLM`` and vLLM load.

    Sums are made in fp32 and rounded once. It takes 4 bytes of memory a parameter, on the CPU.

    Args:
        merge: What is merged.
        out: An empty folder.
        dtype: Of the weights that are written.

    Returns:
        ``merged``: how far what was written, read back by transformers and computing in fp32, is from base + adapter in
        fp32; and ``trained``: how far it is from base + adapter as they were trained, where that is another base.

    Raises:
        UserError: the adapter does not fit, or the two are too far apart.
    """
    texts = _texts(merge.model)
    expected = {"merged": _policy_logprobs(merge, merge.loaded_as, texts)}
    if merge.loaded_as != merge.quantization:
        expected["trained"] = _policy_logprobs(merge, merge.quantization, texts)
    model: Any = _merged(merge)
    model.to(dtype).save_pretrained(out)
    del model
    written = _logprobs(load_causal_lm(str(out), dtype=torch.float32), texts)
    found = {name: distance(logprobs, written, [text.answer for text in texts]) for name, logprobs in expected.items()}
    if found["merged"].kl > APART:
        raise UserError(
            f"the merged model is not base + adapter ({found['merged']}); write --dtype float32, or share the adapter"
        )
    return found


@dataclass(frozen=True)
class Text:
    """Token ids of a prompt and its answer."""

    prompt: list[int]
    answer: list[int]


def _texts(model: str) -> list[Text]:
    encoder = PromptEncoder(load_tokenizer(model), model, {})
    return [Text(encoder.prompt(prompt), encoder.text(answer)) for prompt, answer in SAID]


def _with_adapter(merge: Merge, base: PreTrainedModel) -> PeftModel:
    config = read_adapter_config(merge.adapter, dropout=0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error of ours
        return continued_adapter(base, merge.model, config, merge.adapter, copy=False)


def _policy_logprobs(merge: Merge, quantization: Literal["nf4", "none"], texts: list[Text]) -> list[Tensor]:
    """Return what base + adapter say in fp32, each in its own weights."""
    lm = _with_adapter(merge, load_base(merge.model, quantization, torch.float32, "cpu"))
    settle_mode(lm)  # in evaluation mode bitsandbytes has other kernels for CPUs, which round to bf16
    return _logprobs(lm, texts)


def _merged(merge: Merge) -> PreTrainedModel:
    base: Any = load_base(merge.model, merge.loaded_as, torch.float32, "cpu")
    if any(map(is_quantized, base.modules())):
        logging.getLogger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)  # it tells the type
        base = base.dequantize(dtype=torch.float32)
    merged: Any = _with_adapter(merge, base).merge_and_unload()
    if hasattr(merged.config, "quantization_config"):  # of stored codes that are plain weights now
        del merged.config.quantization_config
    return merged  # type: ignore[no-any-return]


def _logprobs(model: Any, texts: Sequence[Text]) -> list[Tensor]:
    """Return log-probabilities [T, V] float32 where a model predicts the T tokens of each answer."""
    return [
        model(torch.tensor([text.prompt + text.answer]), use_cache=False)
        .logits[0, len(text.prompt) - 1 : -1]
        .float()
        .log_softmax(-1)
        for text in texts
    ]


def distance(first: Sequence[Tensor], second: Sequence[Tensor], answers: Sequence[list[int]]) -> Distance:
    """Return how far the second model's log-probabilities, [T, V] of each answer of T tokens, are from the first's."""
    one, other = torch.cat(list(first)), torch.cat(list(second))
    kl = (one.exp() * (one - other)).sum(-1).mean()
    there = torch.tensor([token for answer in answers for token in answer])[:, None]
    largest = (one.gather(-1, there) - other.gather(-1, there)).abs().max()
    others = (one.argmax(-1) != other.argmax(-1)).float().mean()
    return Distance(max(float(kl), 0.0), float(largest), float(others))
