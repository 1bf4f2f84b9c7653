"""A reward that fails costs its own scores and nothing else: no hang, no lost step, the right rows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faulty_rewards import (
    Exits,
    FailsInSetup,
    Hangs,
    Leaks,
    NotANumber,
    Quits,
    Raises,
    Slow,
    Steady,
    WrongEntry,
    WrongLength,
    WrongType,
    rollout,
)
from guard_worker import SCENARIOS, play

from lit_debias.errors import UserError
from lit_debias.rewards.asking import RewardError
from lit_debias.rewards.calls import resident_gib
from lit_debias.rewards.guard import Guard, UnreliableRewardError
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite, flatten
from lit_debias.training import metrics

ALL, NONE = "xxxxxx", "......"


def suite_of(reward: Reward, setup: bool = True, **guard) -> RewardSuite:
    """Return a suite of one reward called r that may take 10 s, unless told otherwise."""
    suite = RewardSuite({"r": reward}, Guard(**{"timeout": 10.0, **guard}))
    if setup:
        suite.setup(torch.device("cpu"))
    return suite


def lost(suite: RewardSuite, step: int) -> str:
    """Run one step; return a letter for each row: x where the reward failed, . where its score is there."""
    scores = suite.score(rollout(step))
    suite.settle(scores)
    values, failed = scores.values["r"].flatten(), scores.failed["r"].flatten()
    assert torch.equal(failed, ~scores.valid["r"].flatten())  # missing, and not 0
    assert torch.equal(values, torch.arange(6.0).masked_fill(failed, 0))
    return "".join("x" if row else "." for row in failed.tolist())


# ---------------------------------------------------------------- what a failure costs


FAULTS = {
    "raises": (Raises, ALL, "failed in .*KeyError"),
    "quits": (Quits, ALL, "raised SystemExit: 4"),
    "wrong length": (WrongLength, ALL, "returned 5 scores for 6"),
    "wrong type": (WrongType, ALL, "returned dict"),
    "NaN": (NotANumber, ".x....", "returned nan for prompt 'p0' and completion 'b'"),
    "wrong entries": (WrongEntry, "....xx", r"returned 'high' for prompt 'p1' and completion 'e'.*2 of 6"),
}


@pytest.mark.parametrize(("fault", "rows", "message"), FAULTS.values(), ids=FAULTS)
def test_a_failure_is_a_missing_score_of_the_right_rows(fault, rows, message, caplog):
    suite = suite_of(fault([1]))
    assert [lost(suite, step) for step in range(3)] == [NONE, rows, NONE]
    [record] = caplog.records
    assert re.search(message, record.getMessage())


@pytest.mark.parametrize("fault", [Raises, WrongLength, WrongType, NotANumber, WrongEntry])
def test_without_a_guard_it_stops_the_run(fault):
    suite = RewardSuite({"r": fault([0])})
    with pytest.raises(RewardError, match="reward 'r'"):
        suite.score(rollout(0))
    suite.settle(suite.score(rollout(1)))  # nothing to settle


def test_guards_by_name_stand_instead_of_the_guard_of_all():
    own = Guard(timeout=5.0)
    suite = RewardSuite(
        {"a": Steady(), "b": Steady(), "c": Steady()}, Guard(timeout=7.0), {"b": own, "c": None, "elsewhere": own}
    )
    assert {name: guarded.guard.timeout for name, guarded in suite.guarded.items()} == {"a": 7.0, "b": 5.0}


class Twice(Steady):
    """Fails the first time that it is asked, and notes how often it is."""

    asked = 0

    def score(self, batch):
        self.asked += 1
        return super().score(batch) if self.asked > 1 else None


def test_a_retry_saves_the_batch():
    reward = Twice()
    suite = suite_of(reward, retries=1)
    assert lost(suite, 0) == NONE
    assert reward.asked == 2
    assert lost(suite_of(Twice(), retries=0), 0) == ALL


class Shuffles(Steady):
    """Leaves its batch in disorder."""

    def score(self, batch):
        for rows in (batch.prompts, batch.completions, *batch.columns.values(), *batch.completion_ids):
            rows.clear()
        return [float(row) for row in range(6)]


def test_what_a_reward_does_to_its_batch_is_its_own_affair():
    suite = RewardSuite({"r": Shuffles(), "steady": Steady()}, guards={"r": Guard(10)})
    scores = suite.score(rollout(0))
    assert scores.valid["r"].all()
    assert scores.valid["steady"].all()
    batch = flatten(rollout(0))
    assert batch.copy() == batch


# ---------------------------------------------------------------- calls that hang


def test_a_call_that_hangs_is_left_alone_and_the_breaker_opens(caplog):
    suite = suite_of(Hangs([1]), timeout=0.5, retries=3, open_for=2)
    assert [lost(suite, step) for step in range(4)] == [NONE, ALL, ALL, ALL]
    assert suite.guarded["r"].open_steps == 0  # it is asked at the next step, but still hangs
    assert lost(suite, 4) == ALL
    assert suite.guarded["r"].open_steps == 2
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "reward 'r' has not answered within 0.5 s (all 6 scores are missing)",  # not tried again, in spite of retries
        "reward 'r' is not asked for the next 2 rollouts",
        "reward 'r' has still not answered an earlier call (all 6 scores are missing)",
        "reward 'r' is not asked for the next 2 rollouts",
    ]


def test_a_reward_that_becomes_slow_is_asked_again_once_it_has_answered():
    reward = Slow([1])
    suite = suite_of(reward, timeout=0.5, open_for=1)
    assert [lost(suite, step) for step in (0, 1, 2)] == [NONE, ALL, ALL]
    reward.gate.set()
    assert reward.answered.wait(10)
    suite.guarded["r"].calls.call.thread.join(10)
    assert [lost(suite, step) for step in (3, 4)] == [NONE, NONE]


# ---------------------------------------------------------------- breaker and stop


def test_the_breaker_opens_after_failures_in_a_row_and_closes_after_a_good_call():
    suite = suite_of(Raises([0, 2, 3, 6]), retries=0, open_after=2, open_for=2, max_error_rate=1)
    opened = []
    for step, expected in enumerate([ALL, NONE, ALL, ALL, ALL, ALL, ALL, ALL, ALL, NONE]):
        assert lost(suite, step) == expected, step
        opened.append(suite.guarded["r"].open_steps)
    # 0 fails alone; 2 and 3 open it over 4 and 5; the trial at 6 fails, so 7 and 8; the one at 9 is fine
    assert opened == [0, 0, 0, 2, 1, 0, 2, 1, 0, 0]
    assert suite.guarded["r"].failures == 0


def test_the_run_stops_above_the_bar_and_not_at_it():
    suite = suite_of(Raises([1, 2, 3]), retries=0, open_after=9, max_error_rate=0.5, window=4)
    assert [lost(suite, step) for step in range(3)] == [NONE, ALL, ALL]  # 2 of 4
    with pytest.raises(UnreliableRewardError, match=r"'r' lost 75% of its scores over 4 rollouts.*0\.5.*KeyError"):
        lost(suite, 3)


def test_rows_count_by_their_share():
    suite = suite_of(WrongEntry([0, 1]), max_error_rate=0.5, window=1)
    assert lost(suite, 0) == "....xx"  # a third of the scores
    assert suite.guarded["r"].error_rates[-1] == pytest.approx(1 / 3)
    with pytest.raises(UnreliableRewardError, match="33%"):
        lost(suite_of(WrongEntry([0]), max_error_rate=0.3, window=1), 0)


def test_error_rate_and_latency_are_logged():
    suite = RewardSuite({"r": WrongEntry([0]), "free": Steady()}, guards={"r": Guard(10)})
    scores = suite.score(rollout(0))
    values = metrics.of_rollout(rollout(0), scores, scores.values["free"], seconds=1.0)
    assert values["rewards/r/error_rate"] == pytest.approx(1 / 3)
    assert values["rewards/r/missing_rate"] == pytest.approx(1 / 3)
    assert values["rewards/r/mean"] == pytest.approx((0 + 1 + 2 + 3) / 4)  # of those that are there
    assert values["rewards/r/latency"] > 0
    assert "rewards/free/error_rate" not in values


# ---------------------------------------------------------------- a process of its own


def test_an_isolated_reward_may_end_its_process(caplog):
    suite = suite_of(Exits([1]), isolate=True, retries=0)
    assert [lost(suite, step) for step in range(3)] == [NONE, ALL, NONE]
    assert "lost its process, exit code 3" in caplog.text


def test_an_isolated_reward_that_hangs_is_ended():
    suite = suite_of(Hangs([1]), isolate=True, retries=0, timeout=3.0)
    assert lost(suite, 0) == NONE
    process = suite.guarded["r"].calls.worker.process
    assert lost(suite, 1) == ALL
    assert process.exitcode == -9  # ended, not left behind
    assert lost(suite, 2) == NONE  # and the breaker is still closed


def test_an_isolated_reward_that_raises_keeps_its_process_and_dies_with_the_suite(caplog):
    suite = suite_of(Raises([0]), isolate=True, retries=0)
    process = suite.guarded["r"].calls.worker.process
    assert [lost(suite, step) for step in range(2)] == [ALL, NONE]
    assert "KeyError: 'no such key'" in caplog.text
    assert suite.guarded["r"].calls.worker.process is process
    del suite
    assert process.exitcode == -9


def test_a_leak_is_ended_between_two_calls():
    suite = suite_of(Leaks(), isolate=True)
    first = suite.score(rollout(0)).values["r"].unique().item()
    limit = resident_of(suite) + 0.02  # the second call goes beyond it
    suite.guarded["r"].calls.max_memory_gib = limit
    second, third = (suite.score(rollout(step)) for step in (1, 2))
    assert second.values["r"].unique().item() == first
    assert third.values["r"].unique().item() != first
    assert not third.failed["r"].any()


def test_a_limit_below_what_the_reward_needs_is_refused():
    with pytest.raises(UserError, match=r"takes 0\.\d\d GiB after setup; write a larger max_memory_gib than 0.01"):
        suite_of(Steady(), isolate=True, max_memory_gib=0.01)


def resident_of(suite: RewardSuite) -> float:
    process = suite.guarded["r"].calls.worker.process
    [line] = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1]) / 2**20


def test_resident_memory_is_what_the_system_says():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line]
    assert resident_gib() == pytest.approx(int(line.split()[1]) / 2**20, rel=0.05)


def test_an_isolated_reward_that_cannot_be_set_up_or_sent_says_so_before_training():
    with pytest.raises(RewardError, match="'r' failed in setup: OSError: no such model"):
        suite_of(FailsInSetup(), isolate=True)
    with pytest.raises(UserError, match="'r' cannot be isolated, as it cannot be pickled"):
        suite_of(Slow([]), setup=False, isolate=True)


# ---------------------------------------------------------------- one process and two decide alike


EXPECTED = {
    # step by step: rows of rank 0 (where it fails), rows of rank 1, error rate over both
    "raises": (
        [NONE, ALL, ALL, ALL, ALL, ALL, NONE],
        [NONE, NONE, NONE, NONE, ALL, ALL, NONE],
        [0, 0.5, 0.5, 0.5, 1, 1, 0],
    ),
    "hangs": (
        [NONE, ALL, ALL, ALL, ALL, ALL, ALL],
        [NONE, NONE, ALL, ALL, NONE, ALL, ALL],
        [0, 0.5, 1, 1, 0.5, 1, 1],
    ),
    "slow": ([NONE, ALL, ALL, *[NONE] * 4], [NONE, NONE, ALL, *[NONE] * 4], [0, 0.5, 1, 0, 0, 0, 0]),
    "nan": ([NONE, ".x....", *[NONE] * 5], [NONE] * 7, [0, 1 / 12, 0, 0, 0, 0, 0]),
    **dict.fromkeys(
        ["wrong length", "wrong type", "exits"], ([NONE, ALL, *[NONE] * 5], [NONE] * 7, [0, 0.5, 0, 0, 0, 0, 0])
    ),
    # a fifth of the last 5 rollouts' scores: 1, 2, 3 times half of one are 0.1, 0.2, 0.3
    "stops": ([NONE, NONE, ALL, ALL], [NONE] * 4, [0, 0, 0.5, 0.5]),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_one_process(scenario):
    told = play(scenario, rank=0)
    rows = EXPECTED[scenario][0]
    if scenario == "stops":  # alone, a failure costs all: 0.2 after one, 0.4 after two
        assert told["stopped"][0] == 3
        rows = rows[:3]
    assert told["lost"] == rows
    assert told["error_rates"] == pytest.approx([row.count("x") / 6 for row in rows])
    assert_scored(told)


def assert_scored(told) -> None:
    """Every step has an advantage for every completion, whatever the faulty reward did: the steady one rises."""
    for advantages in told["advantages"]:
        assert advantages[:3] == sorted(set(advantages[:3]))
        assert advantages[3:] == sorted(set(advantages[3:]))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """What each of two processes tells of all scenarios, which fail on the first of them only."""
    folder = tmp_path_factory.mktemp("two")
    worker = Path(__file__).parents[1] / "helpers" / "guard_worker.py"
    path = os.pathsep.join([str(worker.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    outs = [folder / f"{rank}.json" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(folder / "rendezvous"), str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        for process in processes:
            errors = process.communicate(timeout=200)[1]
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [json.loads(out.read_text()) for out in outs]


@pytest.mark.processes
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes(two, scenario):
    first, second = (told[scenario] for told in two)
    assert (first["lost"], second["lost"]) == EXPECTED[scenario][:2]
    assert first["error_rates"] == pytest.approx(EXPECTED[scenario][2])
    assert (first["error_rates"], first["open"]) == (second["error_rates"], second["open"])
    assert_scored(first)
    assert_scored(second)


@pytest.mark.processes
def test_two_processes_stop_at_the_same_step(two):
    (step, here), (other_step, there) = (told["stops"]["stopped"] for told in two)
    assert step == other_step == 4
    assert "'faulty' lost 30% of its scores" in here
    assert "KeyError" in here
    assert "'faulty' lost 30% of its scores" in there
    assert "another process" in there


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout is 0; write seconds"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": -1}, "retries=-1"),
        ({"open_after": 0}, "open_after=0"),
        ({"open_for": 0}, "open_for=0"),
        ({"window": 0}, "window=0"),
        ({"max_error_rate": 1.1}, "max_error_rate is 1.1; write a share from 0 to 1"),
        ({"max_error_rate": float("nan")}, "max_error_rate is nan"),
        ({"max_memory_gib": 0.0, "isolate": True}, "max_memory_gib is 0.0"),
        ({"max_memory_gib": 1.0}, "write isolate: true"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Guard(**options)
