"""The plugin manager, with distributions that lie on disk as pip would leave them."""

from __future__ import annotations

import itertools
import os
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
import torch

from lit_debias import RewardBatch, errors
from lit_debias.cli.main import main
from lit_debias.plugins import manager as plugins
from lit_debias.plugins.manager import components, get_plugin_manager, installed_plugins, load_plugins
from lit_debias.rewards.guard import Guard
from lit_debias.rewards.suite import RewardSuite
from lit_debias.types import PromptBatch, Rollout, Scores

NUMBERS = itertools.count()
REWARD = """
    from lit_debias import Reward, hookimpl

    class {name}(Reward):
        '''A reward that likes everything.

        More words.
        '''
        def score(self, batch):
            return [1.0] * len(batch)

    @hookimpl
    def lit_debias_rewards():
        return [{name}]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a distribution with one plugin module on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(plugins.DISABLE_VARIABLE, raising=False)
    monkeypatch.delenv(plugins.ALLOW_VARIABLE, raising=False)
    before = set(sys.modules)

    def write(distribution: str, source: str, entry_point: str | None = None, site: Path = tmp_path) -> str:
        module = f"plugin_{next(NUMBERS)}"
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[lit_debias]\n{entry_point or distribution} = {module}\n")
        return module

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("plugin_") or sys.modules[name] is None:
            del sys.modules[name]


def make_rollout() -> Rollout:
    """Return 1 prompt x 2 completions x 3 tokens, all zero."""
    ids = torch.zeros(1, 2, 3, dtype=torch.long)
    prompts, texts = PromptBatch(["q"]), [["", ""]]
    return Rollout(prompts, ids[:, 0], ids[:, 0] == 0, ids, ids == 0, ids.float(), ids[..., 0] > 0, texts)


def failure() -> str:
    with pytest.raises(errors.UserError) as caught:
        get_plugin_manager()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_built_ins_register_through_an_entry_point_like_anyone():
    found = {component.name: component for component in components(get_plugin_manager())}
    assert {"WeightedSum", "GDPO", "LocalEngine"} <= set(found)
    assert {found[name].distribution for name in ("WeightedSum", "LocalEngine")} == {"lit-debias"}
    assert components(load_plugins([])) == []  # nothing is known that no entry point names


def test_a_plugin_is_listed_with_its_origin(install):
    module = install("nice-rewards", REWARD.format(name="LikesAll"))
    [component] = [c for c in components(get_plugin_manager()) if c.name == "LikesAll"]
    assert component.kind == "reward"
    assert (component.distribution, component.version) == ("nice-rewards", "1.2")
    assert component.cls.__module__ == module
    assert component.summary == "A reward that likes everything."


def test_components_are_sorted_by_kind_and_name(install):
    install("z", REWARD.format(name="Aardvark"))
    install("a", REWARD.format(name="Zebra"))
    keys = [(c.kind, c.name) for c in components(get_plugin_manager())]
    assert keys == sorted(keys)


def test_plugins_are_looked_for_once_in_a_process(install, monkeypatch, capsys):
    searches = []
    monkeypatch.setattr(plugins, "installed_plugins", lambda: searches.append(1) or installed_plugins())
    manager = get_plugin_manager()
    assert main(["plugins"]) == 0
    assert main(["doctor"]) == 0
    assert main(["rewards", "score", "NoSuchReward", "a text"]) == 2
    assert get_plugin_manager() is manager
    assert len(searches) == 1


def test_a_plugin_that_fails_is_looked_for_again(install, monkeypatch):
    install("broken-rewards", "import no_such_module_at_all", entry_point="broken")
    failure()
    monkeypatch.setenv(plugins.DISABLE_VARIABLE, "broken")
    assert "broken" not in get_plugin_manager().origins


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_plugin_that_does_not_import_stops_with_one_line(install, source, cause):
    install("broken-rewards", source, entry_point="broken")
    message = failure()
    for part in ("plugin 'broken'", "broken-rewards 1.2", cause, f"{plugins.DISABLE_VARIABLE}=broken"):
        assert part in message


def test_a_disabled_plugin_is_not_even_imported(install, monkeypatch):
    install("broken-rewards", "import no_such_module_at_all", entry_point="broken")
    install("other", REWARD.format(name="Other"))
    monkeypatch.setenv(plugins.DISABLE_VARIABLE, "something, broken ,")
    assert "Other" in {c.name for c in components(get_plugin_manager())}


def test_only_allowed_plugins_and_the_built_in_one_are_imported(install, monkeypatch):
    module = install("strange-rewards", "raise RuntimeError('imported')", "strange")
    install("liked-rewards", REWARD.format(name="Liked"), "liked")
    monkeypatch.setenv(plugins.ALLOW_VARIABLE, " liked,")
    names = {component.name for component in components(get_plugin_manager())}
    assert sys.modules[module] is None  # neither imported nor to be imported
    assert {"Liked", "WeightedSum"} <= names
    assert "Fluency" not in names  # of a plugin that is installed and not named
    monkeypatch.setenv(plugins.ALLOW_VARIABLE, "likd")
    get_plugin_manager.cache_clear()
    with pytest.raises(errors.UserError, match="names 'likd', and no such plugin is installed; did you mean 'liked'"):
        get_plugin_manager()


@pytest.mark.parametrize(
    "args",
    [
        ["rewards", "check", "PLUGIN.Strange"],
        ["rewards", "score", "PLUGIN.Strange", "a text"],
        ["fit", "--model", "GRPO", "--model.rewards", '{"x": {"class_path": "PLUGIN.Strange"}}'],
        [
            "evaluate",
            "--model",
            "m",
            "--data",
            "d",
            "--out",
            "o",
            "--judges",
            '{"x": {"class_path": "PLUGIN.Strange"}}',
        ],
    ],
)
def test_a_class_path_does_not_get_round_the_list(install, monkeypatch, tmp_path, capsys, args):
    mark = tmp_path / "imported"
    strange = install(
        "strange-rewards", f"open({str(mark)!r}, 'w').close()\n" + textwrap.dedent(REWARD.format(name="Strange"))
    )
    install("liked-rewards", REWARD.format(name="Liked"), "liked")
    monkeypatch.setenv(plugins.ALLOW_VARIABLE, "liked")
    assert main([arg.replace("PLUGIN", strange) for arg in args]) == 2
    assert f"'{strange}' is a plugin that LIT_DEBIAS_ALLOWED_PLUGINS does not name" in capsys.readouterr().err
    assert not mark.exists()
    monkeypatch.delenv(plugins.ALLOW_VARIABLE)
    get_plugin_manager.cache_clear()
    assert "Strange" in {component.name for component in components(get_plugin_manager())}
    assert mark.exists()


@pytest.mark.parametrize("isolate", [False, True])
def test_only_allowed_plugins_are_imported_where_rewards_run(install, monkeypatch, tmp_path, isolate):
    mark = tmp_path / "imported"
    install("strange-rewards", f"open({str(mark)!r}, 'w').close()")
    liked = install("liked-rewards", REWARD.format(name="Liked"), "liked")
    monkeypatch.setenv(plugins.ALLOW_VARIABLE, "liked")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    get_plugin_manager()
    suite = RewardSuite({"liked": import_module(liked).Liked()}, Guard(isolate=isolate))
    suite.setup(torch.device("cpu"))
    assert suite.score(make_rollout()).values["liked"].tolist() == [[1.0, 1.0]]
    assert not mark.exists()


def test_an_unknown_hook_is_named(install):
    install("typo", REWARD.format(name="Typo").replace("def lit_debias_rewards", "def lit_debias_reward"))
    message = failure()
    assert "plugin 'typo'" in message
    assert "lit_debias_reward" in message


def test_a_hook_with_an_unknown_argument_is_named(install):
    install("extra", "from lit_debias import hookimpl\n@hookimpl\ndef lit_debias_scored(rollout, colour): ...")
    assert "colour" in failure()


def test_two_classes_of_one_name_name_both(install, monkeypatch):
    install("first", REWARD.format(name="Same"))
    install("second", REWARD.format(name="Same"))
    message = failure()
    for part in ("Same", "first", "second", plugins.DISABLE_VARIABLE):
        assert part in message
    monkeypatch.setenv(plugins.DISABLE_VARIABLE, "second")
    [component] = [c for c in components(get_plugin_manager()) if c.name == "Same"]
    assert component.distribution == "first"


def test_two_entry_points_of_one_name_name_both(install):
    install("first", REWARD.format(name="One"), entry_point="nice")
    install("second", REWARD.format(name="Two"), entry_point="nice")
    message = failure()
    assert all(part in message for part in ("'nice'", "first", "second"))


def test_a_distribution_that_is_on_the_path_twice_counts_once(install, tmp_path, monkeypatch):
    install("nice", REWARD.format(name="Once"))
    second = tmp_path / "again"
    second.mkdir()
    install("nice", REWARD.format(name="Once"), site=second)
    monkeypatch.syspath_prepend(second)
    assert [c.name for c in components(get_plugin_manager())].count("Once") == 1


def test_two_spellings_of_a_distribution_are_one(install, tmp_path, monkeypatch):
    install("nice-rewards.extra", REWARD.format(name="Once"), entry_point="nice")
    second = tmp_path / "again"
    second.mkdir()
    install("Nice_Rewards-Extra", REWARD.format(name="Once"), entry_point="nice", site=second)
    monkeypatch.syspath_prepend(second)
    [component] = [c for c in components(get_plugin_manager()) if c.name == "Once"]
    assert component.distribution == "Nice_Rewards-Extra"  # the first on the path, as Python imports


def test_an_unused_version_of_a_distribution_is_listed(install, tmp_path, monkeypatch, capsys):
    install("nice", REWARD.format(name="Old"))
    second = tmp_path / "again"
    second.mkdir()
    install("nice", REWARD.format(name="New"), site=second)
    metadata = second / "nice-1.2.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.2", "Version: 1.3"))
    monkeypatch.syspath_prepend(second)
    assert main(["plugins"]) == 0
    shown = capsys.readouterr().out
    assert "New" in shown
    assert f"nice is installed twice: 1.3 counts, as it is first on the path, and 1.2 in {tmp_path} does not" in shown


@pytest.mark.parametrize("metadata", [None, b"Metadata-Version: 2.1\n", b"\xff\xfe\x00"])
def test_what_pip_left_behind_is_no_plugin(install, tmp_path, metadata):
    module = install("ghost", REWARD.format(name="Ghost"))
    file = tmp_path / "ghost-1.2.dist-info" / "METADATA"
    file.unlink()
    if metadata is not None:
        file.write_bytes(metadata)
    assert "Ghost" not in {component.name for component in components(get_plugin_manager())}
    assert module not in sys.modules


def test_what_a_plugin_sets_while_it_is_imported_does_not_stay(install):
    install("setter", "import torch\ntorch.set_grad_enabled(False)\n" + textwrap.dedent(REWARD.format(name="Setter")))
    get_plugin_manager()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("answer", ["None", "['Name']", "Reward", "[Reward, 3]", "{}"])
def test_a_hook_must_return_a_list_of_classes(install, answer):
    install(
        "odd", f"from lit_debias import Reward, hookimpl\n@hookimpl\ndef lit_debias_rewards():\n    return {answer}"
    )
    message = failure()
    assert "odd" in message
    assert "lit_debias_rewards()" in message


def test_the_observer_hook_gets_rollout_and_scores(install):
    source = """
        from lit_debias import hookimpl

        SEEN = []

        @hookimpl
        def lit_debias_scored(rollout, scores):
            SEEN.append((rollout, scores))
    """
    module = install("observer", source)
    ids = torch.zeros(1, 2, 3, dtype=torch.long)
    rollout = Rollout(
        PromptBatch(["q"]), ids[:, 0], ids[:, 0] == 0, ids, ids == 0, ids.float(), ids[..., 0] > 0, [["", ""]]
    )
    scores = Scores({"r": torch.zeros(1, 2)}, {"r": torch.ones(1, 2, dtype=torch.bool)})
    get_plugin_manager().hook.lit_debias_scored(rollout=rollout, scores=scores)
    [(seen_rollout, seen_scores)] = sys.modules[module].SEEN
    assert seen_rollout is rollout
    assert seen_scores is scores


# ---------------------------------------------------------------- the author's guide

GUIDE = Path(__file__).parents[2] / "docs" / "plugins.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def score(reward, completions, **columns):
    return reward.score(RewardBatch([""] * len(completions), completions, [0] * len(completions), columns))


def test_every_hook_has_an_example():
    hooks = {name for name in vars(plugins.HookSpecs) if name.startswith("lit_debias_")}
    assert hooks == set(re.findall(r"@hookimpl\ndef (\w+)", "".join(EXAMPLES)))


def test_the_examples_do_what_they_say(install):
    for number, source in enumerate(EXAMPLES):
        install(f"example-{number}", source)
    manager = get_plugin_manager()
    found = {component.name: component.cls for component in components(manager)}
    assert score(found["WordOverlap"](), ["A cat", "x"], reference=["a dog", ""]) == [0.5, None]
    assert issubclass(found["TalkativeEngine"], found["LocalEngine"])
    values = {"a": torch.tensor([[1.0, 0.0, 3.0]]), "b": torch.tensor([[2.0, 5.0, 0.0]])}
    valid = {"a": torch.tensor([[True, False, True]]), "b": torch.tensor([[True, False, False]])}
    worst = found["WorstReward"](["a", "b"])  # lowest: 1, none, 3; mean 2
    assert worst(Scores(values, valid), step=0).tolist() == [[-1.0, 0.0, 1.0]]


def test_the_observing_example_reports_a_silent_reward(install, capsys):
    [source] = [example for example in EXAMPLES if "def lit_debias_scored" in example]
    install("watcher", source)
    hook = get_plugin_manager().hook.lit_debias_scored
    zeros = torch.zeros(1, 2)
    valid = {"silent": zeros.bool(), "talks": torch.tensor([[True, False]])}
    hook(rollout=make_rollout(), scores=Scores(dict.fromkeys(valid, zeros), valid))
    assert capsys.readouterr().out == "no completion of this rollout has a score of silent: ['q']\n"
