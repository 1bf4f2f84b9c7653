"""What a model is asked, and what it might answer, as token ids that it has an embedding for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_debias.conversations import Prompt, is_conversation, roles_of, with_system
from lit_debias.errors import UserError
from lit_debias.models.chat import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PromptEncoder:
    """Turns prompts and texts into token ids.

    Args:
        tokenizer: Of the model.
        source: The model's name, for errors.
        chat_template_kwargs: Variables of its chat template.
        embeddings: Rows of the model's embedding, or of its output layer where that has fewer; None for no limit.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        source: str,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        embeddings: int | None = None,
    ) -> None:
        self.tokenizer, self.source, self.embeddings = tokenizer, source, embeddings
        self.chat = ChatTemplate(tokenizer, source, chat_template_kwargs)

    @property
    def has_template(self) -> bool:
        """Whether prompts go through a chat template."""
        return bool(self.chat.text)

    def check(self, system_prompt: str | None) -> None:
        """Check what does not depend on the data: template, its variables, and the system prompt.

        Raises:
            UserError: the template would not say what a prompt says.
        """
        self.chat.check_options()
        if self.has_template:
            self.chat.check(roles_of(with_system("", system_prompt)))
        elif system_prompt:
            raise UserError(f"policy: model '{self.source}' has no chat template, so it takes no system_prompt")

    def why_no_system(self, system_prompt: str) -> str | None:
        """Return what keeps the model from being asked with a system message, or None where nothing does."""
        if not self.has_template:
            return "the model has no chat template"
        try:
            self.check(system_prompt)
        except UserError:
            return "the model's chat template takes no system message"
        return None

    def prompt(self, prompt: Prompt, system_prompt: str | None = None) -> list[int]:
        """Return the ids of a prompt, in the chat template if there is one.

        Without a template a text begins as the tokenizer begins it, and ends with its own last token: no
        end-of-sequence token is appended.

        Raises:
            UserError: the template fails, there is none for a conversation, or a token has no embedding.
        """
        if self.has_template:
            ids = self.chat.ids(with_system(prompt, system_prompt))
        elif is_conversation(prompt):
            raise UserError(
                f"model '{self.source}' has no chat template, so it takes no conversations; write texts as prompts, or "
                "give it a template: chat_template_kwargs: {chat_template: '...'}"
            )
        else:
            ids = self._encode(str(prompt), add_special_tokens=True)
            ids = ids[: len(ids) - self._appended]
        return self.known(ids, str(prompt))

    def text(self, text: str) -> list[int]:
        """Return the ids of a text alone: no control tokens, whatever it says.

        Raises:
            UserError: a token has no embedding, or the tokenizer makes a control token of text.
        """
        return self.known(self._encode(text, add_special_tokens=False), text)

    def first(self) -> int:
        """Return what a text without chat template begins with: the BOS token, or EOS where there is none.

        Raises:
            UserError: there is neither.
        """
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is None and eos is None:
            raise UserError(
                f"model '{self.source}': its tokenizer has neither a begin- nor an end-of-sequence token, so nothing "
                'stands before a text\'s first token; name one in its tokenizer_config.json: "bos_token": "..."'
            )
        return self.known([int(eos if bos is None else bos)], "")[0]

    @property
    def pad_id(self) -> int:
        """What fills a row up. It is masked everywhere, so any id will do that the model has an embedding for."""
        own = int(self.tokenizer.pad_token_id or 0)
        return own if self.embeddings is None or own < self.embeddings else 0

    def known(self, ids: list[int], text: str) -> list[int]:
        """Return the ids.

        Raises:
            UserError: the model has no embedding for one of them.
        """
        if self.embeddings is not None and ids and max(ids) >= self.embeddings:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"model '{self.source}' has {self.embeddings} embeddings and none for the token {token!r} of its "
                f"tokenizer, id {max(ids)}, which {text!r:.60} needs; leave it out, or write a model that has it"
            )
        return ids

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if not self.chat.holds_added_token(text):
            return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))
        own = set(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        for number, token in self.tokenizer.added_tokens_decoder.items():
            if token.special and number in own and token.content in text:
                raise UserError(
                    f"model '{self.source}': its tokenizer makes a control token of the text {token.content!r} in "
                    f"{text!r:.60}; leave it out"
                )
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=True))

    @cached_property
    def _appended(self) -> int:
        """How many tokens the tokenizer puts after a text."""
        for text in ("a", "the", *list(self.tokenizer.get_vocab())[:100]):
            own = self.tokenizer.encode(text, add_special_tokens=False)
            whole = self.tokenizer.encode(text)
            for start in range(len(whole) - len(own) + 1):
                if own and whole[start : start + len(own)] == own:
                    return len(whole) - start - len(own)
        return 0


def embeddings_of(model: PreTrainedModel) -> int:
    """Return for how many token ids a model has both an embedding and a logit."""
    layers: Sequence[Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(int(layer.weight.shape[0]) for layer in layers if layer is not None)
