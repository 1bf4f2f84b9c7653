"""A tokenizer's chat template: which one, its options, the form of contents that it reads, and its ids.

What a template does to messages is tried once, with messages that are easily found in what it writes: a template that
reads contents as parts gets parts, and one that loses what a message says is refused.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_debias.conversations import PICTURES, Message, in_parts, roles_of
from lit_debias.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INPUTS = ("chat_template", "tools", "documents")
"""Arguments of ``apply_chat_template`` that are a user's to give; the others say how it is called."""
SANITIZE = "sanitize_control_tokens"


class ChatTemplate:
    """Renders messages for one tokenizer, up to where the answer begins.

    Args:
        tokenizer: Has a template, or several by name; looked at whenever messages are rendered.
        source: The model's name, for errors.
        options: Variables of the template, such as ``enable_thinking``; ``chat_template`` names one of several
            templates, or is one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, source: str, options: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer, self.source, self.options = tokenizer, source, dict(options or {})
        self.added = tuple(t.content for t in tokenizer.added_tokens_decoder.values() if not t.content.isspace())
        self._takes_parts: dict[tuple[str, tuple[str, ...]], bool] = {}

    @property
    def text(self) -> str | None:
        """The template itself; None where there is none.

        Raises:
            UserError: there are several and no default, or none of the name.
        """
        known, name = self.tokenizer.chat_template, self.options.get("chat_template")
        if isinstance(known, dict):
            return self._among(known, name)
        if name is not None and "{" not in name:
            raise UserError(f"model '{self.source}' has no chat templates with names; leave chat_template '{name}' out")
        return name or (None if known is None else str(known))

    def _among(self, known: Mapping[str, str], name: str | None) -> str:
        if name is not None and "{" in name:
            return name
        if name is None and "default" not in known:
            raise UserError(
                f"model '{self.source}' has the chat templates {', '.join(sorted(known))}, and none is the default; "
                f"choose one: chat_template_kwargs: {{chat_template: {min(known)}}}"
            )
        if (name or "default") not in known:
            raise UserError(f"model '{self.source}' has no chat template '{name}'{did_you_mean(str(name), known)}")
        return known[name or "default"]

    # ---------------------------------------------------------------- options

    def unknown_options(self) -> list[str]:
        """Return the options that the template does not read."""
        template = self.text or ""
        return [
            name
            for name in sorted(self.options)
            if name != "chat_template" and not re.search(rf"\b{re.escape(name)}\b", template)
        ]

    def check_options(self) -> None:
        """Raise :class:`UserError` where an option means nothing to the template, or is not the user's to give."""
        if self.options and not self.text:
            raise UserError(f"model '{self.source}' has no chat template, so it takes no chat_template_kwargs")
        for name in self.unknown_options():
            raise UserError(
                f"chat_template_kwargs: the chat template of model '{self.source}' reads no '{name}'; leave it out"
            )

    # ---------------------------------------------------------------- ids

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of messages, up to where the answer begins.

        Only the template writes control tokens: in what a message says they are text.

        Raises:
            UserError: the template is malformed, refuses the messages, or loses one of them.
        """
        shaped = self._as_read(messages)
        if any(self.holds_added_token(message["content"]) for message in messages):
            return self._sanitized(shaped)
        return list(self.tokenizer.encode(self._render(shaped), add_special_tokens=False))

    def rendered(self, messages: Sequence[Message]) -> str:
        """Return the text that the template makes of messages, up to where the answer begins."""
        return self._render(self._as_read(messages))

    def _as_read(self, messages: Sequence[Message]) -> list[Message]:
        return self._shaped(messages, self._reads_parts(roles_of(messages)))

    def holds_added_token(self, text: str) -> bool:
        """Return whether a text holds the words of a control token, or of another token added to the vocabulary."""
        return any(words in text for words in self.added)

    def check(self, roles: Sequence[str]) -> None:
        """Raise :class:`UserError` where a conversation of these roles would not be rendered as written."""
        self._reads_parts(tuple(roles))

    def _reads_parts(self, roles: tuple[str, ...]) -> bool:
        """Return whether the template takes contents as parts, rather than as texts."""
        key = (self.text or "", roles)
        if key not in self._takes_parts:
            self._takes_parts[key] = self._try(roles)
        return self._takes_parts[key]

    def _try(self, roles: tuple[str, ...]) -> bool:
        messages = [{"role": role, "content": sample(number)} for number, role in enumerate(roles, 1)]
        failure, lost = None, ""
        for parts in (False, True):
            try:
                rendered = self._render(self._shaped(messages, parts))
            except UserError as error:
                failure = failure or error
                continue
            missing = [message["role"] for message in messages if not says(rendered, message["content"])]
            if not missing:
                return parts
            lost = lost or missing[0]
        if failure is not None and (not lost or "system" in roles):
            raise failure
        remedy = _without_system(roles) if lost == "system" else "write a model whose template has it"
        raise UserError(
            f"model '{self.source}': its chat template does not say what the message of the {lost} says; {remedy}"
        )

    @staticmethod
    def _shaped(messages: Sequence[Message], parts: bool) -> list[Message]:
        return [in_parts(message) if parts or message.get(PICTURES) else message for message in messages]

    def _render(self, messages: list[Message]) -> str:
        return str(self._apply(messages, tokenize=False))

    def _sanitized(self, messages: list[Message]) -> list[int]:
        if SANITIZE not in inspect.signature(self.tokenizer.apply_chat_template).parameters:
            raise UserError(
                "a prompt holds the text of a control token, which this version of transformers would take for one; "
                "pip install 'transformers>=5.23', or leave it out"
            )
        return list(self._apply(messages, return_dict=False, **{SANITIZE: True}))

    def _apply(self, messages: list[Message], **how: Any) -> Any:
        options = {**self.options, "chat_template": self.text}
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options, **how)
        except Exception as error:  # templates are programs: jinja's errors, and any that Python's operators raise
            reason = " ".join(str(error).split())
            remedy = _without_system(roles_of(messages))
            raise UserError(f"model '{self.source}': its chat template fails ({reason:.100}); {remedy}") from error


def check_reserved(options: Mapping[str, Any] | None) -> None:
    """Raise :class:`UserError` where ``chat_template_kwargs`` has a name that is an argument of the call."""
    from transformers import PreTrainedTokenizerBase

    taken = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"} - set(INPUTS)
    for name in sorted(taken & set(options or {})):
        raise UserError(f"chat_template_kwargs: '{name}' is no variable of a template; leave it out")


def sample(number: int) -> str:
    """Return what a message of a trial says: long, in mixed case, with what a careless template would change."""
    return f'Message{number} "a" <b> & é  c\nD. ' * 100 + "end"


def says(rendered: str, content: str) -> bool:
    """Return whether a content stands in a rendering as it is, or as a JSON string."""
    return content in rendered or json.dumps(content, ensure_ascii=False)[1:-1] in rendered


def _without_system(roles: Sequence[str]) -> str:
    if "system" not in roles:
        return "write conversations as it takes them, or another model" if len(roles) > 1 else "write another model"
    return "write system_prompt: null, or leave the system message of the data out"
