"""The benchmark of a busy machine: figures and goals by hand, and the way in which sides are asked."""

import importlib.metadata
import importlib.util
import io
import json
import subprocess
import sys

import pytest
from benchmarks import busy, busy_side
from benchmarks.busy import BEFORE, CONDITIONS, HERE, IDLE, TWO_RUNS
from benchmarks.measurement import measured
from benchmarks.settings import Settings

from lit_debias.errors import UserError

FAKE = """
import json, sys
print("a line of a library")
print("seconds: []", flush=True)
for line in sys.stdin:
    kind, count = line.split()
    print("seconds: " + json.dumps([{"rollout": 1.0, "step": 4.0}[kind]] * int(count)), flush=True)
"""


def fake(program: str = FAKE) -> busy.Side:
    return busy.Side([sys.executable, "-c", program], {}, busy.ROOT)


def found(**rollouts: list[list[float]]) -> dict:
    """Return seconds of an arm: a second each, but for the given conditions' rollouts."""
    names = {name.replace(" ", "_"): name for name in CONDITIONS}
    plain = {name: [[1.0, 1.0]] * condition.runs for name, condition in CONDITIONS.items()}
    return {"rollout": plain | {names[name]: runs for name, runs in rollouts.items()}, "step": plain}


def test_figures_are_those_of_the_slower_run():
    arms = busy.figures({HERE: found(two_runs_at_once=[[2.0, 2.0, 5.0], [4.0, 4.0, 4.0]])}, tokens=100)
    cell = arms[HERE]["rollout"][TWO_RUNS]
    assert (cell["rate"], cell["of_idle"], cell["slowest"]) == (25.0, 0.25, 2.5)
    assert arms[HERE]["rollout"][IDLE]["rate"] == 100


@pytest.mark.parametrize(
    ("here", "missed"),
    [
        ({}, set()),
        ({"idle": [[1.03, 1.03]]}, {"rollout, idle, of the rate before"}),
        ({"beside_one_busy_process": [[1.9, 1.9]]}, {"rollout, beside one busy process, of idle"}),
        ({"two_runs_at_once": [[1.0, 1.0], [2.1, 2.1]]}, {"rollout, two runs at once, of idle"}),
        ({"beside_two_busy_processes": [[1.0, 1.0, 3.1]]}, {"slowest rollout, of the median"}),
    ],
)
def test_goals_can_be_missed(here, missed):
    goals = busy.goals(busy.figures({BEFORE: found(), HERE: found(**here)}, tokens=1))
    assert {name for name, goal in goals.items() if not goal["passed"]} == missed


def test_sides_are_asked_in_turn_beside_processes_that_end(monkeypatch):
    started, popen = [], subprocess.Popen

    def start(command, **options):
        started.append(popen(command, **options))
        return started[-1]

    sides = {arm: [fake(), fake()] for arm in (BEFORE, HERE)}
    for side in (*sides[BEFORE], *sides[HERE]):
        assert side.answer() == []
    monkeypatch.setattr(busy.subprocess, "Popen", start)
    seconds = busy.interleaved(sides, 2, {"rollout": 2, "step": 1})
    for side in (*sides[BEFORE], *sides[HERE]):
        side.close()
    assert seconds[HERE]["rollout"] == {name: [[1.0] * 4] * condition.runs for name, condition in CONDITIONS.items()}
    assert seconds[BEFORE]["step"][TWO_RUNS] == [[4.0, 4.0], [4.0, 4.0]]
    assert len(started) == 3 * 8  # one and two processes, two arms, two kinds, two rounds
    assert all(process.poll() is not None for process in started)


def test_a_checkout_brings_its_own_built_ins(tmp_path):
    busy.write_metadata(busy.ROOT, tmp_path)
    [found] = importlib.metadata.distributions(path=[str(tmp_path)])
    [entry] = found.entry_points.select(group="lit_debias")
    assert (found.name, entry.name) == ("lit-debias", "builtins")
    assert importlib.util.find_spec(entry.value) is not None


def test_a_side_that_ends_is_said():
    side = fake("raise SystemExit(3)")
    with pytest.raises(UserError, match="ended with exit status 3"):
        side.answer()
    side.close()


def test_a_folder_that_is_no_checkout_is_one_line(tmp_path, capsys):
    assert busy.main(["--against", str(tmp_path), "--shape", "tiny"]) == 2
    assert "there is no checkout of this project" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_side_answers_with_seconds_of_rollouts_and_steps(tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("rollout 2\nstep 1\n"))
    settings = Settings(str(tiny_model), quantization="none", dtype="float32", prompt_tokens=40).quick()
    measured(busy_side.Side(settings))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(busy.ANSWER)]
    answers = [json.loads(line.removeprefix(busy.ANSWER)) for line in lines]
    assert [len(seconds) for seconds in answers] == [0, 2, 1]
    assert busy_side.ANSWER == busy.ANSWER


def test_figures_are_written_and_shown(tmp_path, capsys):
    arms = busy.figures({BEFORE: found(), HERE: found(idle=[[2.0, 2.0]])}, tokens=96)
    what = {"settings": {"device": "cpu"}, "name": "a step", "goals": busy.goals(arms), "arms": arms}
    assert busy.publish(what, tmp_path / "busy.json") == 1
    assert json.loads((tmp_path / "busy.json").read_text())["arms"][HERE]["rollout"][IDLE]["rate"] == 48
    assert "MISS rollout, idle, of the rate before: 0.50 (goal 0.98)" in capsys.readouterr().out
