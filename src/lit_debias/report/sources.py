"""What a run left behind: the results of evaluations, the records of their arms, the configuration of the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_debias.errors import UserError
from lit_debias.evaluation.records import Record, load_arm
from lit_debias.evaluation.table import TITLES, seeds
from lit_debias.evaluation.verdict import BASES
from lit_debias.report.shape import problem
from lit_debias.support.files import parse_json, read_text
from lit_debias.support.redaction import redact, redact_config

SECTIONS = ("verdict", "arms", "measures")
"""What makes a results.json that of an evaluation."""


DESCRIPTIONS = {
    "before": "the model as it was",
    "prompt_only": "the same model with a system prompt that asks it to be fair",
}
"""Arms without an adapter -> what they are."""


@dataclass(frozen=True)
class Evaluation:
    """One ``results.json``."""

    results: dict[str, Any]
    file: Path
    run: Path
    """The folder that the user named; the file lies somewhere in it."""

    @property
    def arms(self) -> list[str]:
        """Names of all arms, in order."""
        return list(self.results["arms"])

    @property
    def arm(self) -> str:
        """The arm that the verdict is about."""
        candidates = (self.results["verdict"].get("arm"), "after", self.arms[-1])
        return next(name for name in candidates if name in self.arms)

    @property
    def focus(self) -> list[str]:
        """The arms that figures and examples show: those without an adapter, and the verdict's."""
        return [name for name in self.arms if name in (*BASES, self.arm)]

    @property
    def titles(self) -> dict[str, str]:
        """Arm -> its name for a reader."""
        given = self.results.get("titles", {})
        return {name: given.get(name) or TITLES.get(name, name) for name in self.arms}

    @property
    def descriptions(self) -> dict[str, str]:
        """Arm -> what it is, in words."""
        adapters = {"after": self.setting("adapter"), **(self.setting("adapters") or {})}
        return {name: DESCRIPTIONS.get(name) or _with_adapter(adapters.get(name)) for name in self.arms}

    @property
    def seeds(self) -> dict[str, str]:
        """Arm -> how many training seeds it pools, in words; those of one seed are left out."""
        return {name: words for name in self.arms if (words := seeds(self.results, name))}

    def estimate(self, arm: str, measure: str | None) -> dict[str, Any] | None:
        """Return ``value``, ``low``, ``high`` and ``n`` of a measure; None where the arm lacks it."""
        found: dict[str, Any] | None = self.results["arms"][arm]["measures"].get(measure)
        return found if found is not None and found["value"] is not None else None

    def change(self, arm: str, measure: str) -> dict[str, Any] | None:
        """Return the change of a measure against "before"; None where there is none."""
        found: dict[str, Any] | None = self.results.get("comparisons", {}).get(arm, {}).get(measure)
        return found if found is not None and found["difference"] is not None else None

    def setting(self, name: str) -> Any:
        """Return a setting of the evaluation without secrets, None where it is not known."""
        value = self.results.get("settings", {}).get(name)
        return redact(value) if isinstance(value, str) else value


def _with_adapter(folder: Any) -> str:
    places = ", ".join(map(str, folder)) if isinstance(folder, list) else folder
    return f"the model with the adapter {redact(str(places))}" if places else "the model with an adapter"


def find_evaluations(folders: Sequence[Path]) -> list[Evaluation]:
    """Return the newest evaluation in each folder; a folder without one holds something else of the run, such as logs.

    Raises:
        UserError: a folder is missing, a results.json does not read, or no folder holds an evaluation.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"run '{folder}': no such folder; write the folder of a run")
    found: dict[Path, Evaluation] = {}
    for folder in folders:
        evaluation = newest_evaluation(folder)
        if evaluation is not None:
            found.setdefault(evaluation.file.resolve(), evaluation)
    if not found:
        raise UserError(
            f"run '{folders[0]}': there is no results.json of an evaluation in it; run `lit-debias evaluate --out "
            f"{folders[0]}/evaluation ...` first"
        )
    return list(found.values())


def newest_evaluation(folder: Path) -> Evaluation | None:
    """Return the evaluation somewhere in a folder that was written last, None where there is none."""
    for file in sorted(folder.rglob("results.json"), key=lambda file: -file.stat().st_mtime):
        try:
            results = parse_json(read_text(file, "results"), f"results '{file}'")
        except UserError as error:
            raise UserError(f"{error}; run `lit-debias evaluate` again") from error
        if isinstance(results, dict) and all(isinstance(results.get(name), dict) for name in SECTIONS):
            if not results["arms"]:
                raise UserError(f"results '{file}': there is no arm in it; run `lit-debias evaluate` again")
            wrong = problem(results)
            if wrong:
                raise UserError(f"results '{file}': {wrong}; run `lit-debias evaluate` again")
            return Evaluation(results, file, folder)
    return None


def log_folders(evaluations: Sequence[Evaluation], folders: Sequence[Path]) -> list[Path]:
    """Return where the logs of the first evaluation may be: its run, and folders that hold no evaluation."""
    others = {evaluation.run for evaluation in evaluations[1:]}
    return [folder for folder in folders if folder not in others]


def read_records(evaluation: Evaluation, notes: list[str]) -> dict[str, list[Record]]:
    """Return the records of the arms in focus, of an arm with several seeds those of the first.

    Those missing, or not behind these results, are left out and noted.
    """
    records = {}
    keys = evaluation.results.get("fingerprints", {})
    for arm in evaluation.focus:
        name = arm if arm in keys else f"{arm}.1"
        found = load_arm(evaluation.file.parent / "arms" / f"{name}.json", keys[name]) if name in keys else None
        if found is None:
            notes.append(
                f"no examples of '{evaluation.titles[arm]}': arms/{name}.json is missing, or not the one behind these "
                "figures"
            )
        else:
            records[arm] = found
    return records


def read_config(log_folder: Path | None, notes: list[str]) -> str:
    """Return the text of the training's config.yaml without secrets; empty, and noted, where there is none."""
    file = None if log_folder is None else log_folder / "config.yaml"
    if file is not None and file.is_file():
        return redact_config(read_text(file, "configuration"))
    notes.append("no training configuration: there is no config.yaml next to a training log")
    return ""
