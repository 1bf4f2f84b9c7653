import io
import re

import pytest
from report_material import many_arms, record
from rich.console import Console

from lit_debias.evaluation.results import summarize
from lit_debias.evaluation.table import against, as_tables, mark


@pytest.fixture
def nine(tmp_path):
    import json

    many_arms(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    results["measures"]["crows"] |= {"better": "toward 50"}
    results["arms"]["before"]["measures"]["crows"] |= {"value": 59.8765, "low": -58.123, "high": 12345.6}
    return results


def few(results, *arms):
    return {**results, "arms": {name: results["arms"][name] for name in arms}}


def lines_of(results, width):
    console = Console(width=width, file=io.StringIO())
    for table in as_tables(results, width):
        console.print(table)
    return console.file.getvalue().splitlines()


def numbers(results, intervals):
    """Return every number and every interval that the tables of these results must show whole."""
    cells = [
        cell
        for table in as_tables(results, 10_000 if intervals else 80)
        for column in table.columns[1:]
        for cell in column.cells
        if str(cell)
    ]
    return [line for cell in cells for line in str(cell).splitlines()]


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("count", [3, 9])
def test_no_cell_is_cut_off_or_wrapped(nine, width, count):
    results = nine if count == 9 else few(nine, "before", "prompt_only", "grpo")
    lines = lines_of(results, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    wide = [len(table.columns) > 1 for table in as_tables(results, width)]
    assert all(wide)
    shown = [
        line
        for table in as_tables(results, width)
        for column in table.columns[1:]
        for cell in column.cells
        for line in str(cell).splitlines()
    ]
    assert len(shown) > 50
    for line in set(shown):
        assert text.count(line) >= shown.count(line), line


def test_every_arm_has_its_column_once(nine):
    headings = [column.header for table in as_tables(nine, 80) for column in table.columns[1:]]
    assert len(as_tables(nine, 80)) > 1
    assert headings == [*[table_heading(name) for name in nine["arms"]], "change of grpo"]


def table_heading(name):
    special = {"prompt_only": "asked for fairness", "grpo": "grpo 3 seeds", "grpo_fairness": "grpo_ fairness"}
    return special.get(name, name)


def test_intervals_are_shown_where_they_fit(nine):
    three = few(nine, "before", "prompt_only", "grpo")
    del three["measures"]["crows"]
    for results, width, there in ((three, 80, True), (nine, 80, False), (nine, 120, False), (nine, 220, True)):
        tables = as_tables(results, width)
        assert (" to " in "\n".join(lines_of(results, width))) == there
        assert ("intervals" in tables[0].title) == there
        assert ("results.json" in tables[-1].caption) == (not there)


def test_the_colour_is_that_of_an_improvement():
    change = {"difference": -5.0, "clear": True}
    assert [mark(change, better) for better in ("lower", "higher", "")] == ["good", "bad", ""]
    assert [mark({**change, "nearer": n}, "toward 50") for n in (True, False, None)] == ["good", "bad", ""]
    assert mark({**change, "clear": False}, "lower") == ""
    assert mark(None, "lower") == ""


def test_the_arm_of_the_verdict_is_set_against_the_others():
    def arm(score, text="x y"):
        return [record(i, side, score + 0.01 * i, text) for i in range(5) for side in (0, 1)]

    arms = {"before": [arm(0.2)], "prompt_only": [arm(0.3)], "sft": [arm(0.75), arm(0.85)], "after": [arm(0.8)]}
    results = summarize(arms, 200, 0)
    assert list(results["verdict"]["against"]) == ["prompt_only", "sft"]
    asked, sft = against(results)
    assert asked == "after against asked for fairness: bias intensity (judge) -0.5 (-0.5 to -0.5)"
    assert re.fullmatch(r"after against sft: bias intensity \(judge\) .* \(-0.05 to \+0.05\), unclear", sft)
    assert against(summarize({"before": [arm(0.2)]}, 5, 0)) == []
