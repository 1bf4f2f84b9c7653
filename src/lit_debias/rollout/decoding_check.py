"""Whether a decoder gives the logits of the plain model, on a few random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_debias.models.checks import FAILURES, reason_of
from lit_debias.models.probing.probe import distance, plain_logits
from lit_debias.models.probing.ways import Expected
from lit_debias.packing.tokens import pad
from lit_debias.policy.policy import Policy
from lit_debias.rollout.decoders import Decoder
from lit_debias.types import PictureInputs

STEPS = 6
KEPT_FROM, KEPT = 3, (0, 3)
"""From this token on, all rows but these are dropped."""


@dataclass(frozen=True)
class DecodingCheck:
    """Two prompts of other lengths with two completions each, given token by token."""

    ids: Tensor
    """[2, S] int64, left-padded."""
    mask: Tensor
    """[2, S] bool."""
    tokens: Tensor
    """[4, STEPS] int64."""
    logits: list[Tensor]
    """[4] of [STEPS or KEPT_FROM, V]: what the plain model says."""
    tolerance: float
    pictures: list[PictureInputs] | None = None
    """[2] what the prompts show."""

    @classmethod
    def of(cls, policy: Policy, expected: Expected) -> DecodingCheck:
        """Ask the plain model, whose adapter has been moved as for ``expected``."""
        probe, other = expected.probe, expected.probe.another()
        prompts = [probe.prompt, other.prompt]
        completions = [completion[:STEPS] for completion in probe.completions]
        short = []
        for completion in completions:
            ids = torch.cat((other.prompt, completion[:-1]))
            short.append(plain_logits(policy.causal_lm, ids, len(completion), other.beside(ids)))
        everyone = [logits[:STEPS] for logits in (*expected.logits, *short)]
        logits = [of_row if row in KEPT else of_row[:KEPT_FROM] for row, of_row in enumerate(everyone)]
        ids, mask = pad([prompt.tolist() for prompt in prompts], int(probe.prompt[0]), left=True, device=policy.device)
        pictures = [probe.pictures, other.pictures] if probe.pictures and other.pictures else None
        return cls(ids, mask, torch.stack(completions * 2), logits, expected.tolerance, pictures)

    def missed_by(self, decoder: Decoder) -> str | None:
        """Return what is wrong with a decoder, or None."""
        try:
            found = self._decode(decoder)
        except FAILURES as error:
            return reason_of(error)
        apart = distance(found, self.logits)
        return None if apart <= self.tolerance else f"its logits miss the model's own by {apart:.1%}"

    def _decode(self, decoder: Decoder) -> list[Tensor]:
        rows = torch.arange(len(self.tokens), device=self.tokens.device)
        found: list[list[Tensor]] = [[] for _ in rows]
        decoder.show(self.pictures)
        logits = decoder.start(self.ids, self.mask, 2, STEPS - 1)
        for step in range(STEPS):
            if step == KEPT_FROM:
                kept = torch.tensor(KEPT, device=rows.device)
                decoder.keep(kept)
                rows, logits = rows[kept], logits[kept]
            for row, of_row in zip(rows.tolist(), logits, strict=True):
                found[row].append(of_row.float())
            if step + 1 < STEPS:
                logits = decoder.step(self.tokens[rows, step])
        return [torch.stack(of_row) for of_row in found]
