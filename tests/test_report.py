import csv
import json
import re
import sys

import pytest

from lit_debias.cli import main
from lit_debias.errors import UserError
from lit_debias.evaluation.records import Record, save_arm, write_json
from lit_debias.evaluation.results import provenance, summarize
from lit_debias.report import report
from lit_debias.report.curves import find_curves
from lit_debias.report.examples import largest_changes, side_by_side

EVIL = "<script>alert('pwned')</script><img src=x onerror=alert(1)>"


def record(i, side, score, text):
    group, other = ("rider", "nurse") if side == 0 else ("nurse", "rider")
    return Record(
        prompt_id=f"p{i}{side}",
        twin_id=f"t{i}",
        split="test_group",
        category="occupational</script>",
        group=group,
        prompt_kind="open",
        prompt=f"What are {group}s like, {i}?",
        counterfactual_prompt=f"What are {other}s like, {i}?",
        ambiguous=False,
        answer=-1,
        biased_choice=-1,
        completion=text,
        tokens=4,
        base_logprob=-8.0,
        judges={"judge": score},
    )


@pytest.fixture
def arms():
    before = [
        record(i, side, 0.1 + 0.1 * i + 0.05 * i * side, f"before {i} {side}") for i in range(4) for side in (0, 1)
    ]
    after = [record(i, side, 0.9 - 0.2 * i, f"after {i} {side}") for i in range(4) for side in (0, 1)]
    after[0].completion = EVIL
    return {"before": before, "after": after}


@pytest.fixture
def run(tmp_path, arms):
    evaluation = tmp_path / "run" / "evaluation"
    for name, records in arms.items():
        save_arm(evaluation / "arms" / f"{name}.json", f"key of {name}", {}, records)
    settings = {"model": "tiny & small", "data_sha256": "0123abcd", "adapter": "runs/adapter"}
    results = {
        **summarize(arms, 50, 0),
        "settings": settings,
        "fingerprints": {name: f"key of {name}" for name in arms},
        "notes": ["a part of the data"],
        **provenance(),
    }
    write_json(evaluation / "results.json", results)
    return tmp_path / "run"


def log_csv(folder, rows):
    folder.mkdir(parents=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def text_of(page):
    """Return the page without plotly and other scripts that belong to it."""
    return re.sub(r"<script[ >].*?</script>", "", page.read_text(), flags=re.DOTALL)


def test_the_page_holds_everything(run):
    rows = [
        {"step": 2 * i, "rollout_step": i, "reward": 0.1 * i, "rewards/fair/mean": 0.2, "kl": 0.01} for i in range(3)
    ]
    log_csv(run / "logs" / "version_0", rows)
    (run / "logs" / "version_0" / "config.yaml").write_text("model:\n  class_path: GRPO  # <b>\n")
    page = report(str(run))
    assert page == run / "report.html"
    text = text_of(page)
    verdict = json.loads((run / "evaluation" / "results.json").read_text())["verdict"]["sentence"]
    assert verdict in text
    for title in ("Bias intensity by category", "Bias intensity by group", "Rewards", "KL to the reference"):
        assert f"<h2>{title}" in text
    for part in ("Twins side by side", "Largest improvements", "Worst regressions", "before 0 1", "after 3 0"):
        assert part in text
    assert "class_path: GRPO  # &lt;b&gt;" in text
    assert "0123abcd" in text
    assert "tiny &amp; small" in text
    assert "a part of the data" in text
    assert "no training curves" not in text
    whole = page.read_text()
    assert len(re.findall(r"plotly\.js v\d", whole)) == 1
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?http", whole)


def test_model_output_stays_text(run):
    page = report(str(run)).read_text()
    assert EVIL not in page
    assert "&lt;script&gt;alert(&#39;pwned&#39;)&lt;/script&gt;" in page
    assert "occupational</script>" not in page  # the name of a bar inside a figure


def test_missing_parts_are_noted(run):
    (run / "evaluation" / "arms" / "after.json").unlink()
    text = text_of(report(str(run), str(run / "elsewhere" / "page.html")))
    assert "no examples of &#39;after&#39;" in text
    assert "no training curves" in text
    assert "no training configuration" in text
    assert "Twins side by side" not in text
    assert "<h2>Rewards" not in text
    assert "<h2>Measures" in text


def test_an_arm_of_another_evaluation_is_not_shown(run, arms):
    save_arm(run / "evaluation" / "arms" / "after.json", "another key", {}, arms["after"])
    assert "not the one behind these figures" in text_of(report(str(run)))


def test_a_clear_change_is_told_from_an_unclear_one(run):
    text = text_of(report(str(run)))
    measures = text.split("<h2>Measures")[1]
    row = {name: measures.split(f"<td>{name}")[1].split("</tr>")[0] for name in ("perplexity", "bias intensity")}
    assert "unclear" in row["perplexity"]  # the same in both arms
    assert 'class="good"' in row["bias intensity"]


def test_curves_are_those_of_grpo_over_rollout_steps(tmp_path):
    log_csv(
        tmp_path / "grpo",
        [{"step": 0, "rollout_step": 1, "reward": 0.5}, {"step": 2, "rollout_step": 2, "reward": 0.75}],
    )
    log_csv(tmp_path / "reward_model", [{"step": 0, "val/loss": 0.5}])
    curves, folder = find_curves([tmp_path])
    assert curves == {"reward": [(1.0, 0.5), (2.0, 0.75)]}
    assert folder == tmp_path / "grpo"
    assert find_curves([tmp_path / "reward_model"]) == ({}, None)


def test_curves_from_tensorboard(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="run")
    logger.log_metrics({"reward": 0.5, "kl": 0.25}, step=3)
    logger.finalize("success")
    curves, folder = find_curves([tmp_path])
    assert curves["reward"] == [(3, 0.5)]
    assert curves["kl"] == [(3, 0.25)]
    assert folder == tmp_path / "run" / "version_0"


def test_largest_changes_are_in_order(arms):
    fell, rose = largest_changes(arms["before"], arms["after"], 2)
    assert [round(change.change, 2) for change in fell] == [-0.8, -0.8]
    assert fell[0].after == EVIL
    # before 0.4 + 0.15, after 0.3: intensity rises by 0.25 for the one twin, by 0.1 for the other
    assert [round(change.change, 2) for change in rose] == [0.25, 0.1]


def test_twins_with_the_largest_gap_come_first(arms):
    pairs = side_by_side(arms, 2)
    assert [{side["group"] for side in pair} for pair in pairs] == [{"rider", "nurse"}] * 2
    assert pairs[0][0]["prompt"] == "What are nurses like, 3?"
    assert pairs[0][0]["answers"]["before"]["intensity"] == pytest.approx(1 - 0.55)
    assert pairs[0][0]["answers"]["after"]["text"] == "after 3 1"


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"of": "something else"}')
    with pytest.raises(UserError, match=r"no results.json of an evaluation"):
        report(str(tmp_path))
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        report(str(tmp_path))
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setattr("lit_debias.report.page.find_spec", lambda name: None if name == "plotly" else object())
    with pytest.raises(UserError, match=r"pip install 'lit-debias\[report\]'"):
        report(str(tmp_path))


def test_the_command_line_draws_it(run, capsys):
    assert main(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
