"""One row per group, ``[prompt | c1 | ... | cG]``: the prompt is computed once instead of G times.

The completions of a row are blind to each other and continue the prompt's positions, so that hidden
states, log-probs and gradients are those of every sequence alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedGroups:
    """P packed rows of L tokens, N of which belong to completions."""

    input_ids: Tensor
    """[P, L] int64, right-padded with 0."""
    position_ids: Tensor
    """[P, L] int64; every completion continues from the end of the prompt."""
    attention_mask: Tensor
    """[P, 1, L, L] bool, True where the query (second to last axis) may attend to the key (last axis). Padding
    attends to itself, so that no row of a softmax is empty."""
    rows: Tensor
    """[N] int64 row of each completion token; tokens in the order of ``completion_mask``."""
    predictors: Tensor
    """[N] int64 column whose hidden state predicts the token."""
    targets: Tensor
    """[N] int64 the token."""
    completion_mask: Tensor
    """[P, G, T] bool, as it was given."""
    prompt_lengths: Tensor
    """[P] int64 tokens of each prompt."""
    positions: Tensor
    """[N] int64 place of each completion token among the P x L."""

    def attention_bias(self, dtype: torch.dtype) -> Tensor:
        """Return the mask in additive form, [P, 1, L, L]: 0 or the lowest finite number.

        Attention of kind ``eager`` adds what it is given, and would silently add 0 and 1 for a bool mask;
        ``sdpa`` takes either form.
        """
        bias = torch.zeros(self.attention_mask.shape, dtype=dtype, device=self.attention_mask.device)
        return bias.masked_fill(~self.attention_mask, torch.finfo(dtype).min)

    @cached_property
    def longest_prompt(self) -> int:
        """S, tokens of the longest prompt."""
        return int(self.prompt_lengths.max())

    @cached_property
    def completion_positions(self) -> Tensor:
        """[P x G x T] int64 place of each completion token among the P x L, 0 where the mask is off."""
        places = torch.zeros_like(self.completion_mask, dtype=torch.long)
        return places.masked_scatter(self.completion_mask, self.positions).flatten()

    @cached_property
    def completion_bias(self) -> Tensor:
        """[P x G, 1, T, S + T] float32: 0 where a completion may attend to its prompt and itself, minus infinity."""
        prompts, members, tokens = self.completion_mask.shape
        prompt = torch.arange(self.longest_prompt, device=self.rows.device) < self.prompt_lengths[:, None]
        own = torch.ones(tokens, tokens, dtype=torch.bool, device=self.rows.device).tril()
        parts = (prompt[:, None].expand(-1, tokens, -1), own.expand(prompts, -1, -1))
        bias = torch.zeros(prompts, tokens, self.longest_prompt + tokens, device=self.rows.device)
        bias.masked_fill_(~torch.cat(parts, -1), -torch.inf)
        return bias.repeat_interleave(members, 0)[:, None]

    def select(self, hidden: Tensor) -> Tensor:
        """Return the [N, H] of [P, L, H] hidden states that predict the completion tokens."""
        return hidden[self.rows, self.predictors]

    def unpack(self, values: Tensor) -> Tensor:
        """Return [P, G, T] with the N values in their places and 0 elsewhere; differentiable."""
        return values.new_zeros(self.completion_mask.shape).masked_scatter(self.completion_mask, values)


def pack(prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> PackedGroups:
    """Pack each prompt with its completions into one row, real tokens only.

    Args:
        prompt_ids: [P, S] int64; padding may stand on either side.
        prompt_mask: [P, S] bool.
        completion_ids: [P, G, T] int64, right-padded.
        completion_mask: [P, G, T] bool, True on the first tokens of each completion.

    Raises:
        ValueError: a prompt is empty, so that nothing predicts the first token.
    """
    prompt_lengths = prompt_mask.sum(1)
    if not prompt_lengths.all():
        raise ValueError(f"prompt {int(prompt_lengths.argmin())} has no tokens; nothing predicts its completions")
    lengths = completion_mask.sum(2)
    ends = prompt_lengths[:, None] + lengths.cumsum(1)
    shape = (len(prompt_ids), int(ends[:, -1].max()))

    prompt_rows, source = prompt_mask.nonzero(as_tuple=True)
    prompt_columns = prompt_mask.cumsum(1)[prompt_rows, source] - 1
    rows, member, token = completion_mask.nonzero(as_tuple=True)
    columns = (ends - lengths)[rows, member] + token

    input_ids = prompt_ids.new_zeros(shape)
    position_ids = prompt_ids.new_zeros(shape)
    segments = prompt_ids.new_full(shape, _PADDING)
    input_ids[prompt_rows, prompt_columns] = prompt_ids[prompt_mask]
    position_ids[prompt_rows, prompt_columns] = prompt_columns
    segments[prompt_rows, prompt_columns] = _PROMPT
    targets = completion_ids[completion_mask]
    input_ids[rows, columns] = targets
    position_ids[rows, columns] = prompt_lengths[rows] + token
    segments[rows, columns] = member

    predictors = torch.where(token == 0, prompt_lengths[rows], columns) - 1
    return PackedGroups(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=_attention(segments),
        rows=rows,
        predictors=predictors,
        targets=targets,
        completion_mask=completion_mask,
        prompt_lengths=prompt_lengths,
        positions=rows * shape[1] + columns,
    )


_PROMPT, _PADDING = -1, -2


def _attention(segments: Tensor) -> Tensor:
    """Return [P, 1, L, L] bool from [P, L]: member of the group, or ``_PROMPT``, or ``_PADDING``."""
    query, key = segments[:, :, None], segments[:, None, :]
    square = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device)
    real = square.tril() & ((key == query) | (key == _PROMPT)) & (query != _PADDING)
    diagonal = torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    return (real | diagonal)[:, None]
