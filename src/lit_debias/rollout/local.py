"""Sampling in this process: one prefill per prompt, its cache shared by the group, finished rows dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_debias import distributed
from lit_debias.errors import UserError
from lit_debias.native_model import compiler
from lit_debias.policy import QLoRAPolicy
from lit_debias.rollout.base import OnGroup, RolloutEngine
from lit_debias.rollout.decoders import Decoder, HuggingFaceDecoder, LeanDecoder, NativeDecoder
from lit_debias.rollout.sampling import Sampler
from lit_debias.types import PromptBatch, Rollout


class LocalEngine(RolloutEngine):
    """Samples with the policy's own weights in this process.

    Args:
        max_new_tokens: Longest completion, in tokens, end-of-sequence token included.
        temperature: Divides the logits before sampling; the update uses the same value.
        top_k: Sample among the k most probable tokens; 0 for all. Changes the distribution that is learned from.
        top_p: Sample among the fewest tokens that reach this probability; 1 for all. Changes it likewise.
        weights: ``merged`` samples from a copy with base and LoRA in one weight (fast; costs the base once more in
            the policy's dtype), ``live`` from the training weights (slower; no memory).
        decoder: ``lean`` is a forward pass made for sampling, several times faster on a CPU; it knows Llama, Mistral
            (without sliding window), Qwen2 and Qwen3. ``native`` is the same in C++, twice as fast again: for CPUs with
            AVX512-BF16, in bfloat16, compiled in two seconds by g++ or what ``CXX`` says. ``hugging_face`` is the
            model's own. ``auto`` takes the fastest that knows the model, where weights are merged, and the log says
            which.
        torch_compile: Compile the lean decoder: for long runs. Tokens come a tenth to a fifth sooner on a CPU, but the
            first of them after a minute or so, and again those of other numbers and lengths of prompts until
            ``torch.compile`` knows what varies. Needs a C++ compiler.
        cuda_graph: Record a token's kernels once for each rollout, and start them all with one call: for GPUs, where
            hundreds of small kernels otherwise wait for Python. The lean decoder's, compiled or not.

    Raises:
        UserError: a value is out of range, or values do not go together.
    """

    def __init__(
        self,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        weights: Literal["merged", "live"] = "merged",
        decoder: Literal["auto", "native", "lean", "hugging_face"] = "auto",
        torch_compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(max_new_tokens, temperature)
        if top_k < 0 or not 0 < top_p <= 1:
            raise UserError(f"engine: top_k={top_k}, top_p={top_p}; write top_k >= 0 and 0 < top_p <= 1")
        if weights == "live" and decoder in {"native", "lean"}:
            raise UserError(
                f"engine: the {decoder} decoder has merged weights only; write weights: merged or decoder: auto"
            )
        self.torch_compile, self.cuda_graph = torch_compile, cuda_graph
        asked = [name for name, on in self._lean_options.items() if on]
        if asked and (weights == "live" or decoder in {"native", "hugging_face"}):
            raise UserError(
                f"engine: {asked[0]} is for the lean decoder alone; write weights: merged and decoder: auto"
            )
        self.top_k, self.top_p, self.weights, self.decoder = top_k, top_p, weights, decoder
        self._told = False

    @property
    def _lean_options(self) -> dict[str, bool]:
        return {"torch_compile": self.torch_compile, "cuda_graph": self.cuda_graph}

    @torch.no_grad()
    def generate(
        self,
        policy: QLoRAPolicy,
        prompts: PromptBatch,
        group_size: int,
        seed: int,
        greedy: bool = False,
        on_group: OnGroup | None = None,
    ) -> Rollout:
        """Return ``group_size`` completions for each prompt; see :meth:`RolloutEngine.generate`."""
        prompt_ids, prompt_mask = policy.encode_prompts(prompts.asked)
        longest = int(prompt_mask.sum(-1).max()) + self.max_new_tokens
        policy.check_fits(longest, "shorten the prompt, or write a smaller max_new_tokens")
        uniforms = self._uniforms(len(prompts) * group_size, seed).to(policy.device)
        sampler = Sampler(1.0 if greedy else self.temperature, self.top_k, self.top_p, greedy)
        decoding = Decoding(uniforms, policy.eos_token_ids, sampler)
        shape = (len(prompts), group_size, -1)

        def rollout_of(which: slice) -> Rollout:
            ids, mask = decoding.ids.view(shape)[which], decoding.mask().view(shape)[which]
            return Rollout(
                prompts=prompts[which],
                prompt_ids=prompt_ids[which],
                prompt_mask=prompt_mask[which],
                completion_ids=ids,
                completion_mask=mask,
                logprobs=decoding.logprobs.view(shape)[which],
                truncated=~decoding.finished.view(shape[:2])[which],
                texts=policy.decode(ids, mask),
            )

        def tell(number: int) -> None:
            if on_group is not None:
                on_group(number, rollout_of(slice(number, number + 1)))

        with self._decoder(policy) as decoder, torch.inference_mode():
            decoding.run(decoder, prompt_ids, prompt_mask, group_size, tell if on_group else None)
        return rollout_of(slice(None))

    @contextlib.contextmanager
    def _decoder(self, policy: QLoRAPolicy) -> Iterator[Decoder]:
        chosen = self._chosen(policy)
        if chosen == "native":
            yield NativeDecoder(policy.native_model())
        elif chosen == "lean":
            yield LeanDecoder(policy.lean_model(), self.torch_compile, self.cuda_graph)
        elif self.weights == "merged":
            yield HuggingFaceDecoder(policy.inference_model())
        else:
            with policy.live_model() as model, policy.autocast():
                yield HuggingFaceDecoder(model)

    def _chosen(self, policy: QLoRAPolicy) -> Literal["native", "lean", "hugging_face"]:
        lean = self._lean_obstacle(policy)
        native = lean or (policy.native_obstacle if self._may_be_native else "as configured")
        asks = {"decoder: auto": self.decoder == "lean"} | {f"{k}: false": on for k, on in self._lean_options.items()}
        if lean and any(asks.values()):
            remedy = " and ".join(remedy for remedy, needed in asks.items() if needed)
            raise UserError(f"engine: the lean decoder cannot run this model, {lean}; write {remedy}")
        if native and self.decoder == "native":
            raise UserError(f"engine: the native decoder cannot run this model, {native}; write decoder: auto")
        if not self._told:
            self._check_machine(policy)
            compiled = ", which is compiled first: that takes a minute or so" if self.torch_compile else ""
            why = f"not the native one: {native}" if self._may_be_native else "as configured"
            used = f"the lean decoder ({why}){compiled}" if native else "the native decoder"
            used = f"Hugging Face's forward pass ({lean})" if lean else used
            rank_zero_info(f"Rollouts use {used}.")
            self._told = True
        return "hugging_face" if lean else "lean" if native else "native"

    def _check_machine(self, policy: QLoRAPolicy) -> None:
        if self.cuda_graph and policy.device.type != "cuda":
            raise UserError("engine: cuda_graph needs a CUDA device; write cuda_graph: false")
        if self.torch_compile and policy.device.type == "cpu" and compiler() is None:
            raise UserError(
                "engine: torch_compile needs a C++ compiler; install g++, set CXX, or write torch_compile: false"
            )

    def _lean_obstacle(self, policy: QLoRAPolicy) -> str | None:
        if self.weights == "live":
            return "weights are live"
        if self.decoder == "hugging_face":
            return "as configured"
        return policy.lean_obstacle

    @property
    def _may_be_native(self) -> bool:
        return self.decoder in {"auto", "native"} and not any(self._lean_options.values())

    def _uniforms(self, rows: int, seed: int) -> Tensor:
        # Drawn for all ranks at once and before decoding: a row's draws depend neither on how many ranks there are
        # nor on when other rows finish.
        generator = torch.Generator().manual_seed(seed)
        everybody = torch.rand(distributed.world_size() * rows, self.max_new_tokens, generator=generator)
        return everybody[distributed.rank() * rows :][:rows]


class Decoding:
    """The state of one call: N rows of at most T tokens, written in place.

    Args:
        uniforms: [N, T] in [0, 1).
        eos_token_ids: Every id that ends a row.
        sampler: Chooses tokens.
    """

    def __init__(self, uniforms: Tensor, eos_token_ids: tuple[int, ...], sampler: Sampler) -> None:
        device = uniforms.device
        self.uniforms = uniforms
        self.sampler = sampler
        self.eos = torch.tensor(eos_token_ids, dtype=torch.long, device=device)
        self.ids = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(uniforms.shape, device=device)
        self.lengths = torch.zeros(len(uniforms), dtype=torch.long, device=device)
        self.finished = torch.zeros(len(uniforms), dtype=torch.bool, device=device)
        self._told: set[int] = set()
        self.check_every = 1 if device.type == "cpu" else 8  # a look at the device's flags waits for the device

    def run(
        self,
        decoder: Decoder,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        group_size: int,
        on_group: Callable[[int], None] | None = None,
    ) -> None:
        """Fill all rows, group by group; prompts are [P, S] with N = P x G.

        ``on_group`` is called with the number of each prompt once its rows are filled.
        """
        logits = decoder.start(prompt_ids, prompt_mask, group_size, self.ids.shape[1] - 1)
        rows = torch.arange(len(self.ids), device=prompt_ids.device)
        for step in range(self.ids.shape[1]):
            tokens = self.take(rows, step, logits)
            if step % self.check_every == 0:
                going = ~self.finished[rows]
                remaining = int(going.sum())
                if remaining == 0:
                    break
                if on_group is not None:
                    self._tell(self.finished.view(-1, group_size).all(1).tolist(), on_group)
                if remaining <= len(rows) // 2:
                    kept = going.nonzero()[:, 0]
                    decoder.keep(kept)
                    rows, tokens = rows[kept], tokens[kept]
            if step + 1 < self.ids.shape[1]:
                logits = decoder.step(tokens)
        if on_group is not None:
            self._tell([True] * len(prompt_ids), on_group)

    def _tell(self, filled: list[bool], on_group: Callable[[int], None]) -> None:
        for number in [number for number, group in enumerate(filled) if group and number not in self._told]:
            self._told.add(number)
            on_group(number)

    def take(self, rows: Tensor, step: int, logits: Tensor) -> Tensor:
        """Choose and record one token for each of ``rows``; finished rows record nothing."""
        tokens, logprobs = self.sampler(logits, self.uniforms[rows, step])
        going = ~self.finished[rows]
        self.ids[rows, step] = torch.where(going, tokens, 0)
        self.logprobs[rows, step] = torch.where(going, logprobs, 0.0)
        self.lengths[rows] += going
        self.finished[rows] |= torch.isin(tokens, self.eos)
        return tokens

    def mask(self) -> Tensor:
        """Return [N, T] bool, True up to and including the end-of-sequence token."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]
