"""Keys and values of a rollout, and the attention of new tokens to them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_debias.forward.lean import LeanModel


class KeyValueCache:
    """Keys and values of N = P x G rows: the prompts' once for each group, the completions' with room for all columns.

    A group's queries meet the keys of their prompt in one product, so neither memory nor time is spent on G copies of
    it. On a CPU both are kept in fp32, where products of a few rows take half the time that they take in bf16.

    Args:
        model: Whose cache it is.
        prompt_mask: [P, S] bool, left-padded.
        group_size: G.
        new_tokens: Columns to come after the prompt.
        even: Attend to all columns, to those that are yet to come with a weight of 0, so that every token has the same
            shapes, as compiled code wants them.
    """

    def __init__(
        self, model: LeanModel, prompt_mask: Tensor, group_size: int, new_tokens: int, even: bool = False
    ) -> None:
        prompts, longest = prompt_mask.shape
        layer, device = model.layers[0], prompt_mask.device
        dtype = torch.float32 if device.type == "cpu" else model.dtype
        heads, width = (prompts, layer.kv_heads), layer.head_dim

        def for_each_layer(*shape: int) -> list[Tensor]:
            # A tensor each: malloc keeps small blocks for the next rollout, large ones come page by page every time.
            make = torch.zeros if even else torch.empty
            return [make(*heads, *shape, dtype=dtype, device=device) for _ in model.layers]

        # Keys lie column by column: products with them read them as they are.
        self.prompt_keys, self.prompt_values = for_each_layer(width, longest), for_each_layer(longest, width)
        self.own_keys = for_each_layer(group_size, width, new_tokens)
        self.own_values = for_each_layer(group_size, new_tokens, width)
        self.filled = -1  # the column of the newest token
        self._column = torch.tensor([-1], device=device) if even else None
        padded = not bool(prompt_mask.all())
        self._prompts_shape = prompt_mask.shape
        self._real = prompt_mask.flatten().nonzero()[:, 0] if padded else None  # tokens among P x S
        windows = [_reached(layer.window, longest + new_tokens) for layer in model.layers]
        self._sights = {
            window: Sight(window, prompt_mask, padded, layer.kv_heads, new_tokens, dtype, even)
            for window in dict.fromkeys(windows)
        }
        self._sight_in = [self._sights[window] for window in windows]
        self._places = torch.arange(prompts * group_size, device=device)  # of each row among the P x G
        self._rows: Tensor | None = None  # the row in each of these places, once some are empty

    @property
    def bytes(self) -> int:
        """What all of it takes in memory."""
        parts = (self.prompt_keys, self.prompt_values, self.own_keys, self.own_values)
        return sum(tensor.nbytes for part in parts for tensor in part)

    def attend_prompt(self, number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend within the prompts, of which there are all tokens without padding, and keep their keys and values."""
        repeats = queries.shape[1] // keys.shape[1]
        queries, keys, values = (self._by_prompt(heads).transpose(1, 2) for heads in (queries, keys, values))
        self.prompt_keys[number].copy_(keys.transpose(2, 3))
        self.prompt_values[number].copy_(values)
        attended = scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(repeats, 1),
            values.repeat_interleave(repeats, 1),
            attn_mask=self._sight_in[number].prompt_mask,
            is_causal=self._sight_in[number].prompt_mask is None,
        )
        tokens = attended.transpose(1, 2).flatten(0, 1)
        return tokens if self._real is None else tokens[self._real]

    def _by_prompt(self, heads: Tensor) -> Tensor:
        """Return [P, S, heads, D] of the prompts' tokens [N, heads, D], zeros where there is padding."""
        if self._real is not None:
            padded = heads.new_zeros(self._prompts_shape.numel(), *heads.shape[1:])
            heads = padded.index_copy_(0, self._real, heads)
        return heads.view(*self._prompts_shape, *heads.shape[1:])

    def next_column(self) -> None:
        """Go on to the next token."""
        self.filled += 1
        if self._column is not None:
            self._column += 1
        for sight in self._sights.values():
            sight.next_column(self.filled)

    def attend_token(self, number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write one token of every row into the newest column and attend to what it sees, up to itself."""
        self._write(number, keys, values)
        prompt_keys, prompt_values, own_keys, own_values, bias, own_bias = self._in_sight(number)
        dtype, width = own_keys.dtype, queries.shape[-1]
        asked = self._by_head(queries).to(dtype, memory_format=torch.contiguous_format) * width**-0.5
        of_group, of_row = asked.flatten(2, 3).flatten(0, 1), asked.flatten(0, 2)  # queries of one key, in two ways
        of_prompt = torch.bmm(of_group, prompt_keys)  # [P x kv_heads, G x repeats, S]
        if bias is not None:
            of_prompt += bias.flatten(0, 1)
        of_own = torch.bmm(of_row, own_keys)  # [P x kv_heads x G, repeats, columns]
        if own_bias is not None:
            of_own += own_bias
        longest = of_prompt.shape[-1]
        scores = torch.cat((of_prompt.view(*of_own.shape[:2], longest), of_own), -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(dtype)
        attended = torch.bmm(weights[..., longest:], own_values).view(of_group.shape)
        of_prompt = weights.view(*of_group.shape[:2], -1)[..., :longest]
        attended.baddbmm_(of_prompt, prompt_values)
        by_row = attended.view(asked.shape).transpose(1, 2).to(queries.dtype, memory_format=torch.contiguous_format)
        rows = by_row.reshape(-1, *queries.shape[1:])
        return rows if self._rows is None else rows[self._places]

    def _write(self, number: int, keys: Tensor, values: Tensor) -> None:
        own_keys, own_values = self.own_keys[number], self.own_values[number]
        key, value = self._by_head(keys)[:, :, :, 0], self._by_head(values)[:, :, :, 0]
        if self._column is None:
            own_keys[..., self.filled], own_values[..., self.filled, :] = key, value
        else:
            own_keys.index_copy_(-1, self._column, key[..., None].to(own_keys.dtype))
            own_values.index_copy_(-2, self._column, value[..., None, :].to(own_values.dtype))

    def _in_sight(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return keys and values of the prompts and of the rows where the newest token sees them, and both biases."""
        sight = self._sight_in[number]
        prompt_keys, prompt_values = self.prompt_keys[number].flatten(0, 1), self.prompt_values[number].flatten(0, 1)
        own_keys, own_values = self.own_keys[number].flatten(0, 2), self.own_values[number].flatten(0, 2)
        bias, first, start = sight.prompt_bias, 0, sight.start
        if start:
            prompt_keys, prompt_values = prompt_keys[..., start:], prompt_values[:, start:]
            bias = None if bias is None else bias[..., start:]
            first = max(0, start - self._prompts_shape[1])
        if self._column is None:
            own_keys, own_values = (
                own_keys[..., first : self.filled + 1],
                own_values[:, first : self.filled + 1],
            )
        return prompt_keys, prompt_values, own_keys, own_values, bias, sight.own_bias

    def _by_head(self, heads: Tensor) -> Tensor:
        """Return [P, kv_heads, G, heads / kv_heads, D] of rows [N, heads, D]; empty places hold any row."""
        prompts, kv_heads, members, width, _ = self.own_keys[0].shape
        in_places = heads if self._rows is None else heads[self._rows]
        return in_places.view(prompts, members, kv_heads, -1, width).transpose(1, 2)

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these, in rising order; every group keeps as many places as the largest needs."""
        members = self.own_keys[0].shape[2]
        group, place = self._places[rows] // members, self._places[rows] % members
        groups, group, sizes = torch.unique(group, return_inverse=True, return_counts=True)
        number = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[group]  # within the group
        first = (sizes.cumsum(0) - sizes)[:, None].expand(-1, int(sizes.max())).clone()
        row_in = first.index_put((group, number), torch.arange(len(rows), device=rows.device))
        for of_prompts in (self.prompt_keys, self.prompt_values):
            of_prompts[:] = [of_layer[groups] for of_layer in of_prompts]
        for of_rows in (self.own_keys, self.own_values):
            of_rows[:] = [
                of_layer.transpose(1, 2)[groups[:, None], place[row_in]].transpose(1, 2).contiguous()
                for of_layer in of_rows
            ]
        for sight in self._sights.values():
            sight.keep(groups)
        self._places = group * row_in.shape[1] + number
        self._rows = None if row_in.numel() == len(rows) else row_in.flatten()


class Sight:
    """What tokens see in the layers of one window.

    Args:
        window: Tokens that each one sees, itself included; None for all, also where there are never more.
        prompt_mask: [P, S] bool, left-padded.
        padded: Whether there is padding.
        heads: Of keys.
        new_tokens: Columns to come after the prompt.
        dtype: Type of the scores.
        even: See :class:`KeyValueCache`.
    """

    def __init__(
        self,
        window: int | None,
        prompt_mask: Tensor,
        padded: bool,
        heads: int,
        new_tokens: int,
        dtype: torch.dtype,
        even: bool,
    ) -> None:
        prompts, self._longest = prompt_mask.shape
        self._window = window
        gone = 0 if window is None else max(0, self._longest - window)  # columns that the last of a prompt cannot see
        self.start = 0 if even else gone
        """First column that the newest token sees, counted from the first of the prompts."""
        self.prompt_mask = _causal(prompt_mask, window) if padded or gone else None
        """[P, 1, S, S] bool for the prompts' own tokens; None where they see all before them."""
        hidden = ~prompt_mask[:, None, None]
        self.prompt_bias: Tensor | None = None
        """[P, heads, 1, S], minus infinity where the newest token cannot see a column behind ``start``."""
        if padded or (even and window is not None):
            if even:
                hidden = hidden | (torch.arange(self._longest, device=hidden.device) < gone)
            self.prompt_bias = torch.zeros(prompts, heads, 1, self._longest, dtype=dtype, device=hidden.device)
            self.prompt_bias.masked_fill_(hidden, -torch.inf)
        self.own_bias = torch.full((new_tokens,), -torch.inf, dtype=dtype, device=hidden.device) if even else None
        """[new tokens], likewise of the columns after the prompt; None where only those up to the newest are read."""

    def next_column(self, filled: int) -> None:
        """Go on to the token in column ``filled`` after the prompt."""
        if self.own_bias is not None:
            self.own_bias[filled] = 0
        leaving = -1 if self._window is None else self._longest + filled - self._window
        if leaving < 0:
            return
        if self.own_bias is None:
            self.start = leaving + 1
        elif leaving >= self._longest:
            self.own_bias[leaving - self._longest] = -torch.inf
        elif self.prompt_bias is not None:
            self.prompt_bias[..., leaving] = -torch.inf

    def keep(self, groups: Tensor) -> None:
        """Forget all prompts but these."""
        self.prompt_bias = None if self.prompt_bias is None else self.prompt_bias[groups]


def _reached(window: int | None, tokens: int) -> int | None:
    return window if window is not None and window < tokens else None


def _causal(prompt_mask: Tensor, window: int | None) -> Tensor:
    """Return [P, 1, S, S] bool; padding attends to itself, so that no row of a softmax is empty."""
    square = torch.ones(prompt_mask.shape[1], prompt_mask.shape[1], dtype=torch.bool, device=prompt_mask.device).tril()
    if window is not None:
        square = square.triu(1 - window)
    diagonal = torch.eye(prompt_mask.shape[1], dtype=torch.bool, device=prompt_mask.device)
    return ((square & prompt_mask[:, None, :]) | diagonal)[:, None]
