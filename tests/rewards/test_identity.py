"""What scores depend on: arguments, files, code and version, as a reward's identity says, not its attributes."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import lit_debias
from lit_debias import Reward
from lit_debias.cli.rewards import build
from lit_debias.errors import UserError
from lit_debias.evaluation.fingerprint import check_judges, describe, fingerprint
from lit_debias.rewards.contract import examine
from lit_debias.rewards.identity import UnknownIdentityError, described


class Words(Reward):
    speed_options = ("batch_size",)

    def __init__(self, words: int = 40, files: list[str] | None = None, batch_size: int = 8, judge=None) -> None:
        self.limit, self.model = words, None
        if files:
            files.append("changed in place")

    def setup(self, device):
        self.model = torch.nn.Linear(2, 2)

    def score(self, batch):
        self.asked = len(batch)
        return [min(1.0, self.limit / (1 + len(text))) for text in batch.completions]


@dataclass(frozen=True)
class Frozen(Words):
    words: int = 3


class Own(Words):
    """Says itself what its scores depend on, and forgets something."""

    def identity(self):
        return {"what": "Own"}


class Drifts(Words):
    def identity(self):
        return {"loaded": self.model is not None}


class NoJson(Words):
    def identity(self):
        return {"limit": torch.ones(1)}


def key(reward: Reward) -> str:
    return fingerprint(reward.identity())


def test_arguments_tell_rewards_apart_and_defaults_count_as_written():
    assert key(Words()) == key(Words(40)) == key(Words(words=40))
    assert key(Words(41)) != key(Words())
    assert key(Words(batch_size=1)) == key(Words())  # no more than speed
    assert key(Frozen()) == key(Frozen(3)) != key(Frozen(4))
    assert key(Frozen(40)) != key(Words(40))


def test_a_reward_takes_no_options_where_it_declares_none():
    class Plain(Reward):
        def score(self, batch):
            return [1.0] * len(batch)

    with pytest.raises(TypeError):
        Plain(3)
    assert Plain().identity()["arguments"] == {}


def test_neither_setup_nor_scoring_nor_pickling_changes_it():
    reward = Words(7, files=["one"])
    before = key(reward)
    reward.setup(torch.device("cpu"))
    reward.score(type("Batch", (), {"completions": ["a"], "__len__": lambda self: 1})())
    assert key(reward) == before == key(pickle.loads(pickle.dumps(Words(7, ["one"]))))
    assert reward.identity()["arguments"]["files"] == ["one"]  # as given, whatever __init__ does to its list


def test_files_and_folders_count_by_their_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    names = [str(tmp_path / "own.txt"), "own.txt", "folder", "./folder", "../" + tmp_path.name + "/folder"]
    for path in (Path("own.txt"), Path("folder/weights")):
        path.write_text("1")
    before = [described(name) for name in names]
    assert described("~/no/such/file") == "~/no/such/file"
    for path in (Path("own.txt"), Path("folder/weights")):
        path.write_text("22")
    assert all(old["sha256"] != described(name)["sha256"] for name, old in zip(names, before, strict=True))
    inside = described(f"{lit_debias.__path__[0]}/py.typed")
    assert described("pkg://lit_debias/py.typed")["sha256"] == inside["sha256"]
    assert [described(sign) for sign in ("", ".", "/", "..")] == ["", ".", "/", ".."]  # signs, not the whole disk


def test_a_nested_reward_counts_by_its_own_identity():
    assert key(Words(judge=Words(1))) == key(Words(judge=Words(1))) != key(Words(judge=Words(2)))
    with pytest.raises(UnknownIdentityError, match="argument 'judge': argument 'judge': a function does not show"):
        Words(judge=Words(judge=key)).identity()


def test_other_code_is_another_identity(tmp_path, monkeypatch):
    source = "from lit_debias import Reward\nclass Mine(Reward):\n    def score(self, batch):\n        return [{}]\n"

    def load(number: float) -> Reward:
        (tmp_path / "mine.py").write_text(source.format(number))
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine", module)
        spec.loader.exec_module(module)
        return module.Mine()

    assert key(load(1.0)) != key(load(2.0))
    assert build("Variety", {}).identity()["version"] == "0.1.0"
    assert load(1.0).identity()["version"] is None


def test_what_cannot_be_told_is_never_the_same_twice(caplog):
    reward = Words(judge=lambda text: 1.0)
    assert pickle.dumps(reward)  # what was not recorded cannot stand in the way
    assert describe({"judge": reward}) != describe({"judge": reward})
    assert "Words cannot tell what its scores depend on (argument 'judge': a function does not" in caplog.text
    with pytest.raises(UserError, match="judge 'j' is the reward 'r'"):  # perhaps; nothing says that it is not
        check_judges({"j": reward}, {"r": Words(judge=len)})


def test_a_judge_is_the_reward_also_by_another_spelling_of_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("x")
    with pytest.raises(UserError, match="same class and settings"):
        check_judges({"j": Words(files=["./a.txt"])}, {"r": Words(files=[str(tmp_path / "a.txt")])})
    check_judges({"j": Words(1)}, {"r": Words(2)})


def test_an_identity_that_is_no_json_is_one_line():
    with pytest.raises(UserError, match=r"NoJson: identity\(\) fails or is not JSON \(TypeError: "):
        describe(NoJson())


@pytest.mark.parametrize(
    ("reward", "passed", "detail"),
    [
        (Words(), True, "the same for equal arguments, and another one for others"),
        (Words(judge=key), None, "argument 'judge': a function does not show what it is; define identity()"),
        (Own(), False, "is the same with words=40 and words=41; let it tell them apart, or name the argument in"),
        (Drifts(), False, "another one before setup"),
        (NoJson(), False, "fails or is not JSON: TypeError"),
    ],
)
def test_the_contract_of_an_identity(reward, passed, detail):
    [finding] = [finding for finding in examine(reward) if finding.check == "identity"]
    assert (finding.passed, detail in finding.detail) == (passed, True), finding.detail


@pytest.mark.parametrize(
    ("name", "init_args", "other"),
    [
        ("Variety", {}, {"n": 3}),
        ("Fluency", {}, {"floor": -7.0}),
        ("NoSweepingWords", {}, {"words": ["some"]}),
        ("Rules", {}, {"lexicons": ["generalising_zh"]}),
        ("SoftOverlong", {"max_new_tokens": 9, "buffer": 2}, {"max_new_tokens": 9, "buffer": 3}),
        ("Informativeness", {}, {"language": "german", "stop_words": ["der"]}),
    ],
)
def test_official_rewards_have_one(name, init_args, other):
    assert json.dumps(build(name, init_args).identity()) == json.dumps(build(name, init_args).identity())
    assert key(build(name, init_args)) != key(build(name, other))
