"""What an author is asked to write: a response of a known style to a prompt, put into plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from lit_debias.support.hashing import sha256
from lit_debias.synthetic.responses import TONE_SHARES, TONES, Stance, Style, labels

KINDS = ("open", "leading", "control")
"""Kinds of prompts that are used; a forced choice wants one of its options and no free text."""
FLATTERING_SHARE = 0.2
"""Share of the stereotypes that flatter."""
INTENSITIES = {
    0: "speaks about individuals and evidence, and makes no claim about {people} as a group",
    1: "hints at a generalisation about {people} and hedges it with words like perhaps, some or sometimes",
    2: "states a stereotype about {people} as a plain fact",
    3: "recommends to treat {people} worse than others because of a stereotype",
    4: "is hostile and contemptuous towards {people}, without slurs, threats or calls for violence",
}
FLATTERY = "states a flattering stereotype about {people} as a plain fact"
MANNERS = {
    "measured": "calm; it weighs its words and admits that there are other views",
    "plain": "matter-of-fact",
    "heated": "angry, with exclamation marks",
}
INSTRUCTION = """You help to build a data set that teaches a classifier to recognise discrimination. Nothing that you \
write is taken for true.

Somebody writes: "{prompt}"

Write one reply of {words} words, in natural English, that {content}. Its tone is {manner}. Name no real person. \
Answer with the reply alone."""


@dataclass(frozen=True)
class Assignment:
    """One response to be written."""

    prompt: Mapping[str, Any]
    """The row of the prompt."""
    style: Style
    instruction: str
    """What the author is told."""

    def key(self, author: Mapping[str, Any]) -> str:
        """Return what identifies the answer that ``author`` gives to this, so that nothing is asked twice."""
        return key_of(author, self.instruction)

    def record(self, text: str) -> dict[str, Any]:
        """Return the answer as a row of the responses."""
        about = ("category", "group", "theme", "scenario", "template_id", "prompt_kind", "split", "prompt_id", "prompt")
        return {
            "response_id": f"{self.prompt['prompt_id']}w{self.style.intensity}",
            "response": text,
            **{name: self.prompt[name] for name in about},
            "intensity": self.style.intensity,
            "stance": self.style.stance,
            "corruption": "none",
            "hard_negative": "",
            **labels(self.style),
        }


def key_of(author: Mapping[str, Any], instruction: str) -> str:
    """Return what identifies the answer that ``author`` gives to an instruction."""
    return sha256([json.dumps([author, instruction], sort_keys=True)])


def assign(
    prompts: Sequence[Mapping[str, Any]],
    people: Mapping[str, str],
    intensities: Sequence[int],
    limit: int | None,
    seed: int,
) -> list[Assignment]:
    """Return an assignment per prompt and intensity.

    Args:
        prompts: Rows of prompts.
        people: Group -> how a sentence names it; a group that is missing is named by its id.
        intensities: Of 0 to 4.
        limit: Use a seeded choice of so many prompts.
        seed: Draws prompts, tones, stances and lengths, each a function of the prompt alone.
    """
    usable = [row for row in prompts if row["prompt_kind"] in KINDS]
    chosen = sorted(Random(seed).sample(range(len(usable)), min(limit or len(usable), len(usable))))
    return [_assignment(usable[index], people, level, seed) for index in chosen for level in intensities]


def _assignment(row: Mapping[str, Any], people: Mapping[str, str], intensity: int, seed: int) -> Assignment:
    rng = Random(f"{seed}/{row['prompt_id']}/{intensity}")
    (tone,) = rng.choices(list(TONES), TONE_SHARES["biased" if intensity else "fair"])
    flatters = intensity == 2 and row["prompt_kind"] == "open" and rng.random() < FLATTERING_SHARE
    stance: Stance = "neutral" if not intensity else "positive" if flatters else "negative"
    shortest = rng.randint(10, 25)
    instruction = INSTRUCTION.format(
        prompt=row["prompt"],
        words=f"{shortest} to {shortest + 15}",
        content=(FLATTERY if flatters else INTENSITIES[intensity]).format(
            people=people.get(row["group"], row["group"])
        ),
        manner=MANNERS[tone],
    )
    return Assignment(row, Style(intensity, stance, tone), instruction)
