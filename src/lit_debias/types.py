"""The records that travel through one GRPO step.

Shapes: P prompts x G completions each x T completion tokens; S prompt tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_debias.conversations import PICTURES, Message, Prompt, in_parts

T = TypeVar("T")


@dataclass(frozen=True)
class PromptBatch:
    """P prompts as they come from the data, before the chat template and the tokenizer."""

    texts: list[str]
    """[P] the user's words; of a conversation of several turns, a line for each. What rewards and tables show."""
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    """Further columns of the data by name (``reference``, ``group``, ...), each [P]."""
    messages: list[list[Message]] | None = None
    """[P] the conversations, where the data has them instead of texts."""

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, which: slice) -> PromptBatch:
        """Return some of the prompts."""
        columns = {name: rows[which] for name, rows in self.columns.items()}
        return PromptBatch(self.texts[which], columns, None if self.messages is None else self.messages[which])

    def rows(self) -> list[dict[str, Any]]:
        """Return the prompts with their columns, a row each; of a conversation its text, and itself as ``messages``.

        Where it shows pictures, its contents are in parts, as data may have them.
        """
        shown = [[in_parts(m) if m.get(PICTURES) else m for m in prompt] for prompt in self.messages or ()]
        own: dict[str, list[Any]] = {"prompt": self.texts, **({"messages": shown} if shown else {})}
        columns = {**own, **self.columns, **own}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    @property
    def asked(self) -> Sequence[Prompt]:
        """[P] what is put to the model: conversations where there are some, texts elsewhere."""
        return self.texts if self.messages is None else self.messages

    def to(self, device: torch.device, **_: Any) -> PromptBatch:
        """Return itself, text has no device; Lightning asks every batch."""
        return self


@dataclass(frozen=True)
class PictureInputs:
    """What the pictures of one prompt are to a model that reads some."""

    tensors: Mapping[str, Tensor]
    """Arguments of its forward pass, such as ``pixel_values``, as its processor makes them of this prompt alone; on the
    CPU. Empty where the prompt has no picture."""
    placeholder: int
    """The token id that stands in the prompt wherever a part of a picture is put."""
    marks: list[str]
    """Arguments [1, L] int64 that are 1 on such a token of the prompt and 0 elsewhere."""

    def beside(self, ids: Tensor, prompt_tokens: int) -> dict[str, Tensor]:
        """Return the arguments beside the ids [L] of one sequence, on their device.

        Args:
            ids: The prompt, and what follows it.
            prompt_tokens: Of the prompt; a placeholder behind it, which a policy may have sampled, is text.
        """
        if not self.tensors:
            return {}
        marked = ids.eq(self.placeholder)
        marked[prompt_tokens:] = False
        moved = {name: tensor.to(ids.device) for name, tensor in self.tensors.items()}
        return moved | dict.fromkeys(self.marks, marked.long()[None])


@dataclass(frozen=True)
class Support:
    """The tokens that could be sampled in each place; every other one had probability 0 there.

    Each is an id of 4 bytes, whatever the vocabulary: top-k 50 takes 200 bytes for a sampled token, 3 MiB for 16,384 of
    them. (A bit for each of 262,144 entries would take 32 KiB, and 512 MiB.) Of SmolLM2-135M, top-p 0.9 keeps 89 on
    average, top-p 0.99 1,500, min-p 0.05 8; a top-k beside them is an upper bound.
    """

    ids: Tensor
    """[M] int32, token ids of all places."""
    starts: Tensor
    """[...] int64, where in ``ids`` those of a place begin."""
    counts: Tensor
    """[...] int64, how many they are; 0 where nothing was sampled."""

    def __getitem__(self, which: slice | Tensor) -> Support:
        """Return some of the places; the ids are shared."""
        return Support(self.ids, self.starts[which], self.counts[which])

    def entries(self) -> tuple[Tensor, Tensor]:
        """Return places [K] and token ids [K], both int64, of all the K pairs; places count in row-major order."""
        counts = self.counts.flatten()
        places = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        within = torch.arange(len(places), device=counts.device) - before[places]
        return places, self.ids[self.starts.flatten()[places] + within].long()


@dataclass(frozen=True)
class Rollout:
    """G sampled completions for each of P prompts. Tensors of one rollout share a device."""

    prompts: PromptBatch
    """P prompts."""
    prompt_ids: Tensor
    """[P, S] int64, left-padded, chat template applied."""
    prompt_mask: Tensor
    """[P, S] bool, True on real tokens."""
    completion_ids: Tensor
    """[P, G, T] int64, right-padded."""
    completion_mask: Tensor
    """[P, G, T] bool, True up to and including the token that ended the completion."""
    logprobs: Tensor
    """[P, G, T] float32, log-probabilities under the distribution that was sampled from; 0 where masked."""
    truncated: Tensor
    """[P, G] bool, True where the length limit ended the completion."""
    texts: list[list[str]]
    """[P][G] decoded completions without special tokens, cut before a stop string."""
    reference_logprobs: Tensor | None = None
    """[P, G, T] float32, log-probabilities under the frozen reference at temperature 1, where a reward needs them."""
    support: Support | None = None
    """[P, G, T], what top-k, top-p and min-p left to sample from; None where the whole vocabulary was. The update and
    the reference of its loss renormalise over it, as ``logprobs`` are."""
    pictures: list[PictureInputs] | None = None
    """[P] the pictures of each prompt; None where there are none."""

    @property
    def group_size(self) -> int:
        """G, the number of completions for each prompt."""
        return self.completion_ids.shape[1]

    @property
    def lengths(self) -> Tensor:
        """[P, G] int64, tokens of each completion, end-of-sequence token included."""
        return self.completion_mask.sum(-1)

    def group(self, number: int) -> Rollout:
        """Return the rollout of one of the prompts alone."""
        one = slice(number, number + 1)
        return replace(self, **{name: value[one] for name, value in _shallow(self).items() if value is not None})


@dataclass(frozen=True)
class Scores:
    """What the named rewards said about one rollout."""

    values: dict[str, Tensor]
    """Reward name -> [P, G] float32; 0 where the reward had no opinion."""
    valid: dict[str, Tensor]
    """Reward name -> [P, G] bool, False where the reward had no opinion."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Reward name -> wall-clock seconds spent."""
    failed: dict[str, Tensor] = field(default_factory=dict)
    """Guarded reward's name -> [P, G] bool, True where the reward has failed, so that its score is missing."""
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    """The prompts' columns of the data by name, each [P]."""

    def filled(self, name: str, missing: float = 0.0) -> Tensor:
        """Return a reward's [P, G] scores, with ``missing`` where it had no opinion, whatever else stands there."""
        return self.values[name].where(self.valid[name], missing)

    def of(self, prompt: int, member: int = 0) -> dict[str, float | None]:
        """Return reward name -> score of one completion, None where the reward had no opinion."""
        return {
            name: float(values[prompt, member]) if self.valid[name][prompt, member] else None
            for name, values in self.values.items()
        }


@dataclass
class Experience:
    """A scored rollout on its way through the inner epochs of the update."""

    rollout: Rollout
    scores: Scores
    advantages: Tensor
    """[P, G] float32."""
    loss_mask: Tensor
    """[P, G, T] bool, the tokens that count in the loss."""
    reference_logprobs: Tensor | None = None
    """[P, G, T] float32 at the sampling temperature; None where the KL coefficient is 0."""
    old_logprobs: Tensor | None = None
    """[P, G, T] float32, the policy before the first inner epoch; None until that epoch has run. Off-policy, what
    sampling recorded."""
    epochs_done: int = 0
    """Inner epochs that have ended with an optimiser step."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and tensors, as a weights-only checkpoint may hold them.

        Columns of the data stay out: the rewards have read them, and they may hold anything.
        """
        state = _shallow(self)
        support = self.rollout.support and _shallow(self.rollout.support)
        shown = self.rollout.pictures
        pictures = None if shown is None else [_shallow(one) for one in shown]
        plain = {"prompts": self.rollout.prompts.texts, "support": support, "pictures": pictures}
        state["rollout"] = _shallow(self.rollout) | plain
        state["scores"] = _shallow(replace(self.scores, columns={}))
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: torch.device) -> Experience:
        """Rebuild from :meth:`state_dict`, with tensors on ``device``."""
        state = _to(state, device)
        rollout = dict(state["rollout"])
        prompts, support = PromptBatch(rollout.pop("prompts")), rollout.pop("support", None)
        pictures = rollout.pop("pictures", None)
        rollout["support"] = support and Support(**support)
        rollout["pictures"] = pictures and [PictureInputs(**one) for one in pictures]
        return cls(**{**state, "rollout": Rollout(prompts, **rollout), "scores": Scores(**state["scores"])})


def own_copy(value: T) -> T:
    """Return a copy that shares nothing which can be changed in place; what cannot be copied is shared.

    Tensors are cloned without their graph. For code of others: what a plugin edits is its own copy.
    """
    copied: T = _copy(value)
    return copied


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (PromptBatch, Rollout, Scores)):
        return replace(value, **_copy(_shallow(value)))
    if type(value) is list:
        return [_copy(item) for item in value]
    if type(value) is dict:
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (str, int, float, type(None))):
        return value
    try:
        return deepcopy(value)
    except Exception:  # a cell of the data may be anything
        return value


def _shallow(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    return value
