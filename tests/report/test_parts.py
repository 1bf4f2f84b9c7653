import json
from pathlib import Path

import pytest
import yaml
from report_material import many_arms, training_row

from lit_debias.report import report
from lit_debias.report.charts import intervals, joined, lines, pareto_front, running_mean, smoothing, tradeoff
from lit_debias.report.figures import curve_charts, group_terms, largest_parts, tradeoff_axes, tradeoff_charts
from lit_debias.report.keys import INKS, Key, arm_keys
from lit_debias.report.page import MISSING, figure, signed, standing
from lit_debias.report.sources import Evaluation
from lit_debias.report.tables import direction, mark, measure_rows, over_runs
from lit_debias.synthetic.taxonomy import WORDING, group_meanings


def part(value, n=9, reach=0.1):
    return {"value": value, "low": value - reach, "high": value + reach, "n": n}


def evaluation(arms=("before", "after"), **changes):
    results = {"verdict": {"measure": None}, "measures": {}, "arms": {arm: {"measures": {}} for arm in arms}, **changes}
    return Evaluation(results, Path("results.json"), Path())


@pytest.mark.parametrize(
    ("arms", "verdict", "arm", "focus"),
    [
        (("before", "prompt_only", "after"), {}, "after", ["before", "prompt_only", "after"]),
        (("before", "sft", "grpo", "dpo"), {"arm": "grpo"}, "grpo", ["before", "grpo"]),
        (("before", "sft", "dpo"), {}, "dpo", ["before", "dpo"]),
        (("before", "prompt_only"), {"arm": "gone"}, "prompt_only", ["before", "prompt_only"]),
    ],
)
def test_the_arm_of_the_verdict(arms, verdict, arm, focus):
    of = evaluation(arms, verdict=verdict)
    assert of.arm == arm
    assert of.focus == focus


def test_titles_fall_back_to_the_table_and_then_to_the_name():
    of = evaluation(("before", "prompt_only", "sft", "dpo"), titles={"sft": "SFT"})
    assert of.titles == {"before": "before", "prompt_only": "asked for fairness", "sft": "SFT", "dpo": "dpo"}


@pytest.mark.parametrize(
    ("better", "arrow", "change", "wanted"),
    [
        ("lower", "↓", {"difference": -1}, "good"),
        ("higher", "↑", {"difference": -1}, "bad"),
        ("toward 50", "→ 50", {"difference": -15, "nearer": True}, "good"),
        ("toward 50", "→ 50", {"difference": -15, "nearer": False}, "bad"),
        ("toward -0.5", "→ -0.5", {"difference": -15, "nearer": None}, ""),
        ("", "", {"difference": -1}, ""),
    ],
)
def test_which_way_is_better(better, arrow, change, wanted):
    assert direction(better) == arrow
    changes = {"after": {"m": {**change, "clear": True}}}
    assert mark(evaluation(measures={"m": {"better": better}}, comparisons=changes), "after", "m") == wanted


def test_only_a_clear_change_is_marked():
    arms = {"before": {"measures": {"m": part(0.5)}}, "after": {"measures": {"m": part(0.4)}}}
    clear = {"after": {"m": {"difference": -0.1, "clear": True}}}
    of = evaluation(arms=arms, measures={"m": {"better": "lower"}}, comparisons=clear)
    of.results["arms"] = arms
    assert mark(of, "after", "m") == "good"
    assert mark(of, "before", "m") == ""
    of.results["measures"]["m"]["better"] = "higher"
    assert mark(of, "after", "m") == "bad"
    clear["after"]["m"]["clear"] = False
    assert mark(of, "after", "m") == ""


def test_mean_and_standard_deviation_over_runs():
    rows = [
        {"before": part(0.5), "after": part(value), "bias": {"relative": change}, "perplexity": None}
        for value, change in ((0.1, -0.8), (0.3, -0.4))
    ]
    spread = over_runs(rows)
    assert spread["after"] == pytest.approx((0.2, 0.1 * 2**0.5))
    assert spread["bias"] == pytest.approx((-0.6, 0.2 * 2**0.5))
    assert "perplexity" not in spread
    assert over_runs(rows[:1]) == {}


def test_pareto_front_is_what_nothing_beats():
    points = {1: (0.9, 0.1), 2: (0.5, 0.5), 3: (0.4, 0.4), 4: (0.1, 0.9), 5: (0.5, 0.3), 6: (0.05, 0.9)}
    assert pareto_front(points) == [4, 2, 1]


def test_points_of_the_trade_off_are_joined_by_step():
    assert joined([(1, 0.1), (2, 0.2)], [(2, 0.5), (3, 0.6)]) == {2: (0.2, 0.5)}


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (["fairness", "fluency", "relevance"], ("fluency", "fairness")),
        (["Fair", "helpful"], ("helpful", "Fair")),
        (["fluency", "tone"], ("fluency", "tone")),
        (["b", "a"], ("b", "a")),
        (["fairness"], None),
        ([], None),
    ],
)
def test_axes_of_the_trade_off(names, axes):
    assert tradeoff_axes(names) == axes


def test_the_trade_off_shows_steps_front_and_every_arm(tmp_path):
    names = many_arms(tmp_path)
    of = Evaluation(json.loads((tmp_path / "results.json").read_text()), tmp_path, tmp_path)
    rows = [training_row(step) for step in range(3)]
    curves = {name: [(row["rollout_step"], row[name]) for row in rows] for name in rows[0] if "/" in name}
    (chart,) = tradeoff_charts(of, curves, {})
    assert chart.title == "Fairness against fluency"
    front, steps, *arms = json.loads(chart.json)["data"]
    assert steps["x"] == [row["rewards/fluency/mean"] for row in rows]
    assert steps["y"] == [row["rewards/fairness/mean"] for row in rows]
    assert steps["marker"]["color"] == [1, 2, 3]
    assert len(front["x"]) <= 3
    assert len(arms) == len(names)
    assert (arms[2]["x"], arms[2]["y"]) == (pytest.approx([0.76]), pytest.approx([0.5]))  # sft is the third
    assert [key.name for key in chart.legend[2:]] == [of.titles[name] for name in names]
    alone = json.loads(tradeoff_charts(of, {}, {"fluency": "why"})[0].json)["data"]
    assert len(alone) == len(names)
    assert tradeoff_charts(evaluation(), {}, {}) == []


def test_two_scales_are_two_figures_and_the_page_says_why(tmp_path):
    many_arms(tmp_path)
    of = Evaluation(json.loads((tmp_path / "results.json").read_text()), tmp_path, tmp_path)
    row = training_row(1)
    curves = {name: [(1, row[name])] for name in row if "/" in name}
    arms, training = tradeoff_charts(of, curves, {"fluency": "“fluency” was trained with floor -3.0", "other": "no"})
    assert [chart.title for chart in (arms, training)] == [
        "Fairness against fluency",
        "Fairness against fluency in training",
    ]
    assert arms.name != training.name
    assert "no scale in common: “fluency” was trained with floor -3.0." in arms.caption
    assert len(json.loads(arms.json)["data"]) == 9
    assert [len(trace["x"]) for trace in json.loads(training.json)["data"]] == [1, 1]  # the front, the step
    rewards = next(chart for chart in curve_charts(curves, {"fluency": "WHY"}) if chart.title == "Rewards by name")
    assert "Not to be compared with the mean rewards of the table: WHY." in rewards.caption


def test_an_interval_of_an_arm_has_its_n(tmp_path):
    many_arms(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    results["arms"]["sft"]["measures"]["reward/fluency"]["n"] = 11
    (chart,) = tradeoff_charts(Evaluation(results, tmp_path, tmp_path), {}, {})
    assert "95% intervals, n = 11 to 12" in chart.caption


def test_groups_of_the_synthetic_data_are_explained_and_others_are_not():
    assert group_terms(["subei", "teacher"], ["subei", "teacher", "all"]) == {"subei": "the north of Jiangsu province"}
    assert group_terms(["first_tier"], ["first_tier"]) == {"first tier": "Beijing, Shanghai, Guangzhou and Shenzhen"}
    assert group_terms(["northern"], ["northern", "Lagos"]) == {}  # of other data, where it means something else


def test_every_known_meaning_is_of_a_group_that_is_there():
    known = yaml.safe_load((WORDING / "meanings.yaml").read_text())
    assert set(known) <= set(group_meanings())


def test_running_mean_is_even_at_both_ends():
    assert running_mean([0, 3, 6, 3, 0], 3) == [0, 3, 4, 3, 0]
    assert running_mean([1, 2, 6], 1) == [1, 2, 6]
    assert [smoothing(steps) for steps in (19, 20, 60, 100)] == [1, 3, 7, 11]


def test_long_curves_are_smoothed_and_short_ones_are_not():
    key = Key("reward", "#000000")
    short, long = ([(step, step % 2) for step in range(count)] for count in (5, 40))
    assert [trace["y"] for trace in json.loads(lines([short], [key], ""))["data"]] == [[0, 1, 0, 1, 0]]
    raw, smooth = json.loads(lines([long], [key], ""))["data"]
    assert raw["y"] == [step % 2 for step in range(40)]
    assert max(smooth["y"][1:-1]) < 0.7


def test_curves_are_grouped_by_what_they_are():
    curves = {
        name: [(1, 0.5)]
        for name in ("reward", "rewards/b/mean", "rewards/b/std", "rewards/a/mean", "kl", "eval_reward", "loss")
    }
    charts = {chart.title: chart for chart in curve_charts(curves, {})}
    assert list(charts) == ["Reward", "Rewards by name", "KL to the reference", "Validation"]
    assert [key.name for key in charts["Rewards by name"].legend] == ["a", "b"]
    assert charts["Reward"].legend == []


def test_small_groups_are_left_out_and_the_most_biased_come_first():
    before = {"low": part(0.2), "high": part(0.8), "rare": part(0.9, n=3), "none": {**part(0.1), "value": None}}
    shown = largest_parts({"before": before, "after": {"high": part(0.3), "rare": part(0.1)}})
    assert list(shown["before"]) == ["high", "low"]
    assert list(shown["after"]) == ["high"]


def test_intervals_are_those_of_the_estimates():
    keys = {"before": Key("a", "#000000"), "after": Key("b", "#111111")}
    unknown = {"value": 0.5, "low": None, "high": None, "n": 1}
    first, second = json.loads(
        intervals({"before": {"x_y": part(0.5), "z": part(0.2)}, "after": {"z": unknown}}, keys, "")
    )["data"]
    assert first["x"] == [0.5, 0.2]
    assert first["error_x"]["array"] == pytest.approx([0.1, 0.1])
    assert second["error_x"]["arrayminus"] == [0]
    assert round(second["y"][0]) == 1  # in the row of z


def test_a_name_cannot_end_its_script():
    drawn = intervals({"before": {"</script>": part(0.5)}}, {"before": Key("</script>", "#000000")}, "")
    assert "<" not in drawn
    drawn = tradeoff({1: (0.1, 0.1)}, {}, {}, ("</script>", "y"))
    assert "<" not in drawn


def test_nine_arms_look_different():
    keys = arm_keys(evaluation(("before", "prompt_only", *"abcdefg"), verdict={"arm": "c"}))
    assert len({key.colour for key in keys.values()}) == 9
    assert len({key.symbol for key in keys.values()}) == 9
    assert keys["c"].colour == INKS[2]


@pytest.mark.parametrize(("page", "least"), [("#ffffff", 3), ("#12161c", 3)])
def test_colours_stand_out_in_light_and_dark(page, least):
    css = (Path(__file__).parents[2] / "src/lit_debias/report/style.css.jinja").read_text()
    assert f"--page: {page}" in css
    from lit_debias.report.charts import STEPS

    for colour in (*INKS, *STEPS):
        assert contrast(colour, page) >= least, colour


def contrast(first, second):
    """WCAG 2 contrast ratio."""
    low, high = sorted(luminance(colour) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_numbers_line_up():
    assert [figure(value) for value in (0.5, 9.8765, 12.34, 1508.0, None)] == [
        "0.500",
        "9.877",
        "12.3",
        "1508",
        MISSING,
    ]
    assert [signed(value) for value in (0.5, -12.34)] == ["+0.500", "-12.3"]


def test_the_colour_of_the_verdict():
    passed, failed = {"passed": True}, {"passed": False}
    assert standing([passed, passed]) == "good"
    assert standing([passed, failed]) == ""
    assert standing([failed, passed]) == "bad"
    assert standing([]) == ""


@pytest.mark.parametrize(
    ("name", "label", "part_of"),
    [
        ("bbq/s_amb", "BBQ: bias score, ambiguous", ""),
        ("bbq/s_amb/Age", "BBQ (Age): bias score, ambiguous", "BBQ"),
        ("stereoset/overall/ss", "StereoSet (overall): stereotype score", ""),
        ("stereoset/ss/intersentence", "StereoSet (intersentence): stereotype score", "StereoSet"),
        ("bias_intensity/a/b", "bias intensity (a/b)", ""),
    ],
)
def test_figures_of_parts_go_under_their_benchmark(name, label, part_of):
    section = "bias" if name.startswith("bias") else "benchmarks"
    about = {"label": label, "better": "lower", "section": section, "meaning": ""}
    (row,) = measure_rows(evaluation(measures={name: about}, comparisons={}))
    assert row.part_of == part_of


def test_the_page_folds_the_figures_of_parts(tmp_path):
    of_arm = {"measures": {name: part(0.5) for name in ("bbq/s_amb", "bbq/s_amb/Age")}}
    labels = {"bbq/s_amb": "BBQ: bias score", "bbq/s_amb/Age": "BBQ (Age): bias score"}
    measures = {
        name: {"label": label, "better": "lower", "section": "benchmarks", "meaning": ""}
        for name, label in labels.items()
    }
    many_arms(tmp_path)
    path = tmp_path / "results.json"
    results = json.loads(path.read_text())
    results["measures"] |= measures
    for own in results["arms"].values():
        own["measures"] |= of_arm["measures"]
    path.write_text(json.dumps(results))
    page = report(str(tmp_path)).read_text()
    open_, folded = page.split("<summary>BBQ: figures of its parts (1)</summary>")
    assert "BBQ: bias score" in open_
    assert "BBQ (Age)" not in open_
    assert "BBQ (Age)" in folded


def test_the_page_shows_what_judges_of_other_families_say(tmp_path):
    many_arms(tmp_path)
    path = tmp_path / "results.json"
    assert 'id="opinions"' not in report(str(tmp_path)).read_text()
    results = json.loads(path.read_text())
    change = {"difference": -0.25, "low": -0.5, "high": -0.125, "clear": True, "n": 9}
    own = {"measure": results["verdict"]["measure"], "judge": "a <lexicon>", "says": "fairer", "change": change}
    results["verdict"]["opinions"] = [own]
    path.write_text(json.dumps(results))
    row = report(str(tmp_path)).read_text().split('id="opinions"')[1].split("<tbody>")[1].split("</tbody>")[0]
    assert "a &lt;lexicon&gt;" in row
    assert "-0.250" in row
    assert 'class="result good">fairer<' in row
