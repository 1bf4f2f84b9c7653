"""Prompts as data sets have them: a text, or a conversation of messages with role and content, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from lit_debias.errors import UserError, did_you_mean

Message: TypeAlias = dict[str, Any]
"""``role`` and ``content``, a text; what else a data set gives (``name``) is there for the template. A message that
shows pictures has them under :data:`PICTURES`."""
Prompt: TypeAlias = "str | list[Message]"
"""A text, which is one turn of the user, or the messages of a conversation whose last turn is the user's."""
ROLES = ("system", "user", "assistant")
PICTURES = "__pictures__"
"""Key of a message: a list of ``{"at": place in the content, "file": path, "name": as the data has it}``, as shown."""


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


def with_pictures(value: Any, files: Sequence[tuple[str, str]], where: str) -> list[Message]:
    """Return a prompt of the data as a conversation that shows pictures.

    They stand where the contents have parts ``{"type": "image"}``, in their order; where there are none, before the
    text of the last message.

    Args:
        value: As :func:`read_prompt` takes it.
        files: Names of the pictures in the data, and their paths, at least one.
        where: File, row and column, for errors.

    Raises:
        UserError: see :func:`read_prompt`; or there is not one picture for each part.
    """
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not is_conversation(messages):
        read_prompt(value, where)
    places = [_places(message) for message in messages]
    wanted = sum(map(len, places))
    if not wanted:
        places, wanted = [*places[:-1], [0] * len(files)], len(files)
    if wanted != len(files):
        raise UserError(f"{where} has {wanted} parts for images, and the row has {len(files)}; write one for each part")
    read, left = read_prompt([_text_alone(message) for message in messages], where), iter(files)
    shown = [[_picture(at, *next(left)) for at in of_message] for of_message in places]
    return [{**m, PICTURES: s} if s else m for m, s in zip(cast("list[Message]", read), shown, strict=True)]


def _picture(at: int, name: str, file: str) -> dict[str, Any]:
    return {"at": at, "file": file, "name": name}


def _places(message: Any) -> list[int]:
    """Return where in a message's joined text its parts for images stand."""
    content: Any = message.get("content") if isinstance(message, Mapping) else None
    if not is_conversation(content):
        return []
    places, length = [], 0
    for part in content:
        if _is_image(part):
            places.append(length)
        else:
            length += len(_text_of([part]) or "")
    return places


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"


def _text_alone(message: Any) -> Any:
    """Return a message without its parts for images."""
    if not isinstance(message, Mapping) or not is_conversation(message.get("content")):
        return message
    return {**message, "content": [part for part in message["content"] if not _is_image(part)]}


def files_in(prompt: Prompt) -> list[str]:
    """Return the paths of the pictures that a prompt shows, in their order."""
    return [str(picture["file"]) for picture in _pictures_in(prompt)]


def pictures_named(prompt: Prompt) -> str:
    """Return the names of the pictures that a prompt shows; empty where it shows none."""
    return ", ".join(str(picture["name"]) for picture in _pictures_in(prompt))


def _pictures_in(prompt: Prompt) -> list[dict[str, Any]]:
    messages = [] if isinstance(prompt, str) else prompt
    return [picture for message in messages for picture in message.get(PICTURES) or ()]


def without_pictures(prompt: Prompt) -> Prompt:
    """Return what a prompt says, for a model that reads texts alone."""
    if isinstance(prompt, str):
        return prompt
    return [{name: value for name, value in message.items() if name != PICTURES} for message in prompt]


def in_parts(message: Message) -> Message:
    """Return a message with its content in parts of text and of images, as chat templates take it."""
    text, parts, done = message["content"], [], 0
    for picture in message.get(PICTURES) or ():
        if picture["at"] > done:
            parts.append({"type": "text", "text": text[done : picture["at"]]})
        parts.append({"type": "image"})
        done = picture["at"]
    parts += [{"type": "text", "text": text[done:]}] if text[done:] else []
    return {**{name: value for name, value in message.items() if name != PICTURES}, "content": parts}


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping) or message.get("role") is None or "content" not in message:
        raise UserError(f"{where} is {message!r:.60}; write an object with role and content")
    role, content = message["role"], _text_of(message["content"])
    if role not in ROLES:
        raise UserError(f"{where}: the role is {role!r:.40}{did_you_mean(str(role), ROLES)}")
    if content is None or not content.strip():
        shown = any(map(_is_image, message["content"])) if is_conversation(message["content"]) else False
        beside = ", and pictures beside it by images: {column: NAME}" if shown else ""
        raise UserError(f"{where}: the content is {message['content']!r:.60}; write a text{beside}")
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
