"""The engine: prompts to vLLM servers, answers to rollouts."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.utilities import rank_zero_info

from lit_debias.plugins import (
    Policy,
    PromptBatch,
    Requirement,
    ResumableError,
    Rollout,
    RolloutEngine,
    RolloutUnderWay,
    UserError,
    check_endpoint,
    enough,
    rank,
    world_size,
)
from lit_debias_vllm import answers, check, sync
from lit_debias_vllm.examination import HIGHEST, examine
from lit_debias_vllm.measuring import faster
from lit_debias_vllm.on_ray import SCHEME, expanded
from lit_debias_vllm.pool import Ask, Deliver, Pool
from lit_debias_vllm.sampling import Completion, Sampling, seed_of
from lit_debias_vllm.server import Server
from lit_debias_vllm.transfer import Transfer, choose_carrier
from lit_debias_vllm.versions import Version, Versions


@dataclass(frozen=True)
class Asked:
    """A rollout as servers are asked for it; none of this asks the policy for anything but tokens."""

    groups: int
    ask: Ask
    deliver: Deliver
    rollout: Callable[[], Rollout]
    """Returns it once all groups are delivered; asks the policy, which must be the one that is sampled."""


class Background(RolloutUnderWay):
    """A rollout that servers sample while this process does something else.

    Args:
        policy: Which is sampled.
        start: When it was begun, as ``time.perf_counter`` has it.
        ended: When its last group came.
        rollout: Returns it then.
    """

    def __init__(self, policy: Policy, start: float, ended: Future[float], rollout: Callable[[], Rollout]) -> None:
        self._policy, self._start, self._ended, self._rollout = policy, start, ended, rollout

    def result(self) -> Rollout:
        """Wait for it; see :meth:`RolloutUnderWay.result`."""
        with self._policy.failing_together():
            self.seconds = self._ended.result() - self._start
        return self._rollout()


class VLLMEngine(RolloutEngine):
    """Samples with vLLM servers, which get the adapter, or weights with the adapter in them, after each update.

    With ``one_step_off_policy`` they sample while the policy is trained. A server that comes back in the meantime gets
    the weights that the rollout was begun with.

    Log-probs are the servers' own. Their arithmetic differs from the trainer's, so give GRPO a ``correction``. There is
    no top-p or top-k: they would sample from another distribution than the update computes.

    Args:
        urls: Addresses of the servers, such as ``http://localhost:8000``; ``ray://servers`` are all that ``lit-debias
            ray`` has started. Processes of one run share them out, where there are as many.
        max_new_tokens: Longest completion, in tokens, end-of-sequence token included.
        temperature: Divides the logits before sampling; the update uses the same value. Other than 1, the servers need
            ``--logprobs-mode processed_logprobs``.
        model: The base's name at the servers; null is the only one that they have.
        sync: ``adapter`` writes a PEFT adapter for each update, and servers load it; ``merged`` writes base + adapter
            in the policy's dtype, and servers load these weights. ``auto`` samples a few tokens each way at the start,
            and takes ``merged`` for a server where that is at least half as fast again.
        folder: Where weights are written that servers read, under the same path on their machines. null is shared
            memory, for servers on this machine.
        transfer: ``folder`` lets servers read the weights' files there; ``http`` sends the files to servers that were
            started with ``--worker-extension-cls lit_debias_vllm_server.Receiver``. ``auto`` asks such servers whether
            they see the folder.
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
        transfer: Transfer = "auto",
        check_every: int = 10,
        max_gap: float = 0.25,
        timeout: float = 300.0,
        patience: float = 300.0,
        api_key_env: str = "VLLM_API_KEY",
    ) -> None:
        super().__init__(max_new_tokens, temperature)
        if temperature > HIGHEST:
            raise UserError(f"VLLMEngine: temperature={temperature:g}; vLLM takes at most {HIGHEST:g}")
        self.urls = [_root(url, api_key_env) for url in expanded(urls)]
        if not self.urls or len(set(self.urls)) < len(self.urls):
            raise UserError(f"VLLMEngine: urls={urls}; write the address of each server once, such as {EXAMPLE}")
        if check_every < 1 or not all(0 < value < math.inf for value in (max_gap, timeout, patience)):
            raise UserError(
                f"VLLMEngine: check_every={check_every}, max_gap={max_gap}, timeout={timeout}, patience={patience}; "
                "write check_every >= 1, and finite numbers above 0 for the others"
            )
        self.model, self.sync, self.check_every, self.max_gap = model, sync, check_every, max_gap
        self.timeout, self.patience, self.api_key_env, self.transfer = timeout, patience, api_key_env, transfer
        self.versions = Versions(folder)
        self.rollouts = 0
        """Calls of :meth:`generate`."""
        self._pool: Pool | None = None
        self._policy: weakref.ref[Policy] | None = None
        self._version: Version
        self._unjudged: list[tuple[Server, Rollout, str]] = []
        """Servers, what they have sampled to be compared with the policy, and what the log says of new ones."""
        self._spare: Rollout
        """What this process computes with where others have more to compare, and need it for that."""

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
        self._forget_unjudged()
        with policy.failing_together():
            self._pool.meet()
        self._judge()
        self._policy = weakref.ref(policy)

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
        asked, pool = self._asked(policy, prompts, group_size, seed, greedy, on_group)
        with policy.failing_together():
            pool.run(asked.groups, asked.ask, asked.deliver, lambda: enough(on_group))
        return asked.rollout()

    @contextmanager
    def under_way(
        self,
        policy: Policy,
        prompts: PromptBatch,
        group_size: int,
        seed: int,
        on_group: Callable[[int, Rollout], None] | None = None,
    ) -> Iterator[RolloutUnderWay]:
        """Begin a rollout that servers sample in the background; see :meth:`RolloutEngine.under_way`."""
        start = time.perf_counter()
        asked, pool = self._asked(policy, prompts, group_size, seed, False, on_group)
        with (
            self._version.written(server.way for server in pool.servers),
            pool.under_way(asked.groups, asked.ask, asked.deliver) as ended,
        ):
            yield Background(policy, start, ended, asked.rollout)

    def _asked(
        self,
        policy: Policy,
        prompts: PromptBatch,
        group_size: int,
        seed: int,
        greedy: bool,
        on_group: Callable[[int, Rollout], None] | None,
    ) -> tuple[Asked, Pool]:
        """Return how the policy as it is now is asked, and whom."""
        self.prepare(policy)
        assert self._pool is not None
        self._forget_unjudged()
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

        def take(number: int, group: Sequence[Completion]) -> None:
            one = slice(number, number + 1)
            groups[number] = check.rollout_of(policy, prompts[one], (encoded[0][one], encoded[1][one]), [group])

        def deliver(number: int, completions: list[Completion]) -> None:
            take(number, completions * group_size if greedy else completions)
            if on_group is not None:
                on_group(number, groups[number])

        def rollout() -> Rollout:
            self._judge()
            for number in set(range(len(rows))) - groups.keys():  # cancelled, and nobody looks at it
                take(number, answers.unseen(group_size, policy.encoder.pad_id))
            of_all = [groups[number] for number in range(len(rows))]
            whole = answers.joined(prompts, encoded, of_all, policy.encoder.pad_id)
            return answers.completed(policy, whole, self.temperature)

        return Asked(len(rows), ask, deliver, rollout), self._pool

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
            await self._choose_way(server)
        await sync.bring(server, self._version)
        if server.checked < 0 or self.rollouts - server.checked >= self.check_every:
            await self._check(server)

    async def _choose_way(self, server: Server) -> None:
        assert server.abilities is not None
        alone = not self._shared and not self._version.policy.is_sharded
        try:
            way = sync.choose_way(self.sync, server.abilities, merged_allowed=alone)
            server.carrier = await choose_carrier(self.transfer, server, self._version)
        except ValueError as error:
            raise ResumableError(f"VLLMEngine: {server.url}: {error}") from None
        if way is not None:
            server.way = way
        elif not server.measured:  # it may have been started anew since
            await self._measure(server)

    async def _measure(self, server: Server) -> None:
        """Choose the way by what is faster; merged, where merged weights are there and an adapter would end it."""
        if await sync.has_merged(server):
            server.way, server.measured = "merged", "merged weights are there already"
            return
        ids, mask = self._version.policy.encode_prompts(check.PROMPTS.asked)
        server.way, server.measured = await faster(server, self._version, ids[0][mask[0]].tolist())

    async def _check(self, server: Server) -> None:
        """Let a server sample what :meth:`_judge` compares with the policy.

        Raises:
            ServerError: it fails.
        """
        policy = self._version.policy
        sampling = self._sampling(policy, 1, False).shorter(check.COMPLETIONS, check.TOKENS)
        encoded = policy.encode_prompts(check.PROMPTS.asked)
        groups = []
        for number, (ids, mask) in enumerate(zip(*encoded, strict=True)):
            groups.append(await self._complete(server, sampling, ids[mask].tolist(), seed_of(self.rollouts, number)))
        rollout = check.rollout_of(policy, check.PROMPTS, encoded, groups)
        told = f"{server.url} samples from '{server.model}'; {_way_to(server)}" if server.checked < 0 else ""
        self._unjudged.append((server, rollout, told))
        server.checked = self.rollouts

    def _judge(self) -> None:
        """Compare what servers have sampled with the policy, in the thread that trains it and while it is as it was.

        Where processes share the base out, all compute as often as the one that has most to compare (collective).

        Raises:
            ResumableError: one serves something else.
        """
        policy, rollouts = self._version.policy, [rollout for _, rollout, _ in self._unjudged]
        if rollouts:
            self._spare = rollouts[0]
        for _ in range(policy.most(len(rollouts)) - len(rollouts)):
            rollouts.append(self._spare)
        gaps = [check.gap_of(policy, rollout, self.temperature) for rollout in rollouts]
        with policy.failing_together():
            for (server, _, told), gap in zip(self._unjudged, gaps, strict=False):
                if wrong := gap.wrong(self.max_gap):
                    raise ResumableError(f"VLLMEngine: {server.url} does not serve the policy as it is: {wrong}")
                if told:
                    rank_zero_info(f"{told}, and its log-probs are {gap.policy:.2g} nats a token from the policy's.")
        self._unjudged.clear()

    def _forget_unjudged(self) -> None:
        """Let those be checked anew whose rollout has failed before they were compared."""
        for server, *_ in self._unjudged:
            server.checked = -1
        self._unjudged.clear()

    async def _complete(self, server: Server, sampling: Sampling, prompt: list[int], seed: int) -> list[Completion]:
        self._check_length(server, len(prompt) + sampling.max_tokens)
        model = sync.model_of(server, self._version)
        reply = await server.complete(sampling.body(model, self._version.name, prompt, seed))
        await sync.confirm(server, self._version)
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


def _way_to(server: Server) -> str:
    """Return in words how weights come to a server, and why so."""
    way = "merged" if server.way == "merged" else "as adapters"
    by = "by HTTP" if server.carrier == "http" else "in a folder"
    why = f" ({server.measured})" if server.measured else ""
    return f"weights come to it {way}, {by}{why}"


EXAMPLE = "http://localhost:8000"


def _root(url: str, api_key_env: str) -> str:
    """Return an address without a path; OpenAI's clients write one with ``/v1``."""
    if url.startswith(SCHEME):
        return url
    check_endpoint("VLLMEngine", url, api_key_env)
    return url.rstrip("/").removesuffix("/v1")
