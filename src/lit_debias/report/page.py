"""``lit-debias report``: finds what a run left behind, and renders it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_debias.errors import UserError
from lit_debias.evaluation.measures import judges_of
from lit_debias.evaluation.needs import by_reason
from lit_debias.evaluation.table import against
from lit_debias.report.curves import find_curves
from lit_debias.report.examples import largest_changes, side_by_side
from lit_debias.report.keys import arm_keys
from lit_debias.report.reasons import reasons
from lit_debias.report.scales import apart, as_config, disagreements
from lit_debias.report.sources import Evaluation, find_evaluations, log_folders, read_config, read_records
from lit_debias.report.tables import TARGET, headline, meanings, measure_rows, over_runs, run_rows, word_rows
from lit_debias.support.atomic import write_text
from lit_debias.support.hashing import sha256
from lit_debias.support.redaction import redact, redact_config
from lit_debias.support.text import counted

if TYPE_CHECKING:
    from jinja2 import Environment

EXAMPLES = 5
MISSING = "\N{EN DASH}"


def report(run: str | list[str], out: str | None = None) -> Path:
    """Draw one HTML file of a run: verdict, figures, curves, examples, configuration. It needs no network.

    Args:
        run: Folder with the results of `lit-debias evaluate` somewhere in it, and the logs of training if there are
            any. Several folders are one run in parts, or runs to compare: the first evaluation is shown in full, the
            primary figures of all of them in a table.
        out: The file to write; by default report.html in the (first) folder.

    Returns:
        The file that was written.

    Raises:
        UserError: a folder or results.json is missing, or the extra `report` is not installed.
    """
    check_extra()
    folders = [Path(folder) for folder in ([run] if isinstance(run, str) else run)]
    evaluations = find_evaluations(folders)
    target = Path(out) if out else folders[0] / "report.html"
    html = render(context(evaluations, log_folders(evaluations, folders)))
    write_text(target, html)
    print(f"written: {target} ({target.stat().st_size / 2**20:.1f} MiB, opens without a network)")
    return target


def check_extra() -> None:
    """Raise :class:`UserError` where jinja2 or plotly is missing."""
    for package in ("jinja2", "plotly"):
        if find_spec(package) is None:
            raise UserError(f"the report needs {package}: pip install 'lit-debias[report]'")


def context(evaluations: Sequence[Evaluation], logs: Sequence[Path]) -> dict[str, Any]:
    """Return what the template shows; what is missing is empty, with a note.

    Args:
        evaluations: The one that is shown in full, then others to compare with.
        logs: Folders that may hold the training logs of the first.
    """
    from lit_debias.report.figures import breakdown_charts, curve_charts, tradeoff_charts

    first = evaluations[0]
    notes = [*first.results.get("notes", [])]
    records = read_records(first, notes)
    curves, log_folder = find_curves(logs)
    if not curves:
        notes.append("no training curves: the run holds no TensorBoard or CSV log of a GRPO training")
    config = read_config(log_folder, notes)
    scales = apart(first, as_config(config))
    comparable = "before" in records and first.arm in records and first.arm != "before"
    fell, rose = largest_changes(records["before"], records[first.arm], EXAMPLES) if comparable else ([], [])
    runs = run_rows(evaluations)
    rows = measure_rows(first)
    differences = disagreements(evaluations)
    shown = {
        "first": first,
        "results": first.results,
        "asked": asked,
        "keys": arm_keys(first),
        "standing": standing(first.results["verdict"].get("checks", [])),
        "tiles": headline(first),
        "runs": runs,
        "differences": differences,
        "spread": {} if differences else over_runs(runs),
        "meanings": meanings(first),
        "judge": next(iter(judges_of(records.get("before", []))), ""),
        "rows": rows,
        "changes": any(row.change for row in rows),
        "targets": any(TARGET.match(about["better"]) for about in first.results["measures"].values()),
        "against": against(first.results),
        "words": word_rows(first),
        "not_measured": by_reason(first.results.get("not_measured", {})),
        "figures": [*tradeoff_charts(first, curves, scales), *breakdown_charts(first)],
        "twins": side_by_side(records, EXAMPLES) if comparable else [],
        "examples": [
            example
            for example in (
                ("improvements", "Largest improvements", fell),
                ("regressions", "Worst regressions", rose),
            )
            if example[2]
        ],
        "reasons": reasons(first, records, notes),
        "training": list(curve_charts(curves, scales)),
        "config": config,
        "settings": redact_config(
            yaml.safe_dump(first.results.get("settings", {}), sort_keys=False, allow_unicode=True)
        ),
        "origin": origin(first, log_folder),
        "notes": notes,
    }
    return {**shown, "contents": contents(shown)}


def standing(checks: Sequence[dict[str, Any]]) -> str:
    """Return ``good`` where all checks pass, ``bad`` where the first one, of bias, fails; else empty."""
    if not checks:
        return ""
    return "good" if all(check["passed"] for check in checks) else "" if checks[0]["passed"] else "bad"


def origin(evaluation: Evaluation, log_folder: Path | None) -> dict[str, str]:
    """Return what made the figures: name -> words."""
    results, adapter = evaluation.results, evaluation.setting("adapter")
    versions = ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items())
    found = {
        "results": str(evaluation.file),
        "training log": str(log_folder or ""),
        "made": results.get("created"),
        "hardware": results.get("hardware"),
        "versions": versions,
        "model": evaluation.setting("model"),
        "adapter": adapter if isinstance(adapter, str) else ", ".join(adapter or []),
        "data": evaluation.setting("data"),
        "data SHA-256": evaluation.setting("data_sha256"),
    }
    return {name: redact(str(value)) for name, value in found.items() if value}


def contents(shown: dict[str, Any]) -> dict[str, str]:
    """Return anchor -> title of the parts that the page has."""
    return {
        **({"runs": "Runs"} if len(shown["runs"]) > 1 else {}),
        **({"checks": "Checks"} if shown["results"]["verdict"].get("checks") else {}),
        **({"opinions": "Judges"} if shown["results"]["verdict"].get("opinions") else {}),
        "measures": "Measures",
        **({"words": "Words"} if shown["words"] else {}),
        **{figure.name: figure.title for figure in shown["figures"]},
        **({"twins": "Twins"} if shown["twins"] else {}),
        **{name: title for name, title, _ in shown["examples"]},
        **({"reasons": "Why answers are biased"} if shown["reasons"] else {}),
        **({"training": "Training curves"} if shown["training"] else {}),
        "origin": "Where this comes from",
    }


def render(shown: dict[str, Any]) -> str:
    """Return the page; everything in it is escaped, and the browser runs its own two scripts and no other."""
    from lit_debias.report.charts import plotly_js

    page = environment()
    figures = shown["figures"] or shown["training"]
    scripts = [*([plotly_js()] if figures else []), page.get_template("script.js.jinja").render()]
    return page.get_template("page.html.jinja").render(shown, scripts=scripts, hashes=map(csp_hash, scripts))


def environment() -> Environment:
    """Return the templates; everything is escaped unless they say otherwise."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lit_debias", "report")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    found.filters.update(figure=figure, signed=signed, percent="{:+.1%}".format)
    return found


def asked(prompts: Mapping[str, int]) -> str:
    """Return how many prompts the figures rest on, and how many of them are twins."""
    pairs = counted(prompts["twins"], "pair of twins", "pairs of twins")
    return counted(prompts["rows"], "prompt") + (f" ({pairs} among them)" if prompts["twins"] else "")


def csp_hash(script: str) -> str:
    """Return what names an inline script in a Content-Security-Policy (CSP Level 3, 2.3.1)."""
    return f"'sha256-{b64encode(bytes.fromhex(sha256([script]))).decode()}'"


def figure(value: float | None) -> str:
    """Return a number with three decimals, fewer where it is large, so that a column lines up."""
    return MISSING if value is None else f"{value:.{decimals(value)}f}"


def signed(value: float | None) -> str:
    """Return the same with its sign."""
    return MISSING if value is None else f"{value:+.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Return how many decimals a number is shown with."""
    return 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
