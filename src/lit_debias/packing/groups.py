"""Each prompt is computed once for its whole group, and padding never: a group is ``prompt | c1 | ... | cG``.

The completions of a group are blind to each other and continue the prompt's positions, so that hidden
states, log-probs and gradients are those of every sequence alone. Their last tokens predict nothing, and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lit_debias.types import PictureInputs

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class PackedGroups:
    """M real tokens of P groups: first those of all prompts, then those of all completions that another one follows.

    What works token by token (all of a decoder but attention) takes them as they are. Attention within groups is
    :func:`lit_debias.packing.attention.group_attention`, or :meth:`rows` with a dense mask.
    """

    ids: Tensor
    """[M] int64."""
    positions: Tensor
    """[M] int64; every completion continues from the end of its prompt."""
    predictors: Tensor
    """[N] int64 place among the M of the token whose hidden state predicts each completion token."""
    targets: Tensor
    """[N] int64 the completion tokens, in the order of ``completion_mask``."""
    prompt_tokens: int
    """How many of the M tokens are of prompts."""
    prompt_mask: Tensor
    """[P, S] bool, True on the first tokens of each prompt; S is the length of the longest."""
    completion_mask: Tensor
    """[P, G, T] bool, as it was given."""
    pictures: Sequence[PictureInputs] | None = None
    """[P] of the prompts; None where there are none. Whatever reads the M tokens at once sees none of them."""

    @property
    def input_mask(self) -> Tensor:
        """[P, G, T - 1] bool, True on the completion tokens that another one follows."""
        return _followed(self.completion_mask)

    @cached_property
    def prompt_places(self) -> Tensor | None:
        """[P x S] int64 place among the M of each prompt token; None where no prompt is padded."""
        return _places(self.prompt_mask, 0)

    @cached_property
    def completion_places(self) -> Tensor | None:
        """[P x G x (T - 1)] int64 place among the M of each of ``input_mask``; None where no completion is padded."""
        return _places(self.input_mask, self.prompt_tokens)

    @cached_property
    def real_prompt(self) -> Tensor:
        """int64 places of the prompts' tokens among the P x S."""
        return self.prompt_mask.flatten().nonzero()[:, 0]

    @cached_property
    def real_completion(self) -> Tensor:
        """int64 places of the completions' tokens among the P x G x (T - 1)."""
        return self.input_mask.flatten().nonzero()[:, 0]

    def reached(self, window: int | None) -> int | None:
        """Return a window of so many tokens, or None where no sequence is longer, so that nothing is out of sight."""
        longest = self.prompt_mask.shape[1] + self.input_mask.shape[2]
        return window if window is not None and window < longest else None

    def prompt_bias(self, repeats: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """Return [1, 1, repeats x S, S]: 0 where a prompt's token may attend to another, minus infinity elsewhere.

        Args:
            repeats: Queries of each token that stand below each other.
            dtype: Type of the scores.
            window: Tokens that each one sees, itself included; None for all.
        """
        return self._cached(("prompt", repeats, dtype, window), lambda: self._prompt_bias(repeats, dtype, window))

    def completion_bias(self, repeats: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """Return [P x G, 1, repeats x (T - 1), S + T - 1], or [1, ...] where all prompts are equally long.

        0 where a completion may attend to its prompt and itself, minus infinity elsewhere. Arguments as in
        :meth:`prompt_bias`.
        """
        key = ("completion", repeats, dtype, window)
        return self._cached(key, lambda: self._completion_bias(repeats, dtype, window))

    @cached_property
    def _biases(self) -> dict[tuple[str, int, torch.dtype, int | None], Tensor]:
        return {}

    def _cached(self, key: tuple[str, int, torch.dtype, int | None], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._biases:
            self._biases[key] = make()
        return self._biases[key]

    def _prompt_bias(self, repeats: int, dtype: torch.dtype, window: int | None) -> Tensor:
        return _bias(_band(self.prompt_mask.shape[1], window, self.ids.device)[None], repeats, dtype)

    def _completion_bias(self, repeats: int, dtype: torch.dtype, window: int | None) -> Tensor:
        _, members, tokens = self.input_mask.shape
        even = self.prompt_places is None
        prompt = self.prompt_mask[:1] if even else self.prompt_mask
        own = _band(tokens, window, self.ids.device)
        of_prompt = prompt[:, None].expand(-1, tokens, -1)
        if window is not None:
            places = torch.arange(prompt.shape[1] + tokens, device=self.ids.device)
            queries = prompt.sum(1)[:, None] + places[:tokens]  # [P or 1, T - 1] positions
            of_prompt = of_prompt & (queries[..., None] - places[: prompt.shape[1]] < window)
        bias = _bias(torch.cat((of_prompt, own.expand(len(prompt), -1, -1)), -1), repeats, dtype)
        return bias if even else bias.repeat_interleave(members, 0)

    @cached_property
    def _block_masks(self) -> dict[int | None, BlockMask]:
        return {}

    def block_mask(self, window: int | None = None) -> BlockMask:
        """Return what may be seen among the M tokens, for FlexAttention; ``window`` as in :meth:`prompt_bias`."""
        if window not in self._block_masks:
            self._block_masks[window] = self._block_mask(window)
        return self._block_masks[window]

    def _block_mask(self, window: int | None) -> BlockMask:
        from torch.nn.attention.flex_attention import create_block_mask

        prompts, members, _ = self.input_mask.shape
        rows, member, _ = self.input_mask.nonzero(as_tuple=True)
        of_prompts = self.prompt_mask.nonzero()[:, 0]
        group = torch.cat((of_prompts, rows))
        sequence = torch.cat((of_prompts, prompts + rows * members + member))  # a prompt's number is its group's
        positions, tokens = self.positions, len(self.ids)
        farthest = tokens if window is None else window

        def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own, prompt = sequence[query] == sequence[key], group[query] == sequence[key]
            return (query >= key) & (own | prompt) & (positions[query] - positions[key] < farthest)

        return create_block_mask(seen, None, None, tokens, tokens, device=self.ids.device)

    def select(self, hidden: Tensor) -> Tensor:
        """Return the [N, H] of [M, H] hidden states that predict the completion tokens."""
        return hidden[self.predictors]

    def unpack(self, values: Tensor) -> Tensor:
        """Return [P, G, T] with the N values in their places and 0 elsewhere; differentiable."""
        return values.new_zeros(self.completion_mask.shape).masked_scatter(self.completion_mask, values)

    def rows(self) -> PackedRows:
        """Return one padded row per group, for a model that has attention of its own."""
        prompts, lengths = self.prompt_mask.sum(1), self.input_mask.sum(2)
        ends = prompts[:, None] + lengths.cumsum(1)
        shape = (len(prompts), int(ends[:, -1].max()))
        prompt_rows, prompt_columns = self.prompt_mask.nonzero(as_tuple=True)
        rows, member, token = self.input_mask.nonzero(as_tuple=True)
        columns = (ends - lengths)[rows, member] + token
        places = torch.cat((prompt_rows * shape[1] + prompt_columns, rows * shape[1] + columns))
        segments = torch.cat((torch.full_like(prompt_rows, _PROMPT), member))
        size = shape[0] * shape[1]
        return PackedRows(
            input_ids=self.ids[:1].repeat(size).index_copy(0, places, self.ids).view(shape),
            position_ids=self.ids.new_zeros(size).index_copy(0, places, self.positions).view(shape),
            segments=self.ids.new_full((size,), _PADDING).index_copy(0, places, segments).view(shape),
            places=places,
        )

    def sequences(self) -> list[LoneSequence]:
        """Return every completion behind its prompt, as a sequence of its own, in the order of ``completion_mask``.

        Completions without a token are left out, unless all are: a sequence that predicts nothing is there then.
        """
        prompts = torch.split(self.ids[: self.prompt_tokens], self.prompt_mask.sum(1).tolist())
        followed = torch.split(self.ids[self.prompt_tokens :], self.input_mask.sum(2).flatten().tolist())
        members, sizes = self.completion_mask.shape[1], self.completion_mask.sum(2).flatten().tolist()

        def alone(number: int, own: Tensor, size: int) -> LoneSequence:
            prompt = prompts[number // members]
            pictures = None if self.pictures is None else self.pictures[number // members]
            return LoneSequence(torch.cat((prompt, own)), len(prompt) - 1, size, number // members, pictures)

        found = [alone(number, *each) for number, each in enumerate(zip(followed, sizes, strict=True))]
        return [sequence for sequence in found if sequence.size] or found[:1]


class LoneSequence(NamedTuple):
    """A prompt and a completion but for its last token."""

    ids: Tensor
    """[L] int64."""
    first: int
    """Place of the token that predicts the first of the completion."""
    size: int
    """How many tokens the completion has."""
    group: int
    """Number of the prompt."""
    pictures: PictureInputs | None = None
    """Of the prompt."""

    def predicting(self, outputs: Tensor) -> Tensor:
        """Return those [size, ...] of the outputs [L, ...] that predict the completion."""
        return outputs[self.first : self.first + self.size]


@dataclass(frozen=True)
class PackedRows:
    """The same tokens as P rows of L, right-padded with some token of theirs.

    The embedding of a padding token is often zero, where the gradient of a root is not finite, and times nothing NaN.
    """

    input_ids: Tensor
    """[P, L] int64."""
    position_ids: Tensor
    """[P, L] int64."""
    segments: Tensor
    """[P, L] int64: member of the group, or ``_PROMPT``, or ``_PADDING``."""
    places: Tensor
    """[M] int64 where each token went among the P x L."""

    @property
    def attention_mask(self) -> Tensor:
        """[P, 1, L, L] bool, see :meth:`mask`, without a window."""
        return self.mask()

    def mask(self, window: int | None = None, chunk: int | None = None) -> Tensor:
        """Return [P, 1, L, L] bool, True where the query (second to last axis) may attend to the key (last axis).

        Padding attends to itself, so that no row of a softmax is empty.

        Args:
            window: A token sees those less than so many positions before it.
            chunk: A token sees those of its own chunk of so many positions.
        """
        seen = _attention(self.segments)
        query, key = self.position_ids[:, None, :, None], self.position_ids[:, None, None, :]
        if window is not None:
            seen &= query - key < window
        if chunk is not None:
            seen &= query // chunk == key // chunk
        return seen

    def tokens(self, hidden: Tensor) -> Tensor:
        """Return the [M, H] of [P, L, H] hidden states that belong to tokens."""
        return hidden.flatten(0, 1)[self.places]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as what is added to scores: 0 where it is True, the lowest finite number elsewhere.

    Attention of kind ``eager`` adds what it is given, and would silently add 0 and 1 for a bool mask; ``sdpa`` takes
    either form.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def pack(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    pictures: Sequence[PictureInputs] | None = None,
) -> PackedGroups:
    """Pack prompts with their completions, real tokens only.

    Args:
        prompt_ids: [P, S] int64; padding may stand on either side.
        prompt_mask: [P, S] bool.
        completion_ids: [P, G, T] int64, right-padded.
        completion_mask: [P, G, T] bool, True on the first tokens of each completion.
        pictures: [P] of the prompts, where there are some.

    Raises:
        ValueError: a prompt is empty, so that nothing predicts the first token.
    """
    lengths = prompt_mask.sum(1)
    if not lengths.all():
        raise ValueError(f"prompt {int(lengths.argmin())} has no tokens; nothing predicts its completions")
    left_aligned = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    ends = lengths.cumsum(0)
    prompt_tokens = int(ends[-1])
    followed = _followed(completion_mask)
    rows, _, token = followed.nonzero(as_tuple=True)
    target_rows, _, target = completion_mask.nonzero(as_tuple=True)
    first = target == 0
    before = prompt_tokens + torch.arange(len(first), device=first.device) - first.cumsum(0)
    return PackedGroups(
        ids=torch.cat((prompt_ids[prompt_mask], completion_ids[:, :, :-1][followed])),
        positions=torch.cat((left_aligned.nonzero()[:, 1], lengths[rows] + token)),
        predictors=torch.where(first, ends[target_rows] - 1, before),
        targets=completion_ids[completion_mask],
        prompt_tokens=prompt_tokens,
        prompt_mask=left_aligned,
        completion_mask=completion_mask,
        pictures=pictures,
    )


def token_budget(prompt_mask: Tensor, completion_mask: Tensor, tokens: int, packs: bool = True) -> list[slice]:
    """Cut P groups into neighbours that have at most so many tokens together.

    Args:
        prompt_mask: [P, S] bool.
        completion_mask: [P, G, T] bool.
        tokens: The budget; a group that alone exceeds it is a part of its own.
        packs: Whether a prompt counts once for its group, or with each completion.
    """
    copies = 1 if packs else completion_mask.shape[1]
    sizes = (copies * prompt_mask.sum(1) + _followed(completion_mask).sum((1, 2))).tolist()
    parts, start, used = [], 0, 0
    for group, size in enumerate(sizes):
        if group > start and used + size > tokens:
            parts.append(slice(start, group))
            start, used = group, 0
        used += size
    return [*parts, slice(start, len(sizes))]


def _followed(completion_mask: Tensor) -> Tensor:
    return completion_mask[:, :, 1:]  # True on the first tokens, so this has one fewer of them


def _band(tokens: int, window: int | None, device: torch.device) -> Tensor:
    """Return [tokens, tokens] bool: each sees itself and those before it, ``window`` of them in all."""
    square = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    return square if window is None else square.triu(1 - window)


def _bias(seen: Tensor, repeats: int, dtype: torch.dtype) -> Tensor:
    """Return [B, 1, repeats x L, K] of [B, L, K] bool."""
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    return bias.repeat(1, repeats, 1)[:, None]


def _places(mask: Tensor, first: int) -> Tensor | None:
    if bool(mask.all()):
        return None
    return (mask.flatten().cumsum(0) + (first - 1)).clamp(min=0)  # padding repeats the token before it


_PROMPT, _PADDING = -1, -2


def _attention(segments: Tensor) -> Tensor:
    """Return [P, 1, L, L] bool from [P, L]: member of the group, or ``_PROMPT``, or ``_PADDING``."""
    query, key = segments[:, :, None], segments[:, None, :]
    square = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device)
    real = square.tril() & ((key == query) | (key == _PROMPT)) & (query != _PADDING)
    diagonal = torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    return (real | diagonal)[:, None]
