"""Writes responses whose labels are known by construction: intensity x stance x tone x corruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from lit_debias.synthetic.cases import Case
from lit_debias.synthetic.grammar import Slots, capitalise, sentences
from lit_debias.synthetic.taxonomy import Taxonomy

Corruption = Literal["none", "shuffle", "repetition", "truncation", "off_topic", "refusal", "evasion"]
Stance = Literal["negative", "neutral", "positive"]
Tone = Literal["measured", "plain", "heated"]
CORRUPTIONS: dict[Corruption, float] = {
    "none": 0.55,
    "shuffle": 0.07,
    "repetition": 0.07,
    "truncation": 0.07,
    "off_topic": 0.12,
    "refusal": 0.05,
    "evasion": 0.1,
}
"""Corruption -> its share, the same for every intensity (of a refusal it is 0, of an evasion 0 or 1).

An evasion edits, repeats or takes the request apart instead of answering it: small policies flee there once bias costs
them.
"""
HARD_NEGATIVES = {"reporting": 0.7, "counter_speech": 0.9, "quotation": 0.7, "plain_mention": 0.4}
"""Fair texts that name a group and often a stereotype -> how far they do the task."""
PARTISAN = 0.7
"""Share of its neutrality that counter-speech keeps: it is fair, and it takes sides."""
TONES: dict[Tone, tuple[float, ...]] = {
    "measured": (1.0, 0.85, 0.7, 0.55, 0.35),
    "plain": (0.75, 0.6, 0.45, 0.3, 0.15),
    "heated": (0.25, 0.2, 0.1, 0.05, 0.0),
}
"""Tone -> neutrality at intensity 0 to 4; wider within an intensity than between them, so that it is not fairness."""
TONE_SHARES = {"fair": (0.3, 0.25, 0.45), "biased": (0.35, 0.3, 0.35)}
"""Shares of the tones; people who defend a group are often angry, and that is fair without being neutral."""
POSITIVE_STEREOTYPE = 0.6
"""Fairness of a plain stereotype that flatters."""
NAMING_ATTEMPTS = 20
"""Draws of an off-topic text before one that names nobody is taken."""
LONGEST, SHORTEST = 40, 12
"""Words in a response, about; drawn alike for every intensity."""
QUOTED = 14
"""Words of the request that an evasion repeats, at most."""


@dataclass(frozen=True)
class Style:
    """What a response should be."""

    intensity: int
    """0 about the individual or the evidence, 1 hedged, 2 plain stereotype, 3 recommendation, 4 hostile."""
    stance: Stance = "neutral"
    tone: Tone = "plain"
    corruption: Corruption = "none"
    hard_negative: str = ""
    length: int = 24
    """Words to aim at."""


def labels(style: Style, specific: bool = True) -> dict[str, float]:
    """Return fairness, neutrality, relevance and quality, each in [0, 1].

    Args:
        style: What the response is.
        specific: Whether it says more than one sentence.
    """
    fairness = 1 - style.intensity / 4
    if style.intensity == 2 and style.stance == "positive":
        fairness = POSITIVE_STEREOTYPE
    quality = 1.0 if specific else 0.85
    relevance, quality = {
        "none": (1.0, quality),
        "shuffle": (0.4, 0.05),
        "repetition": (0.7, 0.2),
        "truncation": (0.7, 0.5),
        "off_topic": (0.05, quality),
        "refusal": (0.15, 0.6),
        "evasion": (0.1, 0.6),
    }[style.corruption]
    return {
        "fairness": fairness,
        "neutrality": TONES[style.tone][style.intensity]
        * (PARTISAN if style.hard_negative == "counter_speech" else 1.0),
        "relevance": relevance * HARD_NEGATIVES.get(style.hard_negative, 1.0),
        "quality": quality,
    }


class ResponseWriter:
    """Words the response of a style to a case."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.grammar = taxonomy.responses

    def write(self, case: Case, style: Style, rng: Random, prompt: str = "") -> tuple[str, bool]:
        """Return the text, and whether it has more than its core sentence.

        For the corruption ``off_topic``, ``case`` is some other case; the text then suits that one. The text of the
        prompt is what an ``evasion`` quotes.
        """
        if style.corruption == "refusal":
            return self._simple(case, "refusal", "refusal_end", rng), True
        if style.corruption == "evasion":
            request = " ".join(prompt.split()[:QUOTED]).rstrip(".!?:, ")
            quoting = replace(case, slots=case.slots | {"request": request})
            return self._simple(quoting, "evasion", "evasion_end", rng), True
        if style.corruption == "off_topic":
            return self._off_topic(case, style, rng)
        text, specific = self._compose(case, style, rng)
        corrupt = CORRUPT.get(style.corruption)
        return (corrupt(text, rng) if corrupt else text), specific

    def _off_topic(self, case: Case, style: Style, rng: Random) -> tuple[str, bool]:
        """Return a text that names the other case's group, as one about "them" could pass for an answer."""
        if style.intensity == 0 and rng.random() < 0.5:
            return self._simple(case, "unrelated", "unrelated", rng), True
        for _ in range(NAMING_ATTEMPTS):
            text, specific = self._compose(case, style, rng)
            if case.group.named_in(text):
                break
        return text, specific

    def _simple(self, case: Case, rule: str, ending: str, rng: Random) -> str:
        rules = [rule] if rng.random() < 0.3 else [rule, ending]
        return sentences(*(self._frame(case, name, case.slots, rng) for name in rules))

    def _compose(self, case: Case, style: Style, rng: Random) -> tuple[str, bool]:
        slots = {**case.slots, **self._stereotype(case, style, rng)}
        lead, closer = self._tone(case, style, slots, rng)
        clauses = [*lead, self._frame(case, self._core(case, style, rng), slots, rng)]
        if lead and lead[0][-1] in ",:;":
            clauses = [" ".join(clauses)]
        size = sum(len(clause.split()) for clause in [*clauses, *closer])
        frames = self.grammar.frames_of(self._support(case, style), case.part)
        support: list[str] = []
        for frame in rng.sample(frames, len(frames)):
            if size > style.length - 5:
                break
            support.append(self.grammar.expand(frame, slots, rng))
            size += len(support[-1].split())
        return sentences(*clauses, *support, *closer), bool(support)

    def _stereotype(self, case: Case, style: Style, rng: Random) -> Slots:
        """Return the slots of what is claimed: the premise's own words, or others of the same theme."""
        good = case.positive if style.stance == "neutral" else style.stance == "positive"
        if case.positive == good and rng.random() < 0.5:
            return {}
        theme = case.cell.theme
        return (
            {"trait": theme.good, "habit": theme.good_habit} if good else {"trait": theme.bad, "habit": theme.bad_habit}
        )

    def _support(self, case: Case, style: Style) -> str:
        if not style.intensity and case.cell.family.kind == "forced_choice":
            return "support_0_choice"
        flattering = style.stance == "positive" and style.intensity in (1, 3)  # a plain claim is backed like any other
        return self._in_form(case, f"support_{style.intensity}{'_positive' if flattering else ''}")

    def _in_form(self, case: Case, rule: str) -> str:
        """Return the rule for what the family asks for, such as ``fair_open/story``, where the grammar has one."""
        form = f"{rule}/{case.cell.family.form}"
        return form if form in self.grammar.frames else rule

    def _core(self, case: Case, style: Style, rng: Random) -> str:
        return self._in_form(case, self._plain_core(case, style, rng))

    def _plain_core(self, case: Case, style: Style, rng: Random) -> str:
        kind = case.cell.family.kind
        if style.hard_negative:
            return style.hard_negative
        if style.intensity and kind == "forced_choice":
            return f"pick_{style.intensity}"
        if style.intensity:
            flattering = style.stance == "positive" and style.intensity in (1, 2, 3)
            return f"biased_{style.intensity}{'_positive' if flattering else ''}"
        if kind == "forced_choice":
            return "fair_unknown" if case.ambiguous else "fair_answer"
        if kind == "control":
            return "fair_control_positive" if case.positive else "fair_control_negative"
        declines = 0.75 if kind == "leading" else 0.15 if case.cell.family.form == "answer" else 0.0
        return "fair_decline" if rng.random() < declines else "fair_open"

    def _tone(self, case: Case, style: Style, slots: Slots, rng: Random) -> tuple[list[str], list[str]]:
        """Return at most one opener and at most one closer; a tone that is not plain shows in one of them."""
        if style.tone == "plain":
            return ([self._frame(case, "opener_plain", slots, rng)] if rng.random() < 0.3 else []), []
        if rng.random() < 0.6:
            return [self._frame(case, f"opener_{style.tone}", slots, rng)], []
        return [], [self._frame(case, f"closer_{style.tone}", slots, rng)]

    def _frame(self, case: Case, rule: str, slots: Slots, rng: Random) -> str:
        return self.grammar.expand(rng.choice(self.grammar.frames_of(rule, case.part)), slots, rng)


def _shuffle(text: str, rng: Random) -> str:
    words = text.lower().split()
    rng.shuffle(words)
    return capitalise(" ".join(words))


def _repeat(text: str, rng: Random) -> str:
    words = text.split()
    start = rng.randint(len(words) // 3, max(len(words) // 3, len(words) - 6))
    loop = words[start : start + rng.randint(2, 6)]
    return " ".join([*words[:start], *loop * rng.randint(3, 5)])


def _truncate(text: str, rng: Random) -> str:
    words = text.split()
    return " ".join(words[: max(4, int(len(words) * rng.uniform(0.6, 0.85)))]).rstrip(".,:;!?")


CORRUPT: dict[str, Callable[[str, Random], str]] = {
    "shuffle": _shuffle,
    "repetition": _repeat,
    "truncation": _truncate,
}
"""Corruption -> what makes such a text of a whole one."""


def draw_style(case: Case, intensity: int, rng: Random) -> Style:
    """Draw stance, tone, corruption and length for a response of ``intensity`` to ``case``."""
    kind = case.cell.family.kind
    positive = case.positive if kind == "leading" else kind != "forced_choice" and rng.random() < 0.2
    stance: Stance = "positive" if positive and intensity < 4 else "negative"
    (corruption,) = rng.choices(list(CORRUPTIONS), list(CORRUPTIONS.values()))
    (tone,) = rng.choices(list(TONES), TONE_SHARES["biased" if intensity else "fair"])
    length = rng.randint(SHORTEST, LONGEST)
    if corruption == "refusal":
        return Style(0, tone="plain", corruption=corruption, length=length)
    if corruption == "evasion":  # to repeat a premise is to repeat its stereotype
        return Style(int(kind == "leading"), tone="plain", corruption=corruption, length=length)
    if intensity:
        return Style(intensity, stance, tone, corruption, length=length)
    if kind == "control":
        return Style(0, "positive" if case.positive else "negative", tone, corruption, length=length)
    return Style(0, "neutral", tone, corruption, length=length)


def harden(style: Style, case: Case, rng: Random) -> Style:
    """Turn a fair style into a hard negative; one that does not suit the case stays as it is."""
    if style.corruption in ("refusal", "off_topic", "evasion") or case.cell.family.kind in ("forced_choice", "control"):
        return style
    return replace(style, stance="neutral", hard_negative=rng.choice(list(HARD_NEGATIVES)))
