"""Results that were damaged, and pages of which parts are missing."""

import json
from dataclasses import replace

import pytest
from report_material import write_evaluation

from lit_debias.cli.main import main
from lit_debias.report import report

DAMAGE = {
    "empty verdict": (lambda r: r.update(verdict={}), "'verdict.measure' is missing"),
    "no sentence": (lambda r: r["verdict"].pop("sentence"), "'verdict.sentence' is missing"),
    "a measure that is not there": (
        lambda r: r["verdict"].update(measure="bias"),
        "'verdict.measure' is 'bias', and 'measures' does not have it",
    ),
    "a measure without label": (
        lambda r: r["measures"]["bias_intensity/judge"].pop("label"),
        "'measures.bias_intensity/judge.label' is missing",
    ),
    "an arm without measures": (lambda r: r["arms"].update(odd={}), "'arms.odd.measures' is missing"),
    "no base": (lambda r: r["arms"].pop("before"), "'arms.before' is missing"),
    "an arm that is a list": (lambda r: r["arms"].update(odd=[]), "'arms.odd' is [] and not an object"),
    "a text for a number": (
        lambda r: r["arms"]["before"]["measures"]["length"].update(value="0.5"),
        "'arms.before.measures.length.value' is '0.5' and not a number",
    ),
    "a flag for a number": (
        lambda r: r["arms"]["before"]["measures"]["length"].update(low=True),
        "'arms.before.measures.length.low' is True and not a number",
    ),
    "an estimate without bounds": (
        lambda r: r["arms"]["before"]["measures"]["length"].pop("high"),
        "'arms.before.measures.length.high' is missing",
    ),
    "a change without a word on clarity": (
        lambda r: r["comparisons"]["after"]["length"].pop("clear"),
        "'comparisons.after.length.clear' is missing",
    ),
    "a breakdown of texts": (
        lambda r: r["arms"]["before"].update(breakdowns={"judge": {"group": "x"}}),
        "'arms.before.breakdowns.judge.group' is 'x' and not a collection",
    ),
    "a note that is none": (lambda r: r.update(notes=[3]), "'notes.0' is 3 and not a text"),
    "a date that is none": (lambda r: r.update(created=3), "'created' is 3 and not a text"),
    "a check without a bar": (
        lambda r: r["verdict"].update(checks=[{"name": "a", "value": 1.0, "passed": True}]),
        "'verdict.checks.0.bar' is missing",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_results_are_one_line(run, change, message, capsys):
    file = run / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    change(results)
    file.write_text(json.dumps(results))
    assert main(["report", str(run)]) == 2
    assert f"results.json': {message}; run `lit-debias evaluate` again" in capsys.readouterr().err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "missing", [["comparisons"], ["settings", "notes", "versions", "hardware", "fingerprints"], ["prompts", "titles"]]
)
def test_parts_that_a_page_can_do_without(run, missing):
    file = run / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    file.write_text(json.dumps({name: part for name, part in results.items() if name not in missing}))
    assert report(str(run)).is_file()


def test_the_page_says_what_was_not_measured(run):
    file = run / "evaluation" / "results.json"
    reasons = {"preference": "no prompt has <b>", "accuracy": "no prompt has 'choices'"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "not_measured": reasons}))
    page = report(str(run)).read_text()
    assert "share that prefers the biased response (0.5 may be chance): <span" in page
    assert "no prompt has &lt;b&gt;" in page


def test_a_run_without_groups_has_no_figure_of_them(tmp_path, arms):
    records = [replace(record, group="all", category="all") for record in arms["before"]]
    write_evaluation(tmp_path, {"before": records})
    page = report(str(tmp_path)).read_text()
    assert "Bias by group" not in page
    assert "Bias by category" not in page
