"""A frozen language model that reads completions after their prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_debias.conversations import Prompt, is_conversation, without_pictures, words_of
from lit_debias.models.base_weights import check_codes
from lit_debias.models.chat import check_reserved
from lit_debias.models.loading import load_causal_lm, load_tokenizer
from lit_debias.models.positions import check_fits, positions_held
from lit_debias.models.probing.probe import Probe
from lit_debias.models.probing.ways import MOST, check_causal, read
from lit_debias.models.prompt_encoder import PromptEncoder, embeddings_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


class LanguageModel:
    """A causal language model that says how likely completions are.

    Args:
        source: Local folder, ``pkg://PACKAGE/FILE.gguf``, or hub id.
        batch_size: Completions in one forward pass.
        dtype: Type of the weights and of the computation; by default bf16 on a GPU and fp32 elsewhere.
        separator: For a model without chat template: stands between prompt and completion, and the BOS token (or EOS)
            before them. By default the completion follows a prompt as the tokenizer encodes it.
        chat_template_kwargs: Variables of its chat template; those that it does not read are left out, with a warning.

    Raises:
        UserError: ``chat_template_kwargs`` has a name that is no variable's.
    """

    def __init__(
        self,
        source: str,
        batch_size: int,
        dtype: torch.dtype | None = None,
        separator: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        check_reserved(chat_template_kwargs)
        self.source = source
        self.batch_size = batch_size
        self.dtype = dtype
        self.separator = separator
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self._lm: PreTrainedModel | None = None

    def load(self, device: torch.device) -> None:
        """Load onto ``device``; does nothing when the model is there.

        Raises:
            UserError: there is no such model, it cannot be reached, its weights are codes that would be read as
                numbers, it is no causal model, or its chat template loses a prompt.
        """
        if self._lm is not None:
            return
        dtype = self.dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self._encoder = self._new_encoder()
        self._lm = load_causal_lm(self.source, dtype=dtype, device_map={"": device})
        check_codes(self.source)
        self._encoder.embeddings, self._positions = embeddings_of(self._lm), positions_held(self._lm)
        tokens = Probe.shortest(self._lm, self._encoder.tokenizer)
        half = len(tokens) // 2
        whole, part = read(self._lm, tokens, self.source), read(self._lm, tokens[:half], self.source)
        check_causal(whole[:half], part, MOST, self.source)

    def _new_encoder(self) -> PromptEncoder:
        encoder = PromptEncoder(load_tokenizer(self.source), self.source, self.chat_template_kwargs)
        for name in encoder.chat.unknown_options():
            del encoder.chat.options[name]
            _log.warning("model '%s' reads completions, and its chat template knows no '%s'", self.source, name)
        encoder.check(None)
        return encoder

    def check_fits(self, prompts: Sequence[Prompt], new_tokens: int) -> None:
        """Check that prompts and completions of so many tokens fit into the model's table of positions, if it has one.

        Raises:
            UserError: they do not.
        """
        if self._positions is not None:
            for prompt in prompts:
                self._check(len(self._prompt_ids(prompt)) + new_tokens)

    def _check(self, tokens: int) -> None:
        check_fits(tokens, self._positions, self.source, "write another model to read completions, or shorten them")

    def read(self, prompts: Sequence[Prompt], completions: list[str]) -> tuple[list[list[int]], list[Tensor]]:
        """Return token ids [N] of [T_i] and their log-probabilities [N] of [T_i] float32 on the CPU.

        Raises:
            UserError: a token has no embedding or position, or a conversation meets a chat template that refuses it.
        """
        contexts = [self._prompt_ids(prompt) for prompt in prompts]
        ids = [self._encoder.text(text) for text in completions]
        for context, completion in zip(contexts, ids, strict=True):
            self._check(len(context) + len(completion))
        logprobs: dict[int, Tensor] = {}
        by_length = sorted(range(len(ids)), key=lambda row: len(contexts[row]) + len(ids[row]))  # pads little
        for start in range(0, len(ids), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            logprobs |= zip(rows, self._forward([contexts[r] for r in rows], [ids[r] for r in rows]), strict=True)
        return ids, [logprobs[row] for row in range(len(ids))]

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if self._encoder.has_template:
            return self._encoder.prompt(without_pictures(prompt))
        text = words_of(prompt) if is_conversation(prompt) else str(prompt)
        if self.separator is None:
            return self._encoder.prompt(text) or [self._encoder.first()]  # what predicts the first
        return [self._encoder.first(), *self._encoder.text(text + self.separator)]

    @torch.inference_mode()
    def _forward(self, contexts: list[list[int]], completions: list[list[int]]) -> list[Tensor]:
        assert self._lm is not None, "call load() first"
        rows = [torch.tensor(context + completion) for context, completion in zip(contexts, completions, strict=True)]
        # right padding: what follows a token cannot change it, so no mask and no position ids are needed
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._lm.device)
        first = min(len(context) for context in contexts)
        logits = self._lm(input_ids=padded, use_cache=False, logits_to_keep=padded.shape[1] - first + 1).logits
        offset = first - 1
        return [
            _selected(logits[i, len(context) - 1 - offset :], completion)
            for i, (context, completion) in enumerate(zip(contexts, completions, strict=True))
        ]


def _selected(logits: Tensor, ids: list[int]) -> Tensor:
    """Return log-probabilities [T] float32 of ``ids`` [T] under logits [>= T, V]."""
    log_softmax = logits[: len(ids)].float().log_softmax(-1)
    return log_softmax.gather(-1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].cpu()
