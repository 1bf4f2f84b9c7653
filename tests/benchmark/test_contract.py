"""The contract of a benchmark: those of the core keep it, and every fault is found."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from numbers_benchmark import Numbers, install
from public_data import write_all

from lit_debias.benchmark import Figure, examine
from lit_debias.benchmark.tiny import tiny_policy
from lit_debias.cli.main import main
from lit_debias.plugins.benchmarks import benchmark_classes

COUNT = itertools.count()


@pytest.fixture(scope="module")
def tiny():
    with tiny_policy() as policy:
        yield policy


OWN = ["sesgo", "winoqueer", "identification", "morality", "association", "skew"]


@pytest.mark.parametrize("name", ["crows_pairs", "stereoset", "bbq", "cbbq", "winogender", "bold", *OWN])
def test_the_core_keeps_it(name, tiny, tmp_path):
    found = examine(benchmark_classes()[name](), str(write_all(tmp_path)), tiny, limit=12)
    assert [finding for finding in found if finding.passed is not True and finding.check != "time"] == []
    assert len(found) == 12


def broken(**attributes):
    return type("Broken", (Numbers,), attributes)()


def scored(change):
    return lambda self, items, answers, bootstrap: change(
        Numbers.score(self, items, answers, bootstrap), items, answers, bootstrap
    )


def unstable_items(self, folder):
    return [replace(item, value=float(next(COUNT))) for item in Numbers.read(self, folder)]


def asks_twice(self, model, items):
    Numbers.ask(self, model, items)
    return Numbers.ask(self, model, items)


def fails_on_two_items(found, items, answers, bootstrap):
    return {**found, "mean": bootstrap.mean([answers[0] / (len(items) != 2)])} if len(items) == 2 else found


FAULTS = [
    ("attributes and files", {"about": {"mean": Figure("mean", "best")}}, "better='best'"),
    ("attributes and files", {"about": {"mean": Figure("mean", "toward")}}, "toward an ideal; write which"),
    ("attributes and files", {"needs_data": True}, "where are the files of numbers?"),
    (
        "items",
        {"read": lambda self, folder: [replace(i, cluster="") for i in Numbers.read(self, folder)]},
        "item 1 has the cluster ''",
    ),
    ("items", {"read": lambda self, folder: []}, "has no items"),
    ("answers", {"ask": lambda self, model, items: [0.0]}, "returned 1 answers to 4 items"),
    ("answers", {"ask": lambda self, model, items: 1 / 0}, "division by zero"),
    ("figures", {"score": lambda *_: {}}, "returned nothing"),
    ("figures", {"about": {"mean": Figure("mean", "")}}, "'about' says nothing"),
    ("read and drawn again", {"read": unstable_items}, "other items the second time"),
    (
        "order of items",
        {"score": scored(lambda found, items, answers, b: {"mean": b.mean([answers[0]] + [None] * (len(items) - 1))})},
        "'mean' is 0.0, and with its items in another order",
    ),
    (
        "no items",
        {"score": scored(lambda found, items, answers, b: {"mean": replace(found["mean"], n=max(1, len(items)))})},
        "has n=1 without an item",
    ),
    (
        "parts",
        {"score": scored(fails_on_two_items)},
        "division",
    ),
    (
        "no answer",
        {"score": scored(lambda found, items, answers, b: {"mean": b.mean([float(answer) for answer in answers])})},
        "float",
    ),
    ("progress", {"ask": asks_twice}, "asked 2 times about each item; set asks = 2"),
]


@pytest.mark.parametrize(("check", "attributes", "message"), FAULTS, ids=[f"{f[0]}: {f[2]}" for f in FAULTS])
def test_every_fault_is_found(check, attributes, message, tiny):
    found = {finding.check: finding for finding in examine(broken(**attributes), "", tiny)}
    assert found[check].passed is False, found
    assert message in found[check].detail


def test_the_command(capsys):
    install(Numbers)
    assert main(["benchmarks", "check", "numbers", "--init_args", "{count: 3}", "--json"]) == 0
    found = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["items"]["detail"] == "3 of 3 units, 2 strata, 3 clusters"
    assert "ms an item" in found["time"]["detail"]
    for wrong, message in (
        (["numbrs"], "there is no 'numbrs'; did you mean 'numbers'?"),
        (["numbers", "--init_args", "{cont: 3}"], "takes no option 'cont'; did you mean 'count'?"),
        (["numbers", "--limit", "0"], "limit=0; write 1 or more"),
    ):
        assert main(["benchmarks", "check", *wrong]) == 2
        assert message in capsys.readouterr().err
