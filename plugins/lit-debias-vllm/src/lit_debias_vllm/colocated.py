"""The engine that has vLLM in the trainer's own process, on the trainer's own device."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_debias.plugins import (
    Policy,
    PromptBatch,
    Requirement,
    ResumableError,
    Rollout,
    RolloutEngine,
    UserError,
    dtype_of,
    enough,
    rank,
    resolve,
)
from lit_debias_vllm import answers, check
from lit_debias_vllm.examination import HIGHEST
from lit_debias_vllm.inside import NAME, Inside
from lit_debias_vllm.sampling import Sampling, seed_of
from lit_debias_vllm.server import Way
from lit_debias_vllm.versions import Version, Versions


class ColocatedVLLMEngine(RolloutEngine):
    """Samples with vLLM inside the trainer's process, which sleeps between rollouts so that the update has the memory.

    vLLM must be installed beside lit-debias. Each process of a run has a vLLM of its own, on its own device. Log-probs
    are vLLM's; its arithmetic differs from the trainer's, so give GRPO a ``correction``. There is no top-p or top-k.

    Args:
        max_new_tokens: Longest completion, in tokens, end-of-sequence token included.
        temperature: Divides the logits before sampling; the update uses the same value.
        sync: ``adapter`` has vLLM load a PEFT adapter after each update, on a base that the policy's quantization does
            not touch; ``merged`` has it load base + adapter in the policy's dtype. ``auto`` is ``merged`` on a CPU,
            where adapters take four times as long to sample with, and ``adapter`` elsewhere.
        gpu_memory_utilization: Share of the device's memory that vLLM may have; of the machine's, on a CPU.
        sleep_level: 1 moves vLLM's weights to the host's memory between rollouts, and drops its cache; 0 leaves both
            where they are. A CPU knows no sleep.
        max_model_len: Longest prompt and completion together, in tokens; null is the model's own limit.
        folder: Where weights are written for vLLM; null is shared memory.
        check_every: Rollouts after which vLLM's log-probs are compared with the policy's again. They are compared at
            the start, and each time that it wakes, too.
        max_gap: Largest mean difference of these log-probs, in nats a token. bf16 makes 0.03 to 0.06.
        engine_args: What ``vllm.LLM`` is given beside all that, such as ``{"enforce_eager": true}``.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        sync: Literal["auto", "adapter", "merged"] = "auto",
        gpu_memory_utilization: float = 0.3,
        sleep_level: int = 1,
        max_model_len: int | None = None,
        folder: str | None = None,
        check_every: int = 10,
        max_gap: float = 0.25,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(max_new_tokens, temperature)
        if temperature > HIGHEST:
            raise UserError(f"{NAME}: temperature={temperature:g}; vLLM takes at most {HIGHEST:g}")
        if sleep_level not in (0, 1):
            raise UserError(
                f"{NAME}: sleep_level={sleep_level}; write 1 (weights wait in the host's memory) or 0 (no sleep). "
                "Level 2 drops the base's weights, which nothing would bring back"
            )
        if not 0 < gpu_memory_utilization < 1 or check_every < 1 or not 0 < max_gap < math.inf:
            raise UserError(
                f"{NAME}: gpu_memory_utilization={gpu_memory_utilization}, check_every={check_every}, "
                f"max_gap={max_gap}; write a share between 0 and 1, check_every >= 1, and a finite max_gap above 0"
            )
        self.sync, self.sleep_level, self.check_every, self.max_gap = sync, sleep_level, check_every, max_gap
        self.gpu_memory_utilization, self.max_model_len = gpu_memory_utilization, max_model_len
        self.engine_args = engine_args or {}
        self.versions = Versions(folder)
        self.rollouts = 0
        """Calls of :meth:`generate`."""
        self._checked = -1
        self._inside: Inside | None = None
        self._policy: weakref.ref[Policy] | None = None

    # ---------------------------------------------------------------- the engine's contract

    def prepare(self, policy: Policy) -> None:
        """Start vLLM, bring the policy to it, and compare its log-probs; see :meth:`RolloutEngine.prepare`."""
        if self._policy is not None and self._policy() is policy:
            return
        self._inside, self._checked = self._started(policy), -1
        with self._inside.awake():
            self._bring(self._inside, self.versions.now(policy))
        self._policy = weakref.ref(policy)

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        prompts: PromptBatch,
        group_size: int,
        seed: int,
        greedy: bool = False,
        on_group: Callable[[int, Rollout], None] | None = None,
    ) -> Rollout:
        """Return ``group_size`` completions for each prompt; see :meth:`RolloutEngine.generate`."""
        self.prepare(policy)
        assert self._inside is not None
        self.rollouts += 1
        encoded = policy.encode_prompts(prompts.asked)
        rows = [ids[mask].tolist() for ids, mask in zip(*encoded, strict=True)]
        self._check_length(policy, max(map(len, rows)) + self.max_new_tokens)
        seeds = [seed_of(seed, rank() * len(rows) + number) for number in range(len(rows))]
        sampling = self._sampling(policy, group_size, greedy)
        groups: dict[int, Rollout] = {}

        def take(number: int, group: Sequence[Any]) -> None:
            one = slice(number, number + 1)
            of_prompt = encoded[0][one], encoded[1][one]
            groups[number] = answers.group_of(policy, prompts[one], of_prompt, group, self.temperature)

        with self._inside.awake() as slept:
            self._checked = -1 if slept else self._checked  # adapters have been seen to stop working then
            self._bring(self._inside, self.versions.now(policy))
            for number, group in self._inside.sample(rows, sampling, seeds, lambda: enough(on_group)):
                take(number, group * (group_size // sampling.n))
                if on_group is not None:
                    on_group(number, groups[number])
        for number in set(range(len(rows))) - groups.keys():
            take(number, answers.unseen(group_size, policy.encoder.pad_id))
        return answers.joined(prompts, encoded, [groups[number] for number in range(len(rows))], policy.encoder.pad_id)

    def examine(self) -> Iterable[Requirement]:
        """Say whether vLLM is installed; see :meth:`RolloutEngine.examine`."""
        there = find_spec("vllm") is not None
        return [
            Requirement("vllm", there, "installed" if there else "not installed", "pip install vllm", required=True)
        ]

    # ---------------------------------------------------------------- vLLM

    def _started(self, policy: Policy) -> Inside:
        given = {"gpu_memory_utilization": self.gpu_memory_utilization, **self.engine_args}
        if self.max_model_len is not None:
            given["max_model_len"] = self.max_model_len
        dtype = str(dtype_of(policy.recipe.precision, policy.device)).removeprefix("torch.")
        auto: Way = "merged" if policy.device.type == "cpu" else "adapter"
        way: Way = auto if self.sync == "auto" else self.sync
        rank_of_adapter = int(policy.lm.peft_config["default"].r)
        sleeps = bool(self.sleep_level)
        return Inside(resolve(policy.source), dtype, policy.device, way, rank_of_adapter, sleeps, given)

    def _bring(self, inside: Inside, version: Version) -> None:
        inside.bring(version)
        if self._checked < 0 or self.rollouts - self._checked >= self.check_every:
            self._check(inside, version.policy)

    def _check(self, inside: Inside, policy: Policy) -> None:
        """Compare vLLM's log-probs with the policy's.

        Raises:
            ResumableError: it samples from something else.
        """
        sampling = self._sampling(policy, 1, False).shorter(check.COMPLETIONS, check.TOKENS)
        encoded = policy.encode_prompts(check.PROMPTS.asked)
        rows = [ids[mask].tolist() for ids, mask in zip(*encoded, strict=True)]
        groups = dict(inside.sample(rows, sampling, [seed_of(self.rollouts, number) for number in range(len(rows))]))
        rollout = check.rollout_of(policy, check.PROMPTS, encoded, [groups[number] for number in range(len(rows))])
        gap = check.gap_of(policy, rollout, self.temperature)
        wrong = gap.wrong(self.max_gap)
        if wrong:
            raise ResumableError(f"{NAME}: vLLM does not sample from the policy as it is: {wrong}")
        if not self.rollouts:
            how = "merged" if inside.way == "merged" else "as adapters"
            rank_zero_info(
                f"vLLM samples in this process; weights come to it {how}, and its log-probs are {gap.policy:.2g} nats "
                "a token from the policy's."
            )
        self._checked = self.rollouts

    def _sampling(self, policy: Policy, n: int, greedy: bool) -> Sampling:
        if greedy:
            return Sampling.greedy(self.max_new_tokens, policy.eos_token_ids)
        return Sampling(n, self.max_new_tokens, self.temperature, policy.eos_token_ids)

    def _check_length(self, policy: Policy, tokens: int) -> None:
        policy.check_fits(tokens, "shorten the prompt, or write a smaller max_new_tokens")
        assert self._inside is not None
        if tokens > self._inside.longest:
            raise ResumableError(
                f"{NAME}: a prompt and its completion are {tokens} tokens, and vLLM takes {self._inside.longest}; "
                f"write max_model_len: {tokens} or more"
            )
