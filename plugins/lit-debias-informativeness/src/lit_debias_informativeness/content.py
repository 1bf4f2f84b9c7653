"""The content words of a text: no function words, one form of each word."""

from __future__ import annotations

from collections.abc import Collection

from snowballstemmer import algorithms, stemmer

from lit_debias.plugins import APOSTROPHE, UserError, did_you_mean, words

# Lists made for search engines also hold words of content, such as "computer", "work" or "different".
FUNCTION_WORDS = frozenset(
    words("""
    a an the this that these those each every either neither some any no all both such same other another own much
    many more most few less least several enough i me my mine myself you your yours yourself yourselves he him his
    himself she her hers herself it its itself we us our ours ourselves they them their theirs themselves one ones
    oneself who whom whose which what whoever whatever someone somebody something anyone anybody anything everyone
    everybody everything nobody nothing none there here am is are was were be been being do does did doing done have
    has had having will would shall should can could may might must ought cannot i'm you're he's she's it's we're
    they're that's there's what's who's let's i've you've we've they've i'd you'd he'd she'd we'd they'd i'll you'll
    he'll she'll we'll they'll isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't won't wouldn't
    shouldn't can't couldn't mustn't not nor of in on at by to from for with without within about against between
    among into onto through during before after above below over under up down out off near since until till upon
    toward towards per via along across behind beside besides beyond and or but if because as while although though
    unless whether than then so thus hence when where why how again once only just also too very even still yet ever
    never always
    """)
)
"""English words that carry grammar rather than content."""


class ContentWords:
    """Finds the content words of texts in one language.

    Args:
        language: Name of a Snowball stemmer.
        stop_words: Words without content; by default :data:`FUNCTION_WORDS`, which are English.

    Raises:
        UserError: there is no such stemmer, or the language is not English and its stop words are not given.
    """

    def __init__(self, language: str, stop_words: Collection[str] | None = None) -> None:
        if language not in algorithms():
            raise UserError(f"Informativeness: language '{language}' is unknown{did_you_mean(language, algorithms())}")
        if stop_words is None and language != "english":
            raise UserError(f"Informativeness: no stop words for {language} come with it; write them as stop_words")
        self.language = language
        self.stop_words = FUNCTION_WORDS if stop_words is None else frozenset(map(str.lower, stop_words))

    def __call__(self, text: str) -> set[str]:
        """Return the stems of a text's words, without stop words."""
        found = [word for word in words(text.replace(APOSTROPHE, "'")) if word not in self.stop_words]
        return set(stemmer(self.language).stemWords(found))

    def coverage(self, text: str, reference: str) -> float | None:
        """Return the share of the reference's content words that the text holds, in [0, 1]; None where it has none."""
        wanted = self(reference)
        return len(wanted & self(text)) / len(wanted) if wanted else None
