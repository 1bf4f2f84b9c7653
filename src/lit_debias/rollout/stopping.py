"""Where a completion ends besides the end-of-sequence token: at a string of its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lit_debias.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNREADABLE = "\ufffd"
"""What stands in a text for bytes that are no whole character, or not yet."""
MARGIN = 8
"""Characters before a string that may look different where decoding begins there, such as a space that is left out."""


class StopStrings:
    """Strings that end a completion on the token that completes one, wherever they begin and end in tokens.

    Args:
        strings: None of them empty.
        text_of: Returns the text of token ids [L], as rewards get it.
    """

    def __init__(self, strings: Sequence[str], text_of: Callable[[Tensor], str]) -> None:
        self.strings, self.text_of = tuple(strings), text_of
        self._longest = max(map(len, self.strings))

    def complete(self, ids: Tensor) -> bool:
        """Return whether one of the strings is in the text of token ids [L], of which all but the last had none.

        Reads as many of the last tokens as such a string can reach back, and all of them only where one is there.
        """
        return self._any_in(self._tail(ids)) and self._any_in(self.text_of(ids))

    def cut(self, text: str) -> str:
        """Return the text before the string that is completed first; the longest of those that end in one place."""
        ends = [(text.find(string) + len(string), text.find(string)) for string in self.strings if string in text]
        return text[: min(ends)[1]] if ends else text

    def _any_in(self, text: str) -> bool:
        return any(string in text for string in self.strings)

    def _tail(self, ids: Tensor) -> str:
        """Return the end of the text, long enough to hold a string that the last token completes."""
        wanted = self._longest + MARGIN
        tokens, characters = wanted, wanted + len(self.text_of(ids[-1:]))
        text = self.text_of(ids[-tokens:])
        # Special tokens have no text, and several tokens may make one character, whose last ones alone are unreadable.
        while tokens < len(ids) and len(text.lstrip(UNREADABLE)) < characters:
            tokens *= 2
            text = self.text_of(ids[-tokens:])
        return text


def check_stops(stop: Sequence[str]) -> None:
    """Raise :class:`UserError` where no text can hold one of the strings, or all do."""
    if isinstance(stop, str):
        raise UserError(f"engine: stop={stop!r} is one string; write a list: [{stop!r}]")
    for string in stop:
        if not isinstance(string, str) or not string or UNREADABLE in string:
            raise UserError(f"engine: stop has {string!r}; write strings of at least one readable character")


def ending_tokens(stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of those strings that are special tokens, which texts leave out.

    Raises:
        UserError: a string has a special token and more in it, so that no text ever holds it.
    """
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for string in stop:
        inside = [token for token in special if token in string and token != string]
        if inside and string not in special:
            raise UserError(
                f"engine: stop {string!r} has the special token '{inside[0]}' in it, which texts leave out; "
                "write the special token alone, or text alone"
            )
    return tuple(special[string] for string in stop if string in special)
