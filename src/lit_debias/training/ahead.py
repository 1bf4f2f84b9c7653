"""One step off-policy: while a step trains on the rollout of the one before, its own is sampled for the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lit_debias.training.resumption import gathered, own_experience
from lit_debias.types import Experience, PromptBatch

if TYPE_CHECKING:
    from lit_debias.training.grpo import GRPO


class Ahead:
    """The rollout that the next step trains on.

    It is sampled, asked about and scored with the policy as it is when its step begins, whenever that happens: what a
    step learns, and what it leaves to the next, is the same as if all of it had come before the update. A step that is
    interrupted before its rollout is there begins it anew, with that same policy.

    Args:
        module: Whose steps these are.
    """

    def __init__(self, module: GRPO) -> None:
        self.module = module
        self.experience: Experience | None = None
        """What the next step trains on; None before the first one."""
        self.sampler: dict[str, Tensor] | None = None
        """The adapter that a step began with, by name, as long as the rollout of that step is not there."""

    def step(self, prompts: PromptBatch) -> None:
        """Train on the rollout of the step before, and leave that of ``prompts`` to the next."""
        if self.sampler is None and self.module.pending:  # from a checkpoint of a step that sampled first
            self.module.train_on_experience()
            return
        with ExitStack() as ends:
            collected = self._begun(prompts, ends)
            self.module.train_on_experience()
            assert self.sampler is not None
            with self.module.policy.with_adapter(self.sampler):
                self.experience = collected()
            self.sampler = None

    def _begun(self, prompts: PromptBatch, ends: ExitStack) -> Callable[[], Experience]:
        """Return what waits for the rollout, which ends with ``ends``."""
        module, begin = self.module, self.module.collecting(prompts)
        if self.sampler is not None:
            with module.policy.with_adapter(self.sampler):
                return ends.enter_context(begin)
        collected = ends.enter_context(begin)
        self.sampler = module.policy.adapter_weights()
        module.experience, self.experience = self.experience, None
        return collected

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps (collective)."""
        return {"ahead": gathered(self.experience), "sampler": self.sampler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            UserError: another number of processes has left a rollout to train on.
        """
        device, sampler = self.module.policy.device, state.get("sampler")
        self.experience = own_experience(state.get("ahead", []), device)
        self.sampler = sampler and {name: weights.to(device) for name, weights in sampler.items()}
