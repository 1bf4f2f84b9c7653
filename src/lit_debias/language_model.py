"""A frozen language model that reads completions after their prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_debias.base_weights import check_codes
from lit_debias.models import first_token, load_causal_lm, load_tokenizer, render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LanguageModel:
    """A causal language model that says how likely completions are.

    Args:
        source: Local folder, ``pkg://PACKAGE/FILE.gguf``, or hub id.
        batch_size: Completions in one forward pass.
        dtype: Type of the weights and of the computation; by default bf16 on a GPU and fp32 elsewhere.
        separator: For a model without chat template: stands between prompt and completion, and the BOS token (or EOS)
            before them. By default the completion follows a prompt as the tokenizer encodes it.
    """

    def __init__(
        self, source: str, batch_size: int, dtype: torch.dtype | None = None, separator: str | None = None
    ) -> None:
        self.source = source
        self.batch_size = batch_size
        self.dtype = dtype
        self.separator = separator
        self._lm: PreTrainedModel | None = None

    def load(self, device: torch.device) -> None:
        """Load onto ``device``; does nothing when the model is there.

        Raises:
            UserError: there is no such model, it cannot be reached, or its weights are codes that would be read as
                numbers.
        """
        if self._lm is not None:
            return
        dtype = self.dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.source)
        self._lm = load_causal_lm(self.source, dtype=dtype, device_map={"": device})
        check_codes(self.source)

    def read(self, prompts: list[str], completions: list[str]) -> tuple[list[list[int]], list[Tensor]]:
        """Return token ids [N] of [T_i] and their log-probabilities [N] of [T_i] float32 on the CPU."""
        contexts = [self._prompt_ids(prompt) for prompt in prompts]
        ids = [list(self._tokenizer.encode(text, add_special_tokens=False)) for text in completions]
        logprobs: dict[int, Tensor] = {}
        by_length = sorted(range(len(ids)), key=lambda row: len(contexts[row]) + len(ids[row]))  # pads little
        for start in range(0, len(ids), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            logprobs |= zip(rows, self._forward([contexts[r] for r in rows], [ids[r] for r in rows]), strict=True)
        return ids, [logprobs[row] for row in range(len(ids))]

    def _prompt_ids(self, prompt: str) -> list[int]:
        if not self._tokenizer.chat_template:
            if self.separator is None:
                return list(self._tokenizer.encode(prompt)) or [self._tokenizer.eos_token_id]  # what predicts the first
            text = self._tokenizer.encode(prompt + self.separator, add_special_tokens=False)
            return [first_token(self._tokenizer), *text]
        rendered = render_chat(self._tokenizer, self.source, prompt)
        return list(self._tokenizer.encode(rendered, add_special_tokens=False))

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
