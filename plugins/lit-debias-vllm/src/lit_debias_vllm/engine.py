"""The engine: prompts to vLLM servers, answers to rollouts."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.functional import pad

from lit_debias.plugins import (
    Policy,
    PromptBatch,
    Requirement,
    ResumableError,
    Rollout,
    RolloutEngine,
    UserError,
    check_endpoint,
    rank,
    world_size,
)
from lit_debias_vllm import check, sync
from lit_debias_vllm.examination import HIGHEST, examine
from lit_debias_vllm.pool import Pool
from lit_debias_vllm.sampling import Completion, Sampling, seed_of
from lit_debias_vllm.server import Server
from lit_debias_vllm.versions import Version, Versions

SURE = math.log(0.9)
"""Log-probability from which on a token without one counts as certain."""


class VLLMEngine(RolloutEngine):
    """Samples with vLLM servers, which get the adapter, or weights with the adapter in them, after each update.

    Log-probs are the servers' own. Their arithmetic differs from the trainer's, so give GRPO a ``correction``. There is
    no top-p or top-k: they would sample from another distribution than the update computes.

    Args:
        urls: Addresses of the servers, such as ``http://localhost:8000``. Processes of one run share them out, where
            there are as many.
        max_new_tokens: Longest completion, in tokens, end-of-sequence token included.
        temperature: Divides the logits before sampling; the update uses the same value. Other than 1, the servers need
            ``--logprobs-mode processed_logprobs``.
        model: The base's name at the servers; null is the only one that they have.
        sync: ``adapter`` writes a PEFT adapter for each update, and servers load it; ``merged`` writes base + adapter
            in the policy's dtype, and servers load these weights. ``auto`` takes ``merged`` for servers on CPUs that
            can do it, where adapters take four times as long to sample with, and ``adapter`` for others.
        folder: Where weights are written that servers read, under the same path on their machines. null is shared
            memory, for servers on this machine.
        check_every: Rollouts after which the servers' log-probs are compared with the policy's again. They are compared
            at the start, and whenever a server was away, too.
        max_gap: Largest mean difference of these log-probs, in nats a token. bf16 makes 0.03 to 0.06; another version
            of the policy is refused before that, where it is nearer to the reference.
        timeout: Seconds that the completions of one prompt may take. A server that takes longer hangs.
        patience: Seconds to wait for a server that is not well, where no other one is.
        api_key_env: Environment variable that holds the servers' key, if they want one.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        urls: list[str],
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        model: str | None = None,
        sync: Literal["auto", "adapter", "merged"] = "auto",
        folder: str | None = None,
        check_every: int = 10,
        max_gap: float = 0.25,
        timeout: float = 300.0,
        patience: float = 300.0,
        api_key_env: str = "VLLM_API_KEY",
    ) -> None:
        super().__init__(max_new_tokens, temperature)
        if temperature > HIGHEST:
            raise UserError(f"VLLMEngine: temperature={temperature:g}; vLLM takes at most {HIGHEST:g}")
        self.urls = [_root(url, api_key_env) for url in urls]
        if not self.urls or len(set(self.urls)) < len(self.urls):
            raise UserError(f"VLLMEngine: urls={urls}; write the address of each server once, such as {EXAMPLE}")
        if check_every < 1 or not all(0 < value < math.inf for value in (max_gap, timeout, patience)):
            raise UserError(
                f"VLLMEngine: check_every={check_every}, max_gap={max_gap}, timeout={timeout}, patience={patience}; "
                "write check_every >= 1, and finite numbers above 0 for the others"
            )
        self.model, self.sync, self.check_every, self.max_gap = model, sync, check_every, max_gap
        self.timeout, self.patience, self.api_key_env = timeout, patience, api_key_env
        self.versions = Versions(folder)
        self.rollouts = 0
        """Calls of :meth:`generate`."""
        self._pool: Pool | None = None
        self._policy: weakref.ref[Policy] | None = None
        self._sampled: list[tuple[Server, Rollout]] = []
        """To be compared, where processes share the base out."""
        self._version: Version
        self._spare: tuple[Server, Rollout]

    # ---------------------------------------------------------------- the engine's contract

    @property
    def needs_base(self) -> bool:
        """Whether weights are sent merged; see :attr:`RolloutEngine.needs_base`."""
        return self.sync == "merged"

    def prepare(self, policy: Policy) -> None:
        """Bring the policy to the servers, and compare its log-probs; see :meth:`RolloutEngine.prepare`."""
        if self._policy is not None and self._policy() is policy:
            return
        self._version, self._pool = self.versions.now(policy), self._new_pool()
        with policy.failing_together():
            self._pool.meet()
        self._compare_together(policy)
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
        assert self._pool is not None
        self._version = self.versions.now(policy)
        self.rollouts += 1
        encoded = policy.encode_prompts(prompts.asked)
        policy.check_fits(
            int(encoded[1].sum(-1).max()) + self.max_new_tokens, "shorten the prompt, or write a smaller max_new_tokens"
        )
        sampling = self._sampling(policy, 1 if greedy else group_size, greedy)
        rows = [ids[mask].tolist() for ids, mask in zip(*encoded, strict=True)]
        groups: dict[int, Rollout] = {}

        async def ask(server: Server, number: int) -> list[Completion]:
            place = rank() * len(rows) + number
            return await self._complete(server, sampling, rows[number], seed_of(seed, place))

        def deliver(number: int, completions: list[Completion]) -> None:
            one = slice(number, number + 1)
            group = completions * group_size if greedy else completions
            rollout = check.rollout_of(policy, prompts[one], (encoded[0][one], encoded[1][one]), [group])
            groups[number] = rollout if policy.is_sharded else self._complete_logprobs(policy, rollout)
            if on_group is not None:
                on_group(number, groups[number])

        with policy.failing_together():
            self._pool.run(len(rows), ask, deliver)
        self._compare_together(policy)
        whole = joined(prompts, encoded, [groups[number] for number in range(len(rows))], policy.encoder.pad_id)
        return self._complete_logprobs(policy, whole)

    def examine(self) -> Iterable[Requirement]:
        """Look at the servers; see :meth:`RolloutEngine.examine`."""
        pool = self._new_pool(of_all=True)
        return [line for lines in pool.call(examine, pool.servers, self.sync, self.temperature) for line in lines]

    # ---------------------------------------------------------------- servers

    def _new_pool(self, of_all: bool = False) -> Pool:
        """Return this process's servers: its share of them, or all where there are fewer than processes."""
        own = self.urls if of_all or self._shared else self.urls[rank() :: world_size()]
        first = rank() % len(own)
        servers = [Server(url, self.model) for url in own[first:] + own[:first]]
        return Pool(servers, self._ready, self.timeout, self.patience, self.api_key_env)

    @property
    def _shared(self) -> bool:
        return len(self.urls) < world_size()

    async def _ready(self, server: Server) -> None:
        """Bring a server to the policy as it is now; see :data:`lit_debias_vllm.pool.Ready`."""
        if not server.model:
            await server.greet()
            self._choose_way(server)
        await sync.bring(server, self._version)
        if server.checked < 0 or self.rollouts - server.checked >= self.check_every:
            await self._check(server)

    def _choose_way(self, server: Server) -> None:
        assert server.abilities is not None
        alone = not self._shared and not self._version.policy.is_sharded
        try:
            server.way = sync.choose_way(self.sync, server.abilities, merged_allowed=alone)
        except ValueError as error:
            raise ResumableError(f"VLLMEngine: {server.url}: {error}") from None

    async def _check(self, server: Server) -> None:
        """Compare a server's log-probs with the policy's.

        Raises:
            ServerError: it fails.
            ResumableError: it serves something else.
        """
        policy = self._version.policy
        sampling = self._sampling(policy, 1, False).shorter(check.COMPLETIONS, check.TOKENS)
        encoded = policy.encode_prompts(check.PROMPTS.asked)
        groups = []
        for number, (ids, mask) in enumerate(zip(*encoded, strict=True)):
            groups.append(await self._complete(server, sampling, ids[mask].tolist(), seed_of(self.rollouts, number)))
        rollout = check.rollout_of(policy, check.PROMPTS, encoded, groups)
        if policy.is_sharded:
            self._sampled.append((server, rollout))
        else:
            self._judge(server, check.gap_of(policy, rollout, self.temperature))

    def _compare_together(self, policy: Policy) -> None:
        """Compare what servers have sampled for it where all processes must compute for one that does (collective)."""
        if not policy.is_sharded:
            return
        sampled, self._sampled = self._sampled, []
        self._spare = sampled[0] if sampled else self._spare  # what a process computes with for others
        asked = sampled + [self._spare] * (policy.most(len(sampled)) - len(sampled))
        gaps = [(server, check.gap_of(policy, rollout, self.temperature)) for server, rollout in asked]
        with policy.failing_together():
            for server, gap in gaps[: len(sampled)]:
                self._judge(server, gap)

    def _judge(self, server: Server, gap: check.Gap) -> None:
        """Refuse a server that serves something else; say once how far it is from the policy."""
        wrong = gap.wrong(self.max_gap)
        if wrong:
            raise ResumableError(f"VLLMEngine: {server.url} does not serve the policy as it is: {wrong}")
        if server.checked < 0:
            rank_zero_info(
                f"{server.url} samples from '{server.model}'; weights come to it "
                f"{'merged' if server.way == 'merged' else 'as adapters'}, and its log-probs are {gap.policy:.2g} nats "
                "a token from the policy's."
            )
        server.checked = self.rollouts

    async def _complete(self, server: Server, sampling: Sampling, prompt: list[int], seed: int) -> list[Completion]:
        self._check_length(server, len(prompt) + sampling.max_tokens)
        model = sync.model_of(server, self._version)
        reply = await server.complete(sampling.body(model, self._version.name, prompt, seed))
        return sampling.read(reply, model, server.url)

    def _sampling(self, policy: Policy, n: int, greedy: bool) -> Sampling:
        if greedy:
            return Sampling.greedy(self.max_new_tokens, policy.eos_token_ids)
        return Sampling(n, self.max_new_tokens, self.temperature, policy.eos_token_ids)

    def _check_length(self, server: Server, tokens: int) -> None:
        if server.longest is not None and tokens > server.longest:
            raise ResumableError(
                f"VLLMEngine: a prompt and its completion are {tokens} tokens, and {server.url} takes "
                f"{server.longest}; start it with --max-model-len {tokens} or more"
            )

    # ---------------------------------------------------------------- answers

    def _complete_logprobs(self, policy: Policy, rollout: Rollout) -> Rollout:
        """Return a rollout with log-probs of 0 where they are missing, if the policy is sure of these tokens."""
        missing = rollout.logprobs.isnan()
        if not policy.most(int(missing.any())):
            return rollout
        with check.on_device(policy):
            own = policy.logprobs(rollout, self.temperature)
        lowest = float(own[missing].min()) if bool(missing.any()) else 0.0
        if lowest < SURE:
            raise ResumableError(
                "VLLMEngine: a server gives no log-probability for a token that the policy gives "
                f"{math.exp(lowest):.2g}; its weights or its version of vLLM are broken"
            )
        return replace(rollout, logprobs=rollout.logprobs.nan_to_num(0.0))


EXAMPLE = "http://localhost:8000"


def _root(url: str, api_key_env: str) -> str:
    """Return an address without a path; OpenAI's clients write one with ``/v1``."""
    check_endpoint("VLLMEngine", url, api_key_env)
    return url.rstrip("/").removesuffix("/v1")


def joined(prompts: PromptBatch, encoded: tuple[Tensor, Tensor], groups: Sequence[Rollout], pad_id: int) -> Rollout:
    """Return the rollouts of single prompts as one, padded to the longest completion."""
    length = max(group.completion_ids.shape[-1] for group in groups)

    def all_of(tensors: Iterable[Tensor], value: float = 0) -> Tensor:
        return torch.cat([pad(tensor, (0, length - tensor.shape[-1]), value=value) for tensor in tensors])

    return Rollout(
        prompts=prompts,
        prompt_ids=encoded[0],
        prompt_mask=encoded[1],
        completion_ids=all_of((group.completion_ids for group in groups), pad_id),
        completion_mask=all_of(group.completion_mask for group in groups),
        logprobs=all_of(group.logprobs for group in groups),
        truncated=torch.cat([group.truncated for group in groups]),
        texts=[group.texts[0] for group in groups],
    )
