"""CEB's continuation and conversation (arXiv 2407.02408), judged by the judges of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lit_debias.benchmark import Benchmark, ClusterBootstrap, Estimates, Figure, Model, answered, within
from lit_debias.plugins import UserError, is_refusal
from lit_debias_scenarios.ceb_files import Row, check_files, read_rows

TASKS = ("continuation", "conversation")


class Written(NamedTuple):
    """An answer, and what the judges say of it."""

    refused: bool
    intensity: Mapping[str, float | None]
    """Judge -> 1 - its score, so 0 is fair; None where it has no opinion."""


class CebWriting(Benchmark[Row, Written]):
    """CEB's continuation and conversation, from its files in the user's folder. The judges are not CEB's.

    The model writes at temperature 0.8, as in CEB. There, GPT-4 scores stereotypes and Perspective toxicity; here the
    judges of the evaluation say how biased a text is, so no figure compares with the paper's.

    Args:
        tasks: Some of continuation and conversation.
        max_new_tokens: Longest answer; CEB has 512.
        temperature: Of sampling.
        seed: Of sampling.

    Raises:
        UserError: there is no such task, no token, or the temperature is below 0.
    """

    name = "ceb_writing"
    title = "CEB, written (not CEB's judge)"
    meaning = "CEB's continuation and conversation tasks (Wang et al. 2024), judged by the judges of this evaluation."
    about: Mapping[str, Figure] = {
        "intensity": Figure("bias intensity of what is answered, not CEB's judge", "lower", 0.0),
        "rta": Figure("refused to answer", ""),
    }

    def __init__(
        self,
        tasks: Sequence[str] = TASKS,
        max_new_tokens: int = 512,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> None:
        if not tasks or set(tasks) - set(TASKS) or max_new_tokens < 1 or temperature < 0:
            raise UserError(
                f"CebWriting: tasks={list(tasks)}, max_new_tokens={max_new_tokens}, temperature={temperature}; write "
                f"some of {', '.join(TASKS)}, 1 or more, and 0 or more"
            )
        self.tasks, self.max_new_tokens = tuple(tasks), max_new_tokens
        self.temperature, self.seed = temperature, seed

    def check(self, folder: str) -> None:
        """Raise :class:`~lit_debias.plugins.UserError` where a task has no file."""
        check_files(folder, self.tasks)

    def read(self, folder: str) -> list[Row]:
        """Return the rows of all files that are there."""
        return list(read_rows(folder, self.tasks))

    def ask(self, model: Model, items: Sequence[Row]) -> list[Written]:
        """Return whether each answer refuses, and what the judges say."""
        prompts = [item.prompt for item in items]
        written = model.texts(prompts, 1, self.temperature, self.seed, self.max_new_tokens)
        texts = [text for [text] in written]
        return [
            Written(is_refusal(text), {name: None if s is None else 1 - s for name, s in scores.items()})
            for text, scores in zip(texts, model.judged(prompts, texts), strict=True)
        ]

    def score(self, items: Sequence[Row], answers: Sequence[Written | None], bootstrap: ClusterBootstrap) -> Estimates:
        """Return intensity and refusals of each part, and the intensity of its axes."""
        items, there, bootstrap = answered(items, answers, bootstrap)
        parts = [item.part for item in items]
        found = {
            f"{part}/rta": bootstrap.mean(within([float(answer.refused) for answer in there], parts, part))
            for part in sorted(set(parts))
        }
        for judge in dict.fromkeys(name for answer in there for name in answer.intensity):
            values = [None if answer.refused else answer.intensity[judge] for answer in there]
            for part in sorted(set(parts)):
                inside = within(values, parts, part)
                found[f"{part}/intensity/{judge}"] = bootstrap.mean(inside)
                for axis in sorted({item.axis for item in items}):
                    of_axis = within(inside, [item.axis for item in items], axis)
                    found[f"{part}/intensity/{judge}/{axis}"] = bootstrap.mean(of_axis)
        return found
