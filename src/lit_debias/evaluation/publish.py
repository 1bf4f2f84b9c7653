"""The last stage of an evaluation: the figures, in results.json and in the terminal."""

from __future__ import annotations

import shlex
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_debias.evaluation.benchmarked import add_figures
from lit_debias.evaluation.contamination import contaminated, learned_prompts, notes_of, trained_on
from lit_debias.evaluation.needs import not_measured, notes
from lit_debias.evaluation.opinions import add_opinions
from lit_debias.evaluation.prepare import Plan
from lit_debias.evaluation.records import write_json
from lit_debias.evaluation.results import provenance, summarize
from lit_debias.evaluation.runner import Measured
from lit_debias.evaluation.settings import EvaluationSettings
from lit_debias.evaluation.table import show
from lit_debias.evaluation.texts import add_texts
from lit_debias.export import card
from lit_debias.rewards.explanation import ExplainingReward


def publish(plan: Plan, measured: Measured, console: Console) -> dict[str, Any]:
    """Write OUT/results.json, print the tables, and return what the file holds."""
    results = results_of(plan, measured)
    path = Path(plan.settings.out) / "results.json"
    write_json(path, results)
    show(results, console)
    console.print(f"written: {path}", markup=False)
    for arm in chain.from_iterable(plan.arms.values()):
        if arm.adapter is not None:
            update_card(Path(arm.adapter), results, console)
    for line in next_steps(plan.settings):
        console.print(line, markup=False)
    return results


def next_steps(settings: EvaluationSettings) -> list[str]:
    """Return the commands that take the results further."""
    out = shlex.quote(settings.out)
    why = [
        f"judge '{name}' also says why: lit-debias explain {out} --judge {type(judge).__name__} ..."
        for name, judge in (settings.judges or {}).items()
        if isinstance(judge, ExplainingReward)
    ]
    return [f"next: lit-debias report {out}", *why]


def update_card(adapter: Path, results: dict[str, Any], console: Console) -> None:
    """Add the figures to an adapter's model card, if it has one; a card that cannot be written costs no evaluation."""
    try:
        written = card.add_figures(adapter, results)
    except OSError as error:
        console.print(
            f"note: the figures are not in {adapter / card.NAME}: {error.strerror}", style="dim", markup=False
        )
    else:
        if written:
            console.print(f"the figures stand in {adapter / card.NAME} too", markup=False)


def results_of(plan: Plan, measured: Measured) -> dict[str, Any]:
    """Return the figures of all arms, and what they rest on."""
    settings = plan.settings
    summary = summarize(measured.records, settings.bootstrap, settings.seed)
    learned = {name: trained_on(arms) for name, arms in plan.arms.items()}
    known = {name: contaminated(arms, plan.benchmarks.samples) for name, arms in plan.arms.items()}
    asked = [row["prompt"] for row in plan.rows]
    prompts = {name: learned_prompts(arms, asked) for name, arms in plan.arms.items()}
    results = {
        **summary,
        "trained_on": {name: names for name, names in learned.items() if names},
        "contaminated": {name: reasons for name, reasons in known.items() if reasons},
        "not_measured": not_measured(plan.asked, summary["measures"]),
        "settings": {
            **plan.recorded,
            "adapter": settings.adapter,
            "adapters": settings.adapters or {},
            "benchmarks": plan.benchmarks.about,
            "system_prompt": settings.system_prompt,
            "bootstrap": settings.bootstrap,
        },
        "fingerprints": measured.fingerprints,
        "notes": measured.notes + notes(plan.asked, plan.all_rows) + plan.benchmarks.notes + notes_of(known, prompts),
        **provenance(),
    }
    readers = {"perplexity_other": settings.perplexity_model, "similarity": settings.similarity_model}
    for measure, source in readers.items():
        if measure in results["measures"]:
            results["measures"][measure]["label"] += f" ({source})"
    add_texts(results, measured.texts, plan.texts)
    add_figures(results, measured.figures, plan.benchmarks)
    add_opinions(results)
    return results
