"""The side of lit-debias in the comparison with TRL: steps by phase, and what the parity gates compare."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from torch import Tensor

from benchmarks.adapters import flat_gradient, set_adapters
from benchmarks.clock import peak_memory
from benchmarks.measurement import TEMPERATURES, MeasuredGRPO, measured
from benchmarks.settings import Settings
from benchmarks.vllm_arms import vllm_version
from benchmarks.workload import fixed_completions
from lit_debias.rewards.suite import RewardSuite
from lit_debias.types import PromptBatch

PHASES = {"reward EvenShare": "reward"}


class PlainSteps(MeasuredGRPO):
    """Steps without gates, from a fresh adapter as TRL has it."""

    moves_adapter = False

    def measure(self, prompts: PromptBatch) -> dict[str, Any]:
        """Warm up and time."""
        clock = self.repeated(lambda seed, clock: self.timed_step(prompts, seed, clock))
        clock.total("step", list(clock.seconds), like="rollout")
        seconds = {PHASES.get(name, name): values for name, values in clock.seconds.items()}
        return {"seconds": seconds, "tokens": clock.amounts["rollout"], "peak_bytes": clock.peak_bytes["step"]}


class Parity(MeasuredGRPO):
    """One update on given completions."""

    def measure(self, prompts: PromptBatch) -> dict[str, Any]:
        """Return tensors: log-probs and reference log-probs [P, G, T], advantages [P, G], gradient [parameters]."""
        set_adapters(self.policy.lm)
        self.policy.forms.forget_merged()
        completions = fixed_completions(self.settings, self.policy.causal_lm.config.vocab_size)
        rows = [row for group in completions for row in group]
        texts = [[""] * self.settings.group_size] * self.settings.prompts
        rollout = self.policy.rollout_of(prompts, self.policy.encode_prompts(prompts.texts), rows, texts)
        reference = self.policy.logprobs_at(rollout, TEMPERATURES, reference=True)
        advantages = self.aggregator(RewardSuite(self.rewards.rewards).score(rollout), 0)
        logprobs = self.policy.logprobs(rollout)
        self.update(self.experience_of(rollout, reference, advantages))
        found = {"logprobs": logprobs, "reference_logprobs": reference[0], "advantages": advantages}
        return {**found, "gradient": flat_gradient(self.policy.lm)}


def steps(settings: Settings, **_of_trl: Any) -> dict[str, Any]:
    """Return seconds of each phase, sampled tokens and peak memory."""
    found = measured(PlainSteps(settings))
    peak = max(found["peak_bytes"], peak_memory(settings.device))
    versions = {name: version(name) for name in ("lit-debias", "torch", "transformers", "peft")}
    return {**found, "peak_bytes": peak, "versions": versions | vllm_version(settings)}


def parity(settings: Settings) -> dict[str, Tensor]:
    """Return what the gates compare, see :class:`Parity`."""
    found = measured(Parity(settings))
    return {name: value.cpu().contiguous() for name, value in found.items() if isinstance(value, Tensor)}
