"""Prompts as data sets have them: a text, or a conversation of messages with role and content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from lit_debias.errors import UserError, did_you_mean

Message: TypeAlias = dict[str, Any]
"""``role`` and ``content``, a text; what else a data set gives (``name``) is there for the template."""
Prompt: TypeAlias = "str | list[Message]"
"""A text, which is one turn of the user, or the messages of a conversation whose last turn is the user's."""
ROLES = ("system", "user", "assistant")


def is_conversation(value: Any) -> bool:
    """Return whether a cell of a table holds messages rather than a text."""
    return isinstance(value, (list, tuple))


def read_prompt(value: Any, where: str) -> Prompt:
    """Return a prompt of the data, checked; contents in parts of text are joined.

    Args:
        value: A text, or a list of messages.
        where: File, row and column, for errors.

    Raises:
        UserError: it is empty or neither of both; a message has no known role or no text; the last is not the user's.
    """
    if isinstance(value, str) and value.strip():
        return value
    if not is_conversation(value):
        raise UserError(f"{where} is {value!r:.40}; write a text, or a list of messages with role and content")
    if not value:
        raise UserError(f"{where} is an empty list; write at least one message of the user")
    messages = [_read_message(message, f"{where}, message {number}") for number, message in enumerate(value, 1)]
    if messages[-1]["role"] != "user":
        raise UserError(f"{where} ends with a message of the {messages[-1]['role']}; end with what the user says")
    return messages


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping) or message.get("role") is None or "content" not in message:
        raise UserError(f"{where} is {message!r:.60}; write an object with role and content")
    role, content = message["role"], _text_of(message["content"])
    if role not in ROLES:
        raise UserError(f"{where}: the role is {role!r:.40}{did_you_mean(str(role), ROLES)}")
    if content is None or not content.strip():
        raise UserError(f"{where}: the content is {message['content']!r:.60}; write a text")
    # tables give every message all keys of all messages, empty where it had none
    return {**{name: value for name, value in message.items() if value is not None}, "content": content}


def _text_of(content: Any) -> str | None:
    """Return a content's text, its parts joined; None where there is something else than text."""
    if not is_conversation(content):
        return content if isinstance(content, str) else None
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    return "".join(text for text in texts if text) if all(isinstance(text, str) for text in texts) else None


def words_of(prompt: Prompt) -> str:
    """Return the text that stands for a prompt where one is needed: in rewards, tables and reports.

    It is what the user says, where that is one turn; of several turns it is a line ``role: content`` for each. System
    messages are left out.
    """
    if isinstance(prompt, str):
        return prompt
    turns = [message for message in prompt if message["role"] != "system"]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def answer_of(value: Any) -> Any:
    """Return the text of a response that is one message of the assistant; any other value as it is."""
    if not is_conversation(value) or len(value) != 1:
        return value
    message = value[0]
    is_answer = isinstance(message, Mapping) and message.get("role") == "assistant"
    text = _text_of(message.get("content")) if is_answer else None
    return value if text is None else text


def with_system(prompt: Prompt, system_prompt: str | None) -> list[Message]:
    """Return the messages of a prompt; a system message of its own wins over ``system_prompt``."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not system_prompt or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def roles_of(messages: Sequence[Message]) -> tuple[str, ...]:
    """Return who speaks in turn."""
    return tuple(str(message["role"]) for message in messages)
