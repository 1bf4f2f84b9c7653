"""Which decoder a rollout uses: the fastest that the options allow, and that gives the logits of the plain model."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_debias.errors import UserError
from lit_debias.forward.native import compiler
from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.rollout.decoders import Decoder, HuggingFaceDecoder, LeanDecoder, NativeDecoder
from lit_debias.rollout.decoding_check import DecodingCheck
from lit_debias.rollout.plain_decoders import PromptwiseDecoder, RecomputingDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NATIVE, LEAN = "the native decoder", "the lean decoder"
OWN = {
    "Hugging Face's forward pass": HuggingFaceDecoder,
    "Hugging Face's forward pass, prompt by prompt": PromptwiseDecoder,
    "Hugging Face's forward pass, without a cache": RecomputingDecoder,
}


@dataclass(frozen=True)
class DecoderOptions:
    """What a user asks of decoders; see :class:`lit_debias.rollout.local.LocalEngine`."""

    weights: Literal["merged", "live"] = "merged"
    decoder: Literal["auto", "native", "lean", "hugging_face"] = "auto"
    torch_compile: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.weights == "live" and self.decoder in {"native", "lean"}:
            raise UserError(
                f"engine: the {self.decoder} decoder has merged weights only; write weights: merged or decoder: auto"
            )
        asked = [name for name, on in self.of_lean.items() if on]
        if asked and (self.weights == "live" or self.decoder in {"native", "hugging_face"}):
            raise UserError(
                f"engine: {asked[0]} is for the lean decoder alone; write weights: merged and decoder: auto"
            )

    @property
    def of_lean(self) -> dict[str, bool]:
        """Options of the lean decoder alone."""
        return {"torch_compile": self.torch_compile, "cuda_graph": self.cuda_graph}

    @property
    def may_be_native(self) -> bool:
        """Whether the native decoder is among those to choose from."""
        return self.decoder in {"auto", "native"} and not any(self.of_lean.values())


Opener = Callable[[QLoRAPolicy], AbstractContextManager[Decoder]]


class DecoderChoice:
    """Opens decoders for a policy; chooses which at the first time, and says so in the log.

    Args:
        options: What is asked for.
    """

    def __init__(self, options: DecoderOptions) -> None:
        self.options = options
        self._policy: weakref.ref[QLoRAPolicy] | None = None
        self._opener: Opener
        self.name = ""
        """Of the decoder that was chosen."""

    def open(self, policy: QLoRAPolicy) -> AbstractContextManager[Decoder]:
        """Return a context with a new decoder of the policy as it is now."""
        self.settle(policy)
        return self._opener(policy)

    def settle(self, policy: QLoRAPolicy) -> bool:
        """Choose the decoder of a policy, and return True; do nothing and return False where that is done.

        Raises:
            UserError: the decoder that is asked for cannot run the model, or none gives the plain model's logits.
        """
        if self._policy is not None and self._policy() is policy:
            return False
        openers, why = self._allowed(policy)
        self._check_machine(policy)
        with policy.moved_adapter() as expected, torch.no_grad():
            check = DecodingCheck.of(policy, expected)
            wrong: dict[str, str] = {}
            for name, opener in openers.items():
                with opener(policy) as decoder:
                    reason = check.missed_by(decoder)
                if reason is None:
                    break
                wrong[name] = reason
            else:
                told = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
                raise UserError(
                    f"engine: no decoder gives the logits of model '{policy.source}' ({told:.300}); write decoder: "
                    "auto and weights: merged, or another model"
                )
        self._policy, self._opener, self.name = weakref.ref(policy), self._final(name, opener), name
        reasons = [why, *(f"not {other}: {reason}" for other, reason in wrong.items())]
        because = f" ({'; '.join(filter(None, reasons))})" if any(reasons) else ""
        compiled = ", which is compiled first: that takes a minute or so" if self.options.torch_compile else ""
        rank_zero_info(f"Rollouts use {name}{because}{compiled}.")
        return True

    # ---------------------------------------------------------------- what may be chosen

    def _allowed(self, policy: QLoRAPolicy) -> tuple[dict[str, Opener], str]:
        """Return the decoders to try by their names, the fastest first, and why it is not a faster one."""
        options, lean = self.options, self._lean_obstacle(policy)
        asks = {"decoder: auto": options.decoder == "lean"} | {f"{k}: false": on for k, on in options.of_lean.items()}
        if lean and any(asks.values()):
            remedy = " and ".join(remedy for remedy, needed in asks.items() if needed)
            raise UserError(f"engine: the lean decoder cannot run this model, {lean}; write {remedy}")
        native = lean or (policy.native_obstacle if options.may_be_native else "as configured")
        if native and options.decoder == "native":
            raise UserError(f"engine: the native decoder cannot run this model, {native}; write decoder: auto")
        faster: dict[str, Opener] = {} if native else {NATIVE: _native}
        faster |= {} if lean or options.decoder == "native" else {LEAN: _lean}
        own = {} if options.decoder in {"native", "lean"} or any(options.of_lean.values()) else self._own()
        beside = f"not the native one: {native}" if native and options.may_be_native else native
        return faster | own, lean or beside or ""

    def _own(self) -> dict[str, Opener]:
        merged = {name: _opener_of(kind, live=False) for name, kind in OWN.items()}
        live = {name: _opener_of(kind, live=True) for name, kind in OWN.items()}
        if self.options.weights == "live":
            return live
        return merged | {f"{name}, live weights": opener for name, opener in live.items()}

    def _final(self, name: str, opener: Opener) -> Opener:
        """Return what opens a decoder from now on: the lean one with its options, which a check does without."""
        if name != LEAN:
            return opener
        return lambda policy: contextlib.nullcontext(
            LeanDecoder(policy.lean_model(), self.options.torch_compile, self.options.cuda_graph)
        )

    def _lean_obstacle(self, policy: QLoRAPolicy) -> str | None:
        if self.options.weights == "live":
            return "weights are live"
        if self.options.decoder == "hugging_face":
            return "as configured"
        return policy.lean_obstacle

    def _check_machine(self, policy: QLoRAPolicy) -> None:
        if self.options.cuda_graph and policy.device.type != "cuda":
            raise UserError("engine: cuda_graph needs a CUDA device; write cuda_graph: false")
        if self.options.torch_compile and policy.device.type == "cpu" and compiler() is None:
            raise UserError(
                "engine: torch_compile needs a C++ compiler; install g++, set CXX, or write torch_compile: false"
            )


@contextlib.contextmanager
def _native(policy: QLoRAPolicy) -> Iterator[Decoder]:
    yield NativeDecoder(policy.native_model())


@contextlib.contextmanager
def _lean(policy: QLoRAPolicy) -> Iterator[Decoder]:
    yield LeanDecoder(policy.lean_model())


def _opener_of(kind: Callable[[PreTrainedModel], Decoder], live: bool) -> Opener:
    @contextlib.contextmanager
    def opened(policy: QLoRAPolicy) -> Iterator[Decoder]:
        if live:
            with policy.live_model() as model, policy.autocast():
                yield kind(model)
        else:
            yield kind(policy.inference_model())

    return opened
