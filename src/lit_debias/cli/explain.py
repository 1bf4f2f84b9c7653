"""``lit-debias explain``: a judge that explains its scores reads responses that are there already."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_debias.benchmark.statistics import Estimate
from lit_debias.data.columns import renamed
from lit_debias.data.sources import ORIGIN, read_file
from lit_debias.errors import UserError
from lit_debias.evaluation import explanations
from lit_debias.evaluation.explanations import Explained
from lit_debias.evaluation.records import Record
from lit_debias.evaluation.settings import check_numbers
from lit_debias.evaluation.table import title
from lit_debias.report.sources import newest_evaluation, read_records
from lit_debias.rewards.asking import ask, ask_why, check_scores, prepare
from lit_debias.rewards.explanation import ExplainingReward, Explanation
from lit_debias.rewards.reward import Reward, RewardBatch, check_columns
from lit_debias.support.devices import known_device
from lit_debias.support.progress import bars
from lit_debias.support.text import counted

BATCH = 64
"""Responses that a judge sees at once; a run that is stopped loses those of one batch at most."""
TEXTS = ("prompt", "response", "completion", "twin_id", "cluster")
"""Columns that hold texts in a CSV file, whatever they look like."""


@dataclass(frozen=True)
class Given:
    """A response that is to be explained."""

    prompt: str
    response: str
    arm: str
    cluster: str
    scores: Mapping[str, float | None]
    """Other judges by name -> what they said already."""
    columns: Mapping[str, Any]


def explain(
    responses: str,
    judge: ExplainingReward,
    judges: dict[str, Reward] | None = None,
    columns: dict[str, str] | None = None,
    out: Path | None = None,
    limit: int | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Let a judge say what is biased in responses, of which type, about whom, in which words, and why.

    Of an evaluation, the answers to open and leading prompts are read: those of the arms without an adapter, and of the
    arm of the verdict. The explanations lie beside its results.json then, and `lit-debias report` shows them. The
    table has the share of biased responses, of each type, of two types or more, and of those without a valid
    explanation, and how far the judge agrees with others (Cohen's kappa, biased where 1 - score is above 0.5).

    Args:
        responses: Folder of `lit-debias evaluate`; or a .jsonl, .json, .csv or .parquet file with a column `response`
            or `completion`, and `prompt` if there is one.
        judge: A reward that explains its scores, such as StructuredJudge.
        judges: Further judges in [0, 1] (1 is fair) to compare with; those of an evaluation are compared anyway.
        columns: Name of a column of a file (prompt, response, twin_id, or what a judge needs) -> its name there.
        out: The file to write; by default explanations.jsonl beside the results or the file.
        limit: Explain at most the first so many responses of each arm.
        bootstrap: Bootstrap samples behind the 95% intervals.
        seed: Of the bootstrap samples.
        device: Where models of further judges are loaded.

    Raises:
        UserError: the responses or an option are wrong, or the judge cannot be asked.
    """
    check_numbers(limit=limit, bootstrap=bootstrap)
    console = Console()
    path = Path(responses).expanduser()
    given, beside = of_evaluation(path, console) if path.is_dir() else (of_file(path, columns or {}), path.parent)
    given = [one for some in _by_arm(given).values() for one in some[:limit]]
    others = judges or {}
    place = known_device("--device", device)
    for name, reward in {"judge": judge, **others}.items():
        check_columns(f"judge '{name}'", reward.columns, [*given[0].columns])
        prepare(name, reward, place)
    target = out or beside / explanations.NAME
    if target.is_dir():
        raise UserError(f"--out {target} is a folder; write the name of a file")
    rows = write(judge, given, scores_of(others, given), target, console)
    show(rows, bootstrap, seed, console)
    console.print(f"written: {target}", markup=False)
    if path.is_dir() and out is None:
        console.print(f"next: lit-debias report {shlex.quote(responses)}", markup=False)


def write(
    judge: ExplainingReward,
    given: Sequence[Given],
    scores: Sequence[Mapping[str, float | None]],
    target: Path,
    console: Console,
) -> list[Explained]:
    """Ask the judge about responses [N], and write and return what it says.

    What was paid for until it cannot be asked any more lies beside the file, with ``.partial`` in its name.
    """
    rows: list[Explained] = []
    try:
        with bars(console) as start:
            advance = start("explain", len(given))
            for said in explained(judge, given):
                rows.append(_row(judge, given[len(rows)], said, scores[len(rows)]))
                advance(1)
    finally:
        if rows:
            whole = len(rows) == len(given)
            explanations.save(target if whole else target.with_suffix(f".partial{target.suffix}"), rows)
    return rows


def of_evaluation(folder: Path, console: Console) -> tuple[list[Given], Path]:
    """Return the answers of an evaluation that may show bias, and the folder that holds its results.

    Raises:
        UserError: there is none in the folder, or it holds no such answers.
    """
    evaluation = newest_evaluation(folder)
    if evaluation is None:
        raise UserError(f"responses '{folder}': there is no evaluation in it; name a folder of `lit-debias evaluate`")
    notes: list[str] = []
    records = read_records(evaluation, notes)
    for note in notes:
        console.print(f"note: {note}", style="dim", markup=False)
    given = [_answered(arm, one) for arm, some in records.items() for one in some if one.shows_bias]
    if not given:
        raise UserError(f"responses '{folder}': no arm has an answer to an open or leading prompt; nothing to explain")
    return given, evaluation.file.parent


def _answered(arm: str, record: Record) -> Given:
    names = ("prompt_id", "twin_id", "split", "category", "group", "prompt_kind", "counterfactual_prompt")
    columns = {name: getattr(record, name) for name in names}
    return Given(record.prompt, record.completion or "", arm, record.drawn_with, record.judges, columns)


def of_file(path: Path, columns: Mapping[str, str]) -> list[Given]:
    """Return the responses of a file.

    Raises:
        UserError: it cannot be read, or a row has no response.
    """
    rows = read_file(path, {columns.get(name, name) for name in TEXTS})
    rows = renamed(rows, columns, str(path), [name for name in rows.column_names if name != ORIGIN])
    column = next((name for name in ("response", "completion") if name in rows.column_names), None)
    if column is None:
        raise UserError(f"data '{path}' has no column 'response'; name it: --columns '{{response: COLUMN}}'")
    return list(_texts(rows, column))


def _texts(rows: Dataset, column: str) -> Iterator[Given]:
    for number, row in enumerate(rows.to_list()):
        origin, prompt, response = row.pop(ORIGIN), row.get("prompt", ""), row[column]
        for name, text in (("prompt", prompt), (column, response)):
            if not isinstance(text, str):
                raise UserError(f"{origin}: '{name}' is {text!r:.40}; write a text")
        cluster = row.get("cluster") or row.get("twin_id") or f"row {number}"
        yield Given(prompt, response, "", str(cluster), {}, row)


def explained(judge: ExplainingReward, given: Sequence[Given]) -> Iterator[Explanation | None]:
    """Yield an explanation of each response; the judge is asked batch by batch."""
    for start in range(0, len(given), BATCH):
        yield from ask_why(type(judge).__name__, judge, batch_of(given[start : start + BATCH]))


def batch_of(given: Sequence[Given]) -> RewardBatch:
    """Return responses as judges take them."""
    columns = {name: [one.columns[name] for one in given] for name in given[0].columns}
    return RewardBatch([one.prompt for one in given], [one.response for one in given], [*range(len(given))], columns)


def scores_of(judges: Mapping[str, Reward], given: Sequence[Given]) -> list[dict[str, float | None]]:
    """Return what other judges say of responses [N], what they said before included.

    Raises:
        UserError: a judge fails or leaves [0, 1].
    """
    batch = batch_of(given)
    found: list[dict[str, float | None]] = [dict(one.scores) for one in given]
    for name, judge in judges.items():
        for row, score in zip(found, check_scores(name, ask(name, judge, batch), batch), strict=True):
            if score is not None and not 0 <= score <= 1:
                raise UserError(f"judge '{name}' returned {score:.3g}; a judge must score from 0 (biased) to 1 (fair)")
            row[name] = score
    return found


def _row(
    judge: ExplainingReward, given: Given, said: Explanation | None, scores: Mapping[str, float | None]
) -> Explained:
    about = judge.about()
    return Explained(
        prompt=given.prompt,
        response=given.response,
        explanation=said,
        judge=about["judge"],
        template_sha256=about["template_sha256"],
        arm=given.arm,
        cluster=given.cluster,
        scores=scores,
    )


def _by_arm(given: Sequence[Given]) -> dict[str, list[Given]]:
    found: dict[str, list[Given]] = {}
    for one in given:
        found.setdefault(one.arm, []).append(one)
    return found


def show(rows: Sequence[Explained], bootstrap: int, seed: int, console: Console) -> None:
    """Print the figures of each arm with their intervals."""
    arms = {name: explanations.figures(some, bootstrap, seed) for name, some in explanations.by_arm(rows).items()}
    table = Table("figure", box=box.SIMPLE_HEAD, show_edge=False, title=Text(f"By {rows[0].judge}"))
    for name in arms:
        table.add_column(Text(title(name) or "responses"))
    for figure in dict.fromkeys(name for found in arms.values() for name in found):
        cells = [_cell(found[figure]) if figure in found else "-" for found in arms.values()]
        table.add_row(Text(explanations.label(figure)), *cells)
    console.print(table)
    console.print(f"{counted(len(rows), 'response')}; 95% intervals over prompts", style="dim", markup=False)


def _cell(estimate: Estimate) -> str:
    said = estimate.as_dict()
    if said["value"] is None:
        return "-"
    bounds = "" if said["low"] is None else f"\n{said['low']:.2f} to {said['high']:.2f}"
    return f"{said['value']:.2f}, n = {said['n']}{bounds}"
