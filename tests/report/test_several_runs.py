"""A page about several runs: their table, their logs, and what is said where they differ."""

import re

from report_material import log_csv, text_of, write_evaluation

from lit_debias.cli.main import main
from lit_debias.report import report


def test_the_command_line_takes_several_runs(run, arms, tmp_path, capsys):
    write_evaluation(tmp_path / "second", {"before": arms["before"], "after": arms["before"]})
    assert main(["report", "--out", str(tmp_path / "page.html"), str(run), str(tmp_path / "second")]) == 0
    runs = text_of(tmp_path / "page.html").split(">Runs</h2>")[1].split("</table>")[0]
    rows = runs.split("<tr")[2:]  # of each run, then mean and standard deviation
    assert [re.search(r"rowheader\">(.*?)<", row)[1] for row in rows[:2]] == [str(run), str(tmp_path / "second")]
    assert "-43.9%" in rows[0]  # 0.4 against 0.7125
    assert "+0.0%" in rows[1]
    assert "0.556 ± 0.221" in rows[2]  # of 0.4 and 0.7125
    assert "-21.9% ± 31.0" in rows[2]
    assert "the runs are of different" not in text_of(tmp_path / "page.html")


def test_one_run_in_several_folders(run, tmp_path):
    log_csv(tmp_path / "logs", [{"step": 0, "rollout_step": 1, "reward": 0.5}])
    text = text_of(report([str(tmp_path / "logs"), str(run)], str(tmp_path / "page.html")))
    assert "no training curves" not in text
    assert ">Runs</h2>" not in text


def test_the_logs_of_another_run_are_not_shown(run, arms, tmp_path):
    write_evaluation(tmp_path / "second", arms)
    log_csv(tmp_path / "second" / "logs", [{"step": 0, "rollout_step": 1, "reward": 0.5}])
    assert "no training curves" in text_of(report([str(run), str(tmp_path / "second")]))


def test_runs_on_other_data_are_told(run, arms, tmp_path):
    write_evaluation(tmp_path / "second", arms, settings={"model": "tiny & small", "data_sha256": "other"})
    text = text_of(report([str(run), str(tmp_path / "second")]))
    assert "the runs are of different data (data_sha256)" in text
    assert "different models" not in text


def test_the_other_perplexity_is_the_one_in_the_headline_and_between_runs(tmp_path, arms):
    for name, factor in (("before", 1.0), ("after", 1.5)):
        for each in arms[name]:
            each.other_logprob, each.other_tokens, each.similarity = -3.0 * factor, 3, 0.8 / factor
    for name, model in (("first", "a model"), ("second", "another model")):
        write_evaluation(tmp_path / name, arms, settings={"perplexity_model": model})
    text = text_of(report([str(tmp_path / "first"), str(tmp_path / "second")]))
    tiles = text.split('class="tiles"')[1].split("<nav")[0]
    assert re.findall(r"<dt>.*?<summary>(.*?)</summary>", tiles)[:3] == [
        "perplexity under another frozen model",
        "distinct pairs of words",
        "similarity to the neutral reference, cosine",
    ]
    assert "+64.9%" in text.split('id="runs"')[1].split("</table>")[0]  # exp(0.5), where that under the base is +0%
    assert "different perplexity models" in text


def test_runs_without_a_judge_still_have_a_page(tmp_path, arms):
    for each in arms["before"]:
        each.judges = {}
    for name in ("first", "second"):
        write_evaluation(tmp_path / name, {"before": arms["before"]})
    text = text_of(report([str(tmp_path / "first"), str(tmp_path / "second")]))
    assert "Nothing here measures bias" in text
    assert ">Runs</h2>" in text
