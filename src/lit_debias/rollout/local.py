"""Sampling in this process: one prefill per prompt, its cache shared by the group, finished rows dropped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.policy.policy import Policy
from lit_debias.rollout.choose import DecoderChoice, DecoderOptions
from lit_debias.rollout.decoders import Decoder
from lit_debias.rollout.engine import OnGroup, RolloutEngine, enough
from lit_debias.rollout.sampling import Sampler
from lit_debias.rollout.stopping import StopStrings, check_stops, ending_tokens
from lit_debias.support import distributed
from lit_debias.support.neighbours import making_room
from lit_debias.types import PromptBatch, Rollout, Support

if TYPE_CHECKING:
    from transformers import GenerationConfig


LEFT_OUT: dict[str, int | None] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "stop_strings")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
}
"""What ``generation_config.json`` may ask of sampling that an engine has no option for or does not copy, and the value
that asks nothing."""


class LocalEngine(RolloutEngine):
    """Samples with the policy's own weights in this process.

    Args:
        max_new_tokens: Longest completion, in tokens, end-of-sequence token included.
        temperature: Divides the logits before sampling; the update uses the same value.
        top_k: Sample among the k most probable tokens; 0 for all. What is learned is then the policy within these
            tokens: the update and its reference renormalise over those that were kept when each token was sampled.
        top_p: Sample among the fewest tokens that reach this probability; 1 for all. Learned from likewise.
        min_p: Sample among the tokens that are at least this probable, as a share of the probability of the most
            probable one; 0 for all. Learned from likewise.
        stop: Strings that end a completion, as the end-of-sequence token does: the token that completes one is its last
            and is learned, and the text is cut before the string. Special tokens may stand among them.
        weights: ``merged`` samples from a copy with base and LoRA in one weight (fast; costs the base once more in
            the policy's dtype), ``live`` from the training weights (slower; no memory).
        decoder: ``lean`` is a forward pass made for sampling, several times faster on a CPU; it knows Llama, Mistral,
            Qwen2, Qwen3, Gemma and Gemma 3 (text), with their attention windows. ``native`` is the same in C++, twice
            as fast again: for CPUs with AVX512-BF16, in bfloat16, compiled in two seconds by g++ or what ``CXX`` says.
            ``hugging_face`` is the model's own. ``auto`` takes the fastest that knows the model, where weights are
            merged, and the log says which.
        torch_compile: Compile the lean decoder: for long runs. Tokens come a tenth to a fifth sooner on a CPU, but the
            first of them after a minute or so, and again those of other numbers and lengths of prompts until
            ``torch.compile`` knows what varies. Needs a C++ compiler.
        cuda_graph: Record a token's kernels once for each rollout, and start them all with one call: for GPUs, where
            hundreds of small kernels otherwise wait for Python. The lean decoder's, compiled or not.

    Raises:
        UserError: a value is out of range, or values do not go together.
    """

    reads_pictures = True

    def __init__(
        self,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: list[str] | None = None,
        weights: Literal["merged", "live"] = "merged",
        decoder: Literal["auto", "native", "lean", "hugging_face"] = "auto",
        torch_compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(max_new_tokens, temperature)
        if top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p < 1:
            raise UserError(
                f"engine: top_k={top_k}, top_p={top_p}, min_p={min_p}; write top_k >= 0, 0 < top_p <= 1, 0 <= min_p < 1"
            )
        check_stops(stop or [])
        self.top_k, self.top_p, self.min_p, self.stop = top_k, top_p, min_p, list(stop or [])
        self.decoders = DecoderChoice(DecoderOptions(weights, decoder, torch_compile, cuda_graph))

    def prepare(self, policy: Policy) -> None:
        """Choose the decoder, and check it against the plain model; see :meth:`RolloutEngine.prepare`."""
        if self.decoders.settle(policy):
            self._say_what_is_left_out(policy.causal_lm.generation_config)

    def generate(
        self,
        policy: Policy,
        prompts: PromptBatch,
        group_size: int,
        seed: int,
        greedy: bool = False,
        on_group: OnGroup | None = None,
    ) -> Rollout:
        """Return ``group_size`` completions for each prompt; see :meth:`RolloutEngine.generate`."""
        uniforms = self._uniforms(len(prompts) * group_size, seed)
        return self.sample(policy, prompts, group_size, uniforms, greedy, on_group)

    @torch.no_grad()
    def sample(
        self,
        policy: Policy,
        prompts: PromptBatch,
        group_size: int,
        uniforms: Tensor,
        greedy: bool = False,
        on_group: OnGroup | None = None,
    ) -> Rollout:
        """Return what :meth:`generate` returns, by given random numbers.

        Args:
            policy: The policy as it is now.
            prompts: P prompts.
            group_size: G.
            uniforms: [P x G, ``max_new_tokens``] in [0, 1), a row for each completion, group by group.
            greedy: Take the most probable token instead.
            on_group: As there.
        """
        prompt_ids, prompt_mask = policy.encode_prompts(prompts.asked)
        pictures = policy.pictures_of(prompts.asked)
        longest = int(prompt_mask.sum(-1).max()) + self.max_new_tokens
        policy.check_fits(longest, "shorten the prompt, or write a smaller max_new_tokens")
        sampler = Sampler(self.temperature, self.top_k, self.top_p, self.min_p)
        ends = policy.eos_token_ids + ending_tokens(self.stop, policy.tokenizer)
        stops = StopStrings(self.stop, policy.text_of) if self.stop else None
        decoding = Decoding(uniforms.to(policy.device), ends, Sampler(greedy=True) if greedy else sampler, stops)
        shape = (len(prompts), group_size, -1)

        def rollout_of(which: slice) -> Rollout:
            ids, mask = decoding.ids.view(shape)[which], decoding.mask().view(shape)[which]
            texts, support = policy.decode(ids, mask), decoding.support(shape)
            return Rollout(
                prompts=prompts[which],
                prompt_ids=prompt_ids[which],
                prompt_mask=prompt_mask[which],
                completion_ids=ids,
                completion_mask=mask,
                logprobs=decoding.logprobs.view(shape)[which],
                truncated=~decoding.finished.view(shape[:2])[which],
                texts=[[stops.cut(text) for text in group] for group in texts] if stops else texts,
                support=support and support[which],
                pictures=pictures and pictures[which],
            )

        def tell(number: int) -> None:
            if on_group is not None:
                on_group(number, rollout_of(slice(number, number + 1)))

        with making_room(policy.device), self._decoder(policy) as decoder, torch.inference_mode():
            told = tell if on_group else None
            decoder.show(pictures)
            decoding.run(decoder, prompt_ids, prompt_mask, group_size, told, lambda: enough(on_group))
        return rollout_of(slice(None))

    def _decoder(self, policy: Policy) -> AbstractContextManager[Decoder]:
        self.prepare(policy)
        return self.decoders.open(policy)

    def _say_what_is_left_out(self, config: GenerationConfig | None) -> None:
        asked = {name: getattr(config, name, None) for name in LEFT_OUT}
        found = [f"{name}={value!r:.60}" for name, value in asked.items() if value not in (None, [], LEFT_OUT[name])]
        if found:
            rank_zero_info(
                f"The model's generation_config.json asks for {', '.join(found)}. Rollouts leave that out: they follow "
                "the policy itself, and the engine's own options."
            )

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
        stops: What else ends a row.
    """

    def __init__(
        self, uniforms: Tensor, eos_token_ids: tuple[int, ...], sampler: Sampler, stops: StopStrings | None = None
    ) -> None:
        device = uniforms.device
        self.uniforms = uniforms
        self.sampler, self.stops = sampler, stops
        self.eos = torch.tensor(eos_token_ids, dtype=torch.long, device=device)
        self.ids = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(uniforms.shape, device=device)
        self.lengths = torch.zeros(len(uniforms), dtype=torch.long, device=device)
        self.finished = torch.zeros(len(uniforms), dtype=torch.bool, device=device)
        self._kept: list[Tensor] = []  # ids that could be sampled, token by token and then row by row
        self._kept_counts = torch.zeros_like(self.ids)
        self._told: set[int] = set()
        self.check_every = 1 if device.type == "cpu" else 8  # a look at the device's flags waits for the device

    def run(
        self,
        decoder: Decoder,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        group_size: int,
        on_group: Callable[[int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Fill all rows, group by group; prompts are [P, S] with N = P x G.

        ``on_group`` is called with the number of each prompt once its rows are filled. Once ``stop`` returns True, the
        rows of the others stay as they are.

        Raises:
            UserError: the decoder gives logits that are no numbers.
        """
        logits = decoder.start(prompt_ids, prompt_mask, group_size, self.ids.shape[1] - 1)
        rows = torch.arange(len(self.ids), device=prompt_ids.device)
        for step in range(self.ids.shape[1]):
            tokens = self.take(rows, step, logits)
            if step % self.check_every == 0:
                self._check_numbers(step + 1 - self.check_every, step + 1, group_size)
                going = ~self.finished[rows]
                remaining = int(going.sum())
                if remaining == 0:
                    break
                if on_group is not None:
                    self._tell(self.finished.view(-1, group_size).all(1).tolist(), on_group)
                if stop():
                    return
                if remaining <= len(rows) // 2:
                    kept = going.nonzero()[:, 0]
                    decoder.keep(kept)
                    rows, tokens = rows[kept], tokens[kept]
            if step + 1 < self.ids.shape[1]:
                logits = decoder.step(tokens)
        self._check_numbers(-self.check_every, None, group_size)
        if on_group is not None:
            self._tell([True] * len(prompt_ids), on_group)

    def _tell(self, filled: list[bool], on_group: Callable[[int], None]) -> None:
        for number in [number for number, group in enumerate(filled) if group and number not in self._told]:
            self._told.add(number)
            on_group(number)

    def take(self, rows: Tensor, step: int, logits: Tensor) -> Tensor:
        """Choose and record one token for each of ``rows``; finished rows record nothing."""
        tokens, logprobs, kept = self.sampler(logits, self.uniforms[rows, step])
        going = ~self.finished[rows]
        self.ids[rows, step] = torch.where(going, tokens, 0)
        self.logprobs[rows, step] = torch.where(going, logprobs, 0.0)
        self.lengths[rows] += going
        self.finished[rows] |= torch.isin(tokens, self.eos)
        if kept is not None:
            self._keep(rows[going], step, kept[going])
        if self.stops is not None:
            self._stop(rows[~self.finished[rows]], step, self.stops)
        return tokens

    def _keep(self, rows: Tensor, step: int, kept: Tensor) -> None:
        """Record what could be sampled, [N, V] bool."""
        self._kept_counts[rows, step] = kept.sum(-1)
        self._kept.append(kept.nonzero()[:, 1].int())

    def _stop(self, rows: Tensor, step: int, stops: StopStrings) -> None:
        """Finish those of the rows whose latest token completes a string."""
        so_far = self.ids[rows, : step + 1].cpu()
        complete = torch.tensor([stops.complete(ids) for ids in so_far], dtype=torch.bool, device=rows.device)
        self.finished[rows[complete]] = True

    def _check_numbers(self, start: int, end: int | None, group_size: int) -> None:
        wrong = ~self.logprobs[:, max(start, 0) if end else start : end].isfinite().all(-1)
        if bool(wrong.any()):
            number = int(wrong.nonzero()[0, 0]) // group_size + 1
            raise UserError(
                f"engine: the model gives logits that are not finite (NaN, infinity) for prompt {number} of the batch; "
                "its weights, its dtype or the adapter is broken: try dtype: float32, or an earlier checkpoint"
            )

    def support(self, shape: tuple[int, ...]) -> Support | None:
        """Return what could be sampled in each place, as ``shape`` [P, G, T]; None where everything could."""
        if not self._kept:
            return None
        counts = self._kept_counts.T
        starts = (counts.flatten().cumsum(0) - counts.flatten()).view(counts.shape).T
        return Support(torch.cat(self._kept), starts.reshape(shape), self._kept_counts.view(shape))

    def mask(self) -> Tensor:
        """Return [N, T] bool, True up to and including the token that ended the row."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]
