"""How many threads a process may have, and that they are told how to wait before torch loads."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer

from lit_debias.cli import training as training_cli
from lit_debias.errors import UserError
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.support import distributed, threads
from lit_debias.support.threads import Limit, Place
from lit_debias.training import adapter_module
from lit_debias.training.adapter_module import AdapterModule, share_cores
from lit_debias.training.callbacks import SlowSteps, slow_steps

# ---------------------------------------------------------------- cgroups


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def limit_of(tmp_path):
    """The limit of a process in the given groups, with the given files under the mount."""

    def limit_of(groups: str, files: dict[str, str]) -> float | None:
        write(tmp_path / "cgroup", groups)
        for name, text in files.items():
            write(tmp_path / "mount" / name, text)
        found = threads.cgroup_limit(tmp_path / "cgroup", tmp_path / "mount")
        return found and found.cores

    return limit_of


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/user/job\n", {"user/job/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/user/job\n", {"user/job/cpu.max": "max 100000\n"}, None),
        ("0::/user/job\n", {"user/job/cpu.max": "max 100000\n", "user/cpu.max": "300000 100000\n"}, 3),
        ("0::/user/job\n", {"user/job/cpu.max": "200000 100000\n", "user/cpu.max": "300000 100000\n"}, 2),
        ("0::/not/here\n", {"cpu.max": "400000 100000\n"}, 4),  # a container's own root
        (
            "4:cpu,cpuacct:/docker/x\n3:memory:/y\n0::/\n",
            {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "20000\n"},
            2.5,
        ),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, None),
        ("3:cpuset:/x\n", {"cpuset/x/cpu.max": "100000 100000\n"}, None),
        ("0::/x\n", {"x/cpu.max": "what is this\n"}, None),
    ],
)
def test_the_narrowest_limit_counts(groups, files, expected, limit_of):
    assert limit_of(groups, files) == expected


def test_a_system_without_cgroups_has_no_limit(tmp_path):
    assert threads.cgroup_limit(tmp_path / "not there", tmp_path) is None


# ---------------------------------------------------------------- shares


def at(cores: range, machine: str = "a", limit: Limit | None = None, explicit: bool = False) -> Place:
    return Place(machine, frozenset(cores), limit, explicit)


ONE, OTHER = (0, 1), (0, 2)  # groups


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([at(range(8))], 8),
        ([at(range(8), limit=Limit(2.5, ONE))], 2),
        ([at(range(8), limit=Limit(0.5, ONE))], 1),
        ([at(range(8))] * 2, 4),  # one process a "node", two of them on a machine
        ([at(range(8))] * 3, 2),
        ([at(range(2))] * 3, 1),
        ([at(range(8)), at(range(8), "b")], 8),
        ([at(range(4)), at(range(4, 8))], 4),  # each pinned to its own
        ([at(range(8), limit=Limit(6, ONE))] * 2, 3),
        ([at(range(8), limit=Limit(3, ONE)), at(range(8), limit=Limit(3, OTHER))], 3),  # a container each
    ],
)
def test_ranks_share_what_they_have_in_common(places, expected):
    assert threads.at_most(places) == expected
    assert threads.of_ranks(places, 0) == expected


def test_a_number_that_the_user_gave_is_kept():
    told, launched = at(range(8), explicit=True), at(range(8), explicit=False)
    assert threads.of_ranks([told, told], 1) is None
    assert threads.of_ranks([launched, told], 1) == 4  # of a launcher: the first rank knows nothing of it
    assert threads.of_ranks([at(range(8), "b"), told], 1) is None


def test_this_process_may_use_what_it_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 7})
    monkeypatch.setattr(threads, "cgroup_limit", lambda: None)
    assert threads.at_most([threads.place()]) == 3
    assert threads.allowance() == f"3 of {os.cpu_count()} cores"


@pytest.mark.parametrize(("ranks", "before", "after"), [(1, 3, 3), (2, 3, 2), (2, 1, 1)])
def test_a_rank_takes_its_part_and_never_more_than_it_had(ranks, before, after, monkeypatch):
    monkeypatch.setattr(threads, "place", lambda: at(range(4)))
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value] * ranks)
    monkeypatch.setattr(adapter_module.torch, "get_num_threads", lambda: before)
    found = [before]
    monkeypatch.setattr(adapter_module.torch, "set_num_threads", found.append)
    share_cores()
    assert found[-1] == after


# ---------------------------------------------------------------- before torch loads

SAID = "import os, lit_debias, torch; from lit_debias import threads; print('found', threads.came_too_late(), "
SAID += "os.environ.get('GOMP_SPINCOUNT'), torch.get_num_threads(), threads.waiting())"
gnu = pytest.mark.skipif("libgomp" not in Path("/proc/self/maps").read_text(), reason="torch has another OpenMP")


def python(*arguments: str, **environment: str) -> str:
    """Return what a fresh Python prints; OpenMP says what it has read."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=kept | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


@gnu
def test_openmp_reads_a_bounded_spin_wherever_python_starts():
    assert "GOMP_SPINCOUNT = '4000'" in python("-c", "import lit_debias, torch")


@gnu
def test_what_the_user_has_set_stays():
    said = python("-c", SAID, OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")
    assert "found False None 1 as OMP_WAIT_POLICY=PASSIVE says" in said
    assert "GOMP_SPINCOUNT = '0'" in said  # as OpenMP has it for PASSIVE


@gnu
def test_torch_before_lit_debias_is_too_late_and_said():
    said = python("-c", f"import torch; {SAID}")
    assert "GOMP_SPINCOUNT = '300000'" in said
    assert "found True 4000" in said  # processes that this one starts have it
    assert "awake for milliseconds: torch was loaded first" in said


SLEEPS = """
import resource, time
import torch
from lit_debias.support.threads import ShortWait

def sleeps_of_others():
    values, counted = torch.zeros(2**20), []
    for _ in range(2):
        process, mine = (resource.getrusage(who).ru_nvcsw for who in (resource.RUSAGE_SELF, resource.RUSAGE_THREAD))
        counted.append(process - mine)
        for _ in range(20 * (len(counted) == 1)):
            values.add_(1)
            time.sleep(0.001)
    return counted[1] - counted[0]

sleeps_of_others()
short = ShortWait()
found = []
for crowded in (False, True, False):
    short.follow(crowded)
    time.sleep(0.05)
    found.append(sleeps_of_others())
print("sleeps", *found)
"""


@gnu
@pytest.mark.skipif((os.cpu_count() or 1) == 1, reason="one thread waits for nobody")
def test_where_it_came_too_late_threads_wait_for_short_while_it_is_crowded():
    said = python("-c", SLEEPS)
    before, crowded, after = map(int, said.partition("sleeps ")[2].split()[:3])
    assert crowded >= 20  # at each call
    assert max(before, after) < crowded / 2


def test_a_limit_of_the_cgroup_is_known_to_openmp(monkeypatch):
    monkeypatch.setattr(threads, "_given", None)
    monkeypatch.setattr(threads, "_late", False)
    monkeypatch.setattr(threads, "place", lambda: at(range(8), limit=Limit(3, ONE)))
    monkeypatch.setattr(threads, "usable_cores", lambda: frozenset(range(8)))
    monkeypatch.setattr(os, "environ", {})
    found = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    threads.settle()
    assert os.environ == {"GOMP_SPINCOUNT": "4000", "OMP_NUM_THREADS": "3"}
    assert found == [3]  # torch is here already
    assert threads.came_too_late()


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize(("load", "more", "said"), [(0.5, 2, False), (1.0, 2, True), (2.5, 0, False), (3.0, 0, True)])
def test_more_than_the_cores_is_a_crowd(load, more, said, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert threads.crowd(more) == (f"load average {load} on 2 cores" if said else None)


def lines_of(seconds: list[float], monkeypatch, capsys, **options) -> list[str]:
    """Return what ``SlowSteps`` prints over steps of so many seconds."""
    now, callback, trainer = [0.0], SlowSteps(**options), Trainer(logger=False, accelerator="cpu")
    monkeypatch.setattr(slow_steps.time, "perf_counter", lambda: now[0])
    for step in seconds:
        callback.on_train_batch_start(trainer, LightningModule(), None, 0)
        now[0] += step
        callback.on_train_batch_end(trainer, LightningModule(), None, None, 0)
    return [line for line in capsys.readouterr().err.splitlines() if "steps take" in line]


@pytest.mark.parametrize(
    ("crowd", "cause"), [("load average 6.0 on 2 cores", "OMP_NUM_THREADS"), (None, "mean_length")]
)
def test_slow_steps_are_said_once_with_their_cause(crowd, cause, monkeypatch, capsys):
    monkeypatch.setattr(threads, "crowd", lambda: crowd)
    monkeypatch.setattr(threads, "came_too_late", lambda: crowd is not None)
    [line] = lines_of([9.0, *[2.0] * 5, *[10.0] * 8], monkeypatch, capsys)
    assert "steps take 10.0 s now, the first ones took 2.0 s" in line
    assert cause in line
    assert ("import lit_debias before torch" in line) == (crowd is not None)


@pytest.mark.parametrize(
    "seconds",
    [[2.0] * 5 + [9.0] * 9, [2.0] * 8 + [30.0] + [2.0] * 8, [0.01] * 5 + [0.9] * 9, [2.0] * 5 + [10.0]],
    ids=["four times", "one slow step", "no time at all", "too few"],
)
def test_nothing_is_said_of(seconds, monkeypatch, capsys):
    assert not lines_of(seconds, monkeypatch, capsys)


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"first": 0}, {"latest": 0}])
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(UserError, match="SlowSteps: "):
        SlowSteps(**options)


def test_fit_says_it_by_itself(monkeypatch):
    found = {}
    monkeypatch.setattr(training_cli.LightningCLI, "__init__", lambda self, **options: found.update(options))
    training_cli.TrainingCLI(["fit"])
    assert SlowSteps in {type(callback) for callback in found["trainer_defaults"]["callbacks"]}


@pytest.mark.parametrize("crowd", ["load average 6", None])
def test_a_run_shares_cores_first_and_follows_the_load(crowd, monkeypatch):
    module, called = AdapterModule(QLoRAPolicy("no model is loaded")), []
    monkeypatch.setattr(module, "_short_wait", SimpleNamespace(follow=lambda crowded: called.append(crowded)))
    monkeypatch.setattr(threads, "crowd", lambda: crowd)
    module.on_train_batch_start(None, 0)
    assert called == [crowd is not None]
    monkeypatch.setattr(adapter_module, "share_cores", lambda: called.append("shared"))
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):  # what setup asks next
        module.setup("fit")
    assert called[-1] == "shared"
