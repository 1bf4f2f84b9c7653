"""What the synthetic data is about, read from the YAML files in ``wording/``, which need no Python to edit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lit_debias.errors import UserError
from lit_debias.support.files import read_yaml
from lit_debias.synthetic.grammar import Grammar

PromptKind = Literal["open", "leading", "forced_choice", "control"]
PROMPT_KINDS: tuple[str, ...] = get_args(PromptKind)
WORDING = Path(__file__).parent / "wording"
FILES = ("groups", "themes", "scenarios", "prompts", "responses")


@dataclass(frozen=True)
class Group:
    """A group of people, and how a sentence names it."""

    id: str
    person: str
    """One member with the article: ``a person from Henan``."""
    people: str
    status: str
    pronoun: str | None = None
    """``he``, ``she`` or ``they`` where the group fixes it."""

    @property
    def bare(self) -> str:
        """One member without the article."""
        return self.person.partition(" ")[2]

    def named_in(self, text: str) -> bool:
        """Whether a text names the group or one of its members."""
        names = f"{re.escape(self.bare)}|{re.escape(self.people)}"
        return bool(re.search(rf"(?<!\w)(?:{names})(?!\w)", text, re.IGNORECASE))


@dataclass(frozen=True)
class Pair:
    """Two groups of one category; each is the counterfactual of the other."""

    category: str
    groups: tuple[Group, Group]
    held_out_group: bool
    held_out_category: bool
    stands_in_for: str | None = None
    """First group of the pair of this category whose prompts it gets a share of."""

    @property
    def id(self) -> str:
        """Name of the pair, unique over all categories."""
        return f"{self.category}/{self.groups[0].id}+{self.groups[1].id}"


@dataclass(frozen=True)
class Theme:
    """What a stereotype is about, with the wording of both valences."""

    id: str
    topic: str
    bad: list[str]
    good: list[str]
    bad_habit: list[str]
    good_habit: list[str]
    did_bad: list[str]
    did_good: list[str]
    evidence: list[str]
    asks: list[str]
    """Questions of a forced choice whose answer discredits somebody: ``Who {asks}?``."""
    asks_good: list[str]


@dataclass(frozen=True)
class Scenario:
    """Where somebody decides about somebody."""

    id: str
    decider: str
    role: str
    setting: str
    favour: str
    against: str
    policy: str
    rules: list[str]
    held_out: bool = False


@dataclass(frozen=True)
class Family:
    """A prompt template: several surface frames with one purpose."""

    id: str
    kind: PromptKind
    frames: list[str]
    held_out: bool = False
    harm: bool = False
    """Whether the premise asks for discrimination."""
    form: Literal["answer", "story"] = "answer"
    """What is asked for; a story has response frames of its own."""


@dataclass(frozen=True)
class Taxonomy:
    """Everything that ``wording/`` says."""

    pairs: list[Pair]
    themes: list[Theme]
    scenarios: list[Scenario]
    families: list[Family]
    prompts: Grammar
    responses: Grammar

    @property
    def categories(self) -> list[str]:
        """Categories in the order of the file."""
        return list(dict.fromkeys(pair.category for pair in self.pairs))

    def without_held_out(self, categories: Collection[str]) -> Taxonomy:
        """Return the taxonomy without those of the held-out categories that are named, as others train on them."""
        return replace(
            self, pairs=[pair for pair in self.pairs if not (pair.held_out_category and pair.category in categories)]
        )

    @classmethod
    def load(cls, folder: Path | None = None) -> Taxonomy:
        """Read the wording files of ``folder``, by default the package's own.

        Raises:
            UserError: a file is missing or is no YAML, an entry lacks a field or has an unknown one, or an id repeats.
        """
        folder = folder or WORDING
        content = {name: _read(folder / f"{name}.yaml") for name in FILES}
        prompts, responses = content["prompts"], content["responses"]
        try:
            taxonomy = cls(
                pairs=[pair for name, entry in content["groups"].items() for pair in _pairs(name, entry)],
                themes=[Theme(id=name, **entry) for name, entry in content["themes"].items()],
                scenarios=[Scenario(id=name, **entry) for name, entry in content["scenarios"].items()],
                families=[Family(id=name, **entry) for name, entry in prompts["families"].items()],
                prompts=Grammar(prompts["words"], {}),
                responses=Grammar(responses["words"], responses["frames"]),
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UserError(f"wording in {folder}: {error}; compare with the files in {WORDING}") from error
        taxonomy.check()
        return taxonomy

    def check(self) -> None:
        """Raise :class:`UserError` where an id repeats, a pair stands in for none, or a family has an unknown kind."""
        ids = [group.id for pair in self.pairs for group in pair.groups]
        repeated = sorted({name for name in ids if ids.count(name) > 1})
        if repeated:
            raise UserError(f"groups.yaml: the group '{repeated[0]}' appears twice; give each group its own id")
        regular = {(pair.category, pair.groups[0].id) for pair in self.pairs if not pair.stands_in_for}
        for pair in self.pairs:
            if pair.stands_in_for and (pair.category, pair.stands_in_for) not in regular:
                raise UserError(
                    f"groups.yaml: '{pair.id}' stands in for '{pair.stands_in_for}'; write the first group of another "
                    "pair of its category"
                )
        for family in self.families:
            if family.form not in ("answer", "story"):
                raise UserError(f"prompts.yaml: '{family.id}' has form '{family.form}'; write answer or story")
            if family.kind not in PROMPT_KINDS:
                raise UserError(f"prompts.yaml: '{family.id}' has kind '{family.kind}'; write one of {PROMPT_KINDS}")


def group_meanings() -> dict[str, str]:
    """Return id -> what it stands for, in words, of every group of the package's own wording."""
    known = _read(WORDING / "meanings.yaml")
    groups = [
        group
        for name, entry in _read(WORDING / "groups.yaml").items()
        for pair in _pairs(name, entry)
        for group in pair.groups
    ]
    return {group.id: known.get(group.id, group.people) for group in groups}


def _pairs(category: str, entry: Mapping[str, Any]) -> list[Pair]:
    pairs = []
    for item in entry["pairs"]:
        options = item if isinstance(item, dict) else {"groups": item}
        first, second = (Group(**group) for group in options["groups"])
        held_out = options.get("held_out", False) and not entry["held_out"]
        pairs.append(Pair(category, (first, second), held_out, entry["held_out"], options.get("stands_in_for")))
    return pairs


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"wording: there is no file {path}; copy it from {WORDING}")
    content = read_yaml(path, "wording")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping; compare with the file in {WORDING}")
    return content
