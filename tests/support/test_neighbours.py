"""How many threads there are beside other processes; the clock and the kernel's counts are made up."""

from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest
import torch

from lit_debias.support import neighbours, threads
from lit_debias.support.neighbours import Room, Usage, making_room, room

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("allowed", "cores", "others", "expected"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.4, 2),  # a passer-by
        (2, 2, 0.67, 1),  # what one busy process gets beside two threads
        (2, 2, 1.0, 1),
        (2, 2, 2.0, 1),
        (1, 2, 1.0, 1),  # ranks of one machine have a core each
        (8, 16, 8.0, 8),  # likewise
        (8, 16, 12.0, 4),
        (4, 16, 3.0, 4),
        (1, 1, 0.0, 1),
    ],
)
def test_threads_find_a_core_of_their_own(allowed, cores, others, expected):
    assert room(allowed, cores, others) == expected


def test_others_are_what_this_process_has_not_used():
    assert (Usage(12.0, 110.0, 51.0) - Usage(10.0, 107.0, 50.0)).others == 1.0  # 3 s of all, 1 s own, in 2 s
    assert Usage(2.0, 1.0, 1.2).others == 0.0  # two clocks, read one after the other


@pytest.fixture
def torch_threads(monkeypatch):
    """A process of two cores whose number of torch's threads changes nothing else."""
    state = SimpleNamespace(count=2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: state.count)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(state, "count", count))
    monkeypatch.setattr(threads, "usable_cores", lambda: frozenset({0, 1}))
    return state


def test_threads_follow_what_others_do(torch_threads):
    place = Room()
    place.adapt(Usage(1.0, 2.0, 2.0))
    assert torch_threads.count == 2
    place.adapt(Usage(1.0, 2.0, 1.33))
    assert torch_threads.count == 1
    place.adapt(Usage(1.0, 2.0, 1.0))  # the neighbour has a whole core now
    assert torch_threads.count == 1
    place.adapt(Usage(1.0, 1.0, 1.0))
    assert torch_threads.count == 2


def test_short_work_is_added_up(torch_threads):
    place = Room()
    for _ in range(4):
        place.adapt(Usage(0.06, 0.12, 0.06))
        assert torch_threads.count == 2
    place.adapt(Usage(0.06, 0.12, 0.06))  # 0.3 s in all
    assert torch_threads.count == 1


def test_a_number_that_is_chosen_elsewhere_is_the_most(torch_threads):
    place = Room()
    place.adapt(Usage(1.0, 2.0, 1.0))
    assert torch_threads.count == 1
    place.adapt(Usage(1.0, 1.0, 1.0))
    assert torch_threads.count == 2
    torch_threads.count = 1  # by a user, or by ranks that share the machine
    for _ in range(2):
        place.adapt(Usage(1.0, 1.0, 1.0))
        assert torch_threads.count == 1


Times = namedtuple("Times", ["user", "nice", "system", "idle", "iowait", "guest"])


@pytest.mark.parametrize(("niceness", "of_all"), [(0, 8.0), (19, 9.0)])
def test_the_kernel_is_asked_about_own_cores_alone(torch_threads, monkeypatch, niceness, of_all):
    own = [Times(5.0, 1.0, 0.5, 90.0, 7.0, 5.0), Times(2.0, 0.0, 0.5, 90.0, 0.0, 0.0)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [*own, Times(50.0, 0.0, 0.0, 0.0, 0.0, 0.0)])
    monkeypatch.setattr(neighbours.os, "times", lambda: SimpleNamespace(user=3.0, system=0.25))
    monkeypatch.setattr(neighbours.os, "nice", lambda more: niceness)
    found = Usage.now()
    assert (found.of_all, found.own) == (of_all, 3.25)  # guests are among users, the nice leave when asked to


def made_room(monkeypatch, device: torch.device, explicit: bool) -> list[Usage]:
    """Return what was told of one context in which others kept a core busy."""
    told: list[Usage] = []
    readings = iter([Usage(10.0, 20.0, 5.0), Usage(11.0, 22.0, 6.0)])
    monkeypatch.setattr(threads, "explicit", lambda: explicit)
    monkeypatch.setattr(Usage, "now", lambda: next(readings))
    monkeypatch.setattr(neighbours, "_room", SimpleNamespace(adapt=told.append))
    with making_room(device):
        pass
    return told


def test_what_is_used_within_the_context_counts(monkeypatch):
    assert made_room(monkeypatch, CPU, explicit=False) == [Usage(1.0, 2.0, 1.0)]


@pytest.mark.parametrize(("device", "explicit"), [(CPU, True), (torch.device("cuda"), False)])
def test_a_number_of_the_user_stays_and_gpus_do_not_mind(monkeypatch, device, explicit):
    assert made_room(monkeypatch, device, explicit) == []
