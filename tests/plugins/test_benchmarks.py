"""The hook of benchmarks: installed ones by name, two of one name, options, and all that bring their own data."""

from __future__ import annotations

import json

import pytest
from numbers_benchmark import Numbers, install

from lit_debias.benchmark.public import BBQ, Bold
from lit_debias.cli.main import main
from lit_debias.errors import UserError
from lit_debias.plugins import benchmarks as plugins_benchmarks
from lit_debias.plugins.benchmarks import benchmark_classes, benchmarks_of
from lit_debias.plugins.manager import components, get_plugin_manager

PUBLIC = ["bbq", "bold", "cbbq", "crows_pairs", "stereoset", "winogender"]
CORE = sorted([*PUBLIC, "association", "identification", "morality", "sesgo", "skew", "winoqueer"])
OFFLINE = ["association", "numbers", "sesgo", "skew", "winoqueer"]


@pytest.fixture(autouse=True)
def _without_plugins_of_this_repository(monkeypatch):
    monkeypatch.setenv("LIT_DEBIAS_DISABLED_PLUGINS", "scenarios")


class NeedsOption(Numbers):
    """Numbers with an option."""

    name = "needs_option"

    def __init__(self, count: int) -> None:
        super().__init__(count)


class NeedsData(Numbers):
    """Numbers of the user."""

    name = "needs_data"
    needs_data = True


def names(chosen):
    return [benchmark.name for benchmark in benchmarks_of(chosen)]


def test_those_of_the_core_register_like_anybodys(capsys):
    assert list(benchmark_classes()) == CORE
    install(Numbers)
    assert list(benchmark_classes()) == sorted([*CORE, "numbers"])
    assert main(["plugins", "Numbers", "CrowsPairs", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["Numbers"]["kind"], rows["Numbers"]["summary"]) == ("benchmark", "Numbers.")
    assert rows["CrowsPairs"]["distribution"] == "lit-debias"


def test_names_and_lists():
    install(Numbers, NeedsOption, NeedsData)
    assert names("") == []
    assert names(" numbers, crows_pairs,numbers,") == ["numbers", "crows_pairs"]
    assert names("Numbers,CrowsPairs") == ["numbers", "crows_pairs"]
    own = NeedsOption(2)
    assert benchmarks_of(["stereoset", own])[1] is own


def test_all_that_bring_their_own_data():
    install(Numbers, NeedsOption, NeedsData)
    assert names("all-offline") == OFFLINE
    assert names("bbq,all-offline") == ["bbq", *OFFLINE]
    configured = Numbers(7)
    found = benchmarks_of(["all-offline", configured])
    assert [one for one in found if one.name == "numbers"] == [configured]  # not once more without its options


def test_without_one_it_names_none(monkeypatch):
    monkeypatch.setattr(plugins_benchmarks, "benchmark_classes", lambda: {"bbq": BBQ, "bold": Bold})
    with pytest.raises(UserError, match=r"no installed benchmark brings its own data, .* write names: bbq, bold"):
        benchmarks_of("all-offline")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("crows_pair", r"benchmarks: there is no 'crows_pair'; did you mean 'crows_pairs'\?"),
        ("all-ofline", r"did you mean 'all-offline'\?"),
        (
            "needs_option",
            r"'needs_option' needs options; write \{class_path: NeedsOption, init_args: \{count: \.\.\.\}\}",
        ),
    ],
)
def test_mistakes(chosen, message):
    install(NeedsOption)
    with pytest.raises(UserError, match=message):
        benchmarks_of(chosen)


@pytest.mark.parametrize(
    ("attributes", "called"), [({"__name__": "CrowsPairs"}, "CrowsPairs"), ({"name": "crows_pairs"}, "crows_pairs")]
)
def test_two_of_one_name_are_refused(attributes, called):
    cls = type(attributes.pop("__name__", "Other"), (Numbers,), attributes)
    install(cls)
    with pytest.raises(UserError, match=f"two benchmarks are called {called}: .*; uninstall one"):
        components(get_plugin_manager())
