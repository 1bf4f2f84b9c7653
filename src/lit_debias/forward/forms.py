"""The forms in which a loaded model computes: one for log-probs, and merged copies to sample from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from lit_debias.forward.lean import LeanModel
from lit_debias.forward.merged_copy import MergedCopy
from lit_debias.forward.native import NativeModel, why_not_native
from lit_debias.models.adapters import trained_parameters
from lit_debias.models.layers import fingerprint
from lit_debias.models.loading import recomputes, set_checkpointing
from lit_debias.models.probing.probe import Probe, moved_adapter, without_adapter_dropout
from lit_debias.models.probing.ways import Expected, Way

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Forms:
    """What :func:`lit_debias.forward.choose.choose_forms` found for a model; copies are made when first asked for."""

    model: PreTrainedModel
    """Hugging Face's model with the adapters inside its layers."""
    source: str
    """Its name, for errors."""
    dtype: torch.dtype
    """Of merged weights, and of autocast where it is bfloat16."""
    probe: Probe
    way: Way
    """From packed groups to log-probs, with gradients."""
    lean_model: LeanModel | None
    lean_obstacle: str | None
    """What keeps this model from the lean forward pass, or None."""
    sharded: bool = False
    """Whether processes share out the layers, so that all of them must compute, or none: see :meth:`idle`."""
    _merged: MergedCopy | None = None
    _native: NativeModel | None = None
    _seen: list[int] = field(default_factory=list)

    def merged(self) -> PreTrainedModel:
        """Return the copy to sample from, base and adapter in one weight, up to date with the adapter."""
        self._notice_changes()
        if self._merged is None:
            self._merged = MergedCopy(self.model, self.dtype)
        return self._merged.refreshed()

    def lean(self) -> LeanModel:
        """Return the lean form, merged for sampling; where there is no :attr:`lean_obstacle`."""
        assert self.lean_model is not None, self.lean_obstacle
        self._notice_changes()
        return self.lean_model.refreshed()

    @property
    def native_obstacle(self) -> str | None:
        """What keeps this model from the native forward pass, or None; compiles it where that is all that is left."""
        return self.lean_obstacle or (why_not_native(self.lean_model) if self.lean_model else None)

    def native(self) -> NativeModel:
        """Return the native form, merged for sampling; where there is no :attr:`native_obstacle`."""
        assert self.lean_model is not None, self.lean_obstacle
        self._notice_changes()
        if self._native is None:
            self._native = NativeModel(self.lean_model)
        return self._native.refreshed()

    def idle(self, passes: int) -> None:
        """Compute for others: so many passes over a few tokens, with zero gradients where gradients are wanted."""
        for _ in range(passes):
            outputs = self.way.outputs(self.probe.packed())
            if outputs.requires_grad:
                (outputs.sum() * 0).backward()  # type: ignore[no-untyped-call]

    def autocast(self) -> torch.autocast:
        """Return the context in which fp32 adapters and bf16 weights compute together."""
        return autocast(self.model.device, self.dtype)

    @contextlib.contextmanager
    def live(self) -> Iterator[PreTrainedModel]:
        """Within the context, the training weights themselves under autocast, able to use a key-value cache."""
        again = recomputes(self.model)
        with self.autocast():
            if again:
                set_checkpointing(self.model, False)
            try:
                yield self.model
            finally:
                if again:
                    set_checkpointing(self.model, True)

    @contextlib.contextmanager
    def moved_adapter(self) -> Iterator[Expected]:
        """Within the context, the adapter is moved a little, and what the plain model then says of a probe is known.

        What samples is compared with it, see :mod:`lit_debias.models.probing.probe`.
        """
        with moved_adapter(trained_parameters(self.model)), without_adapter_dropout(self.model):
            yield Expected.of(self.model, self.probe, self.source, self.dtype)

    def _notice_changes(self) -> None:
        """Look whether the adapter has changed: averages of weights, for one, swap it in place and tell nobody."""
        before, self._seen = self._seen, fingerprint(trained_parameters(self.model).values())
        if before != self._seen:
            self.forget_merged()

    def forget_merged(self) -> None:
        """Merge base and adapter anew when a copy is next asked for, whether the adapter has changed or not."""
        for copy in (self._merged, self.lean_model, self._native):
            if copy is not None:
                copy.stale = True


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context of :meth:`Forms.autocast`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
