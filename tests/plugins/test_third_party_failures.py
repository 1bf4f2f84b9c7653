"""Two plugins in ``third_party``, written against docs/plugins.md alone: one hangs, one lies about what it returns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from faulty_rewards import rollout

from lit_debias.errors import UserError
from lit_debias.plugins import manager as plugins
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias.rewards.asking import RewardError
from lit_debias.rewards.guard import Guard
from lit_debias.rewards.suite import RewardSuite

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).with_name("third_party")
ALL, NONE = "xxxxxx", "......"


@pytest.fixture
def found(tmp_path, monkeypatch) -> dict[str, type]:
    """Put both plugins on the path as pip leaves them; return all reward classes by their short names."""
    monkeypatch.delenv(plugins.DISABLE_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    for file in FOLDER.glob("*/pyproject.toml"):
        project = tomllib.loads(file.read_text())["project"]
        [(name, module)] = project["entry-points"]["lit_debias"].items()
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text((file.parent / f"{module}.py").read_text())
        info = tmp_path / f"{module}-{project['version']}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[lit_debias]\n{name} = {module}\n")
    return {c.name: c.cls for c in components(get_plugin_manager()) if c.kind == "reward"}


def lost(suite: RewardSuite, steps: int) -> list[str]:
    """Return for each step x where a row lost its score, . where it is there."""
    rows = []
    for step in range(steps):
        scores = suite.score(rollout(step))
        suite.settle(scores)
        failed = scores.failed["r"].flatten()
        assert torch.equal(scores.valid["r"].flatten(), ~failed)
        rows.append("".join("x" if row else "." for row in failed.tolist()))
    return rows


def suite_of(reward, **guard) -> RewardSuite:
    suite = RewardSuite({"r": reward}, Guard(**guard))
    suite.setup(torch.device("cpu"))
    return suite


def test_the_hanging_plugin_costs_its_own_scores(found):
    suite = suite_of(found["Moderation"](replies=2), timeout=0.5, open_for=2)
    assert lost(suite, 5) == [NONE, NONE, ALL, ALL, ALL]
    assert suite.guarded["r"].open_steps == 0  # asked at the next step


def test_the_hanging_plugin_starts_afresh_in_a_process_of_its_own(found):
    suite = suite_of(found["Moderation"](replies=2), timeout=3.0, retries=1, isolate=True)
    assert lost(suite, 4) == [NONE] * 4  # the third call hangs; a new process has two replies again
    assert suite.guarded["r"].last == "reward 'r' has not answered within 3 s"


def test_the_lying_plugin_costs_the_rows_that_it_lies_about(found):
    suite = suite_of(found["Integrity"](), retries=0, timeout=10.0)
    lies = [".....x", "x.....", ALL, ALL, ALL, ALL, ALL]  # the fifth cannot even be shown
    assert lost(suite, 14) == [row for lie in lies for row in (NONE, lie)]
    with pytest.raises(RewardError, match=r"'r' returned nan for prompt 'p1' and completion 'f'"):
        suite_unguarded(found["Integrity"]())


def suite_unguarded(reward) -> None:
    suite = RewardSuite({"r": reward})
    for step in range(2):
        suite.score(rollout(step))


def test_the_plugins_check_their_own_arguments(found):
    with pytest.raises(UserError, match="replies=-1"):
        found["Moderation"](replies=-1)
