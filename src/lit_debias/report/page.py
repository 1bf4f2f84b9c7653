"""``lit-debias report``: finds what a run left behind, and renders it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_debias.errors import UserError
from lit_debias.evaluation.records import Record, load_arm
from lit_debias.evaluation.table import TITLES
from lit_debias.report.curves import Curves, find_curves
from lit_debias.report.examples import largest_changes, side_by_side

if TYPE_CHECKING:
    from jinja2 import Template

EXAMPLES = 5


def report(run: str | list[str], out: str | None = None) -> Path:
    """Draw one HTML file of a run: verdict, figures, curves, examples, configuration. It needs no network.

    Args:
        run: Folder with the results of `lit-debias evaluate` somewhere in it, and the logs of training if there are
            any; a list where these are in several folders.
        out: The file to write; by default report.html in the (first) folder.

    Returns:
        The file that was written.

    Raises:
        UserError: a folder or results.json is missing, or the extra `report` is not installed.
    """
    check_extra()
    folders = [Path(folder) for folder in ([run] if isinstance(run, str) else run)]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"run '{folder}': no such folder; write the folder of a run")
    results, where = read_results(folders)
    target = Path(out) if out else folders[0] / "report.html"
    html = template().render(**context(results, where, folders))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html, encoding="utf-8")
    print(f"written: {target} ({target.stat().st_size / 2**20:.1f} MiB, opens without a network)")
    return target


def check_extra() -> None:
    """Raise :class:`UserError` where jinja2 or plotly is missing."""
    for package in ("jinja2", "plotly"):
        if find_spec(package) is None:
            raise UserError(f"the report needs {package}: pip install 'lit-debias[report]'")


def read_results(folders: Sequence[Path]) -> tuple[dict[str, Any], Path]:
    """Return the newest results.json of an evaluation in the folders, and its folder.

    Raises:
        UserError: there is none, or it does not read.
    """
    found = sorted(
        (file for folder in folders for file in folder.rglob("results.json")), key=lambda file: -file.stat().st_mtime
    )
    for file in found:
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: this is no JSON ({error}); run `lit-debias evaluate` again") from error
        if isinstance(results, dict) and {"verdict", "arms", "measures"} <= results.keys():
            return results, file.parent
    raise UserError(
        f"run '{folders[0]}': there is no results.json of an evaluation in it; run `lit-debias evaluate --out "
        f"{folders[0]}/evaluation ...` first"
    )


def context(results: dict[str, Any], where: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """Return what the template shows; what is missing is empty, with a note."""
    from lit_debias.report.charts import plotly_js

    notes = list(results.get("notes", []))
    records = read_records(results, where, notes)
    curves, log_folder = find_curves(folders)
    if not curves:
        notes.append("no training curves: the run holds no TensorBoard or CSV log of a GRPO training")
    if log_folder is None or not (log_folder / "config.yaml").is_file():
        notes.append("no training configuration: there is no config.yaml next to a training log")
    last = list(results["arms"])[-1]
    fell, rose = largest_changes(records["before"], records[last], EXAMPLES) if len(records) > 1 else ([], [])
    return {
        "results": results,
        "titles": TITLES,
        "last": last,
        "figures": figures(results, curves),
        "twins": side_by_side(records, EXAMPLES) if "before" in records else [],
        "fell": fell,
        "rose": rose,
        "settings": yaml.safe_dump(results.get("settings", {}), sort_keys=False, allow_unicode=True),
        "config": read_config(log_folder),
        "notes": notes,
        "plotly_js": plotly_js(),
    }


def read_records(results: dict[str, Any], where: Path, notes: list[str]) -> dict[str, list[Record]]:
    """Return the arms' records; arms that are missing, or are not those of the results, are noted."""
    records = {}
    for arm, key in results.get("fingerprints", {}).items():
        found = load_arm(where / "arms" / f"{arm}.json", key)
        if found is None:
            notes.append(f"no examples of '{arm}': arms/{arm}.json is missing, or not the one behind these figures")
        else:
            records[arm] = found
    return records if {"before", list(results["arms"])[-1]} <= records.keys() else {}


def read_config(log_folder: Path | None) -> str:
    """Return the text of the training's config.yaml, empty where there is none."""
    file = None if log_folder is None else log_folder / "config.yaml"
    return file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""


def figures(results: dict[str, Any], curves: Curves) -> dict[str, str]:
    """Return title -> HTML of every figure that there are numbers for."""
    from lit_debias.report.charts import bars, lines

    found = {}
    judges = next(iter(results["arms"].values()))["breakdowns"]
    for judge in judges:
        for key in ("category", "group"):
            parts = {arm: content["breakdowns"].get(judge, {}).get(key, {}) for arm, content in results["arms"].items()}
            if any(parts.values()):
                found[f"Bias intensity by {key} ({judge})"] = bars(parts, TITLES, "bias intensity, 95% interval")
    for title, names in curve_groups(curves).items():
        if names:
            found[title] = lines(curves, names, title.lower())
    return found


def curve_groups(curves: Iterable[str]) -> dict[str, list[str]]:
    """Return title -> metric names that are drawn together."""
    names = sorted(curves)
    rewards = [name for name in names if name.startswith("rewards/") and name.endswith("/mean")]
    validation = [name for name in names if name.startswith("eval_") and name.endswith(("reward", "/mean"))]
    return {
        "Rewards": [name for name in ("reward",) if name in names] + rewards,
        "KL to the reference": [name for name in ("kl",) if name in names],
        "Validation": validation,
        "Length of completions": [name for name in ("completions/mean_length",) if name in names],
    }


def template() -> Template:
    """Return the page's template; everything is escaped unless the template says otherwise."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lit_debias", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = lambda value: "-" if value is None else f"{value:.3g}"
    environment.filters["signed"] = lambda value: "-" if value is None else f"{value:+.3g}"
    return environment.get_template("page.html.jinja")
