import io
import json

import pytest
from report_material import many_arms, record
from rich.console import Console

from lit_debias.evaluation.results import summarize
from lit_debias.evaluation.table import against, as_tables, mark


@pytest.fixture
def nine(tmp_path):
    """Results of nine arms, no figure twice: 100 (-0.100 to 0.100), 101 (-0.101 to 0.101), ..."""
    many_arms(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    results["arms"]["grpo"]["replicas"] = 3
    cells = [(arm, name) for arm in results["arms"].values() for name in results["measures"]]
    for number, (arm, name) in enumerate(cells, 100):
        arm["measures"][name] = {"value": number, "low": -number / 1000, "high": number / 1000, "n": 9}
    return results


def few(results, *arms):
    return {**results, "arms": {name: results["arms"][name] for name in arms}}


def lines_of(results, width):
    console = Console(width=width, file=io.StringIO())
    for table in as_tables(results, width):
        console.print(table)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("count", [3, 9])
def test_no_cell_is_cut_off_or_wrapped(nine, width, count):
    results = nine if count == 9 else few(nine, "before", "prompt_only", "grpo")
    lines = lines_of(results, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    figures = [arm["measures"][name]["value"] for arm in results["arms"].values() for name in results["measures"]]
    assert [text.split().count(str(figure)) for figure in figures] == [1] * len(figures)
    if count == 3:
        assert all(f" -0.{figure} to 0.{figure} " in text for figure in figures)


def test_every_arm_has_its_column_once_and_a_heading_that_fits(nine):
    tables = as_tables(nine, 80)
    assert len(tables) > 1
    headings = [column.header for table in tables for column in table.columns[1:]]
    expected = {"prompt_only": "asked for fairness", "grpo": "grpo 3 seeds", "grpo_fairness": "grpo_ fairness"}
    assert headings == [*[expected.get(name, name) for name in nine["arms"]], "change of grpo"]
    assert all(len(word) <= c.width for table in tables for c in table.columns[1:] for word in c.header.split())
    wide = [column.header for column in as_tables(nine, 300)[0].columns]
    assert "grpo_fairness" in wide


def test_intervals_are_shown_where_they_fit(nine):
    three = few(nine, "before", "prompt_only", "grpo")
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
    assert asked == "after against asked for fairness: bias intensity (judge) -0.5 (-0.5 to -0.5, n = 10)"
    assert sft.endswith(" (-0.05 to +0.05, n = 10), unclear")
    assert against(summarize({"before": [arm(0.2)]}, 5, 0)) == []
    for silent in (arms["sft"][1], arms["after"][0]):
        for each in silent:
            each.judges = {"judge": None}
        results = summarize(arms, 5, 0)
        assert list(results["verdict"]["against"]) == (["prompt_only"] if silent is arms["sft"][1] else [])
        assert results["verdict"]["sentence"]
