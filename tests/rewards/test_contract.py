"""`lit-debias rewards check`: rewards that break one rule each, the official ones, pairs, and the exit code."""

from __future__ import annotations

import json
import math
import random

import pytest

from lit_debias import Reward
from lit_debias.cli.main import main
from lit_debias.cli.rewards import build
from lit_debias.errors import UserError
from lit_debias.rewards.contract import Example, close, examine


class Words(Reward):
    """Keeps the contract: 1 / (1 + number of words)."""

    def score(self, batch):
        return [1 / (1 + len(text.split())) for text in batch.completions]


class NotFinite(Reward):
    def score(self, batch):
        return [math.nan] * len(batch)


class OneShort(Reward):
    def score(self, batch):
        return [0.5] * max(1, len(batch) - 1)


class BrokenSetup(Reward):
    def setup(self, device):
        raise RuntimeError("no such weights")

    def score(self, batch):
        return [0.5] * len(batch)


class FirstIsBest(Reward):
    depends_on_batch = True

    def score(self, batch):
        return [1 / (1 + row) for row in range(len(batch))]


class Longest(Words):
    """Relative to the batch, and does not say so."""

    def score(self, batch):
        longest = max(map(len, batch.completions)) or 1
        return [len(text) / longest for text in batch.completions]


class NeedsWords(Reward):
    def score(self, batch):
        return [1 / len(text.split()) for text in batch.completions]


class NeedsLatin(Words):
    def score(self, batch):
        return [float(text.encode("latin-1") is not None) for text in batch.completions]


class NeedsShort(Words):
    def score(self, batch):
        assert all(len(text) < 1000 for text in batch.completions)
        return super().score(batch)


class NeedsPrintable(Words):
    def score(self, batch):
        return [None if "\0" not in text else math.inf for text in batch.completions]


class TooHigh(Words):
    def score(self, batch):
        return [2 * score for score in super().score(batch)]


class Dice(Reward):
    def score(self, batch):
        return [random.random() for _ in range(len(batch))]


class Drifts(Reward):
    """Relative to the longest text that it has ever seen."""

    longest = 1

    def score(self, batch):
        self.longest = max(self.longest, *map(len, batch.completions), 100)
        return [len(text) / self.longest for text in batch.completions]


class FromBothEnds(Reward):
    """Does not change when the batch is reversed, yet gives one text two scores."""

    depends_on_batch = True

    def score(self, batch):
        return [1 / (1 + min(row, len(batch) - 1 - row)) for row in range(len(batch))]


class NoPickle(Words):
    def __init__(self):
        self.helper = lambda text: text


class Overlap(Reward):
    columns = ("reference",)

    def score(self, batch):
        rows = zip(batch.completions, batch.columns["reference"], strict=True)
        return [float(bool(set(text.split()) & set(reference.split()))) for text, reference in rows]


def broken(reward, **options) -> list[str]:
    return [finding.check for finding in examine(reward, **options) if finding.passed is False]


def test_a_reward_that_keeps_the_contract():
    findings = examine(Words())
    assert [finding.check for finding in findings] == [
        "setup",
        "length and finiteness",
        "order of the batch",
        "size of the batch",
        "empty text",
        "very long text",
        "non-Latin text",
        "control characters",
        "range",
        "determinism",
        "pickle",
        "identity",
        "latency",
    ]
    assert {finding.check for finding in findings if finding.passed is None} == {"latency"}
    assert not [finding for finding in findings if finding.passed is False]
    details = {finding.check: finding.detail for finding in findings}
    assert details["empty text"] == "1, 1"
    assert details["range"] == "0.000999 to 1, within [0, 1]"  # 1000 words; none


@pytest.mark.parametrize(
    ("reward", "check"),
    [
        (NotFinite, "length and finiteness"),
        (OneShort, "length and finiteness"),
        (BrokenSetup, "setup"),
        (FirstIsBest, "order of the batch"),
        (Longest, "size of the batch"),
        (NeedsWords, "empty text"),
        (NeedsShort, "very long text"),
        (NeedsLatin, "non-Latin text"),
        (NeedsPrintable, "control characters"),
        (TooHigh, "range"),
        (Dice, "determinism"),
        (Drifts, "determinism"),
        (FromBothEnds, "determinism"),
        (NoPickle, "pickle"),
    ],
)
def test_each_rule_can_be_broken(reward, check):
    assert check in broken(reward())


@pytest.mark.parametrize("reward", [NeedsShort, TooHigh, Drifts, FromBothEnds, NoPickle])
def test_only_the_broken_rule_is_reported(reward):
    assert len(broken(reward())) == 1


@pytest.mark.parametrize("reward", [NotFinite, BrokenSetup])
def test_nothing_more_is_tested_without_usable_scores(reward):
    assert examine(reward())[-1].passed is False
    assert len(examine(reward())) <= 2


def test_dependence_on_the_batch_is_declared(monkeypatch):
    [finding] = [finding for finding in examine(Longest()) if finding.passed is False]
    assert "set depends_on_batch = True" in finding.detail
    monkeypatch.setattr(Longest, "depends_on_batch", True)
    [finding] = [finding for finding in examine(Longest()) if finding.check == "size of the batch"]
    assert finding.passed is None
    assert finding.detail.startswith("depends on the batch")


class Twins(Reward):
    """Says only what twins have in common, and does not say that it needs them at once."""

    columns = ("twin_id",)

    def score(self, batch):
        rows = list(zip(batch.columns["twin_id"], batch.prompts, batch.completions, strict=True))
        twins = [[text for twin, prompt, text in rows if twin == own and prompt != mine] for own, mine, _ in rows]
        pairs = zip(batch.completions, twins, strict=True)
        return [sum(text == other for other in others) / 9 if others else None for text, others in pairs]


def test_a_reward_that_needs_twins_is_asked_about_twins(monkeypatch):
    found = {finding.check: finding for finding in examine(Twins())}  # without --columns: prompts in pairs
    assert found["length and finiteness"].detail == "16 completions, 0 without opinion"
    assert found["size of the batch"].passed is False
    assert (
        "0, and alone, no opinion; if that is meant, set depends_on_batch = True" in found["size of the batch"].detail
    )
    monkeypatch.setattr(Twins, "depends_on_batch", True)
    assert broken(Twins()) == []
    [finding] = [finding for finding in examine(Twins()) if finding.check == "empty text"]
    assert finding.detail == "0, 0"  # beside ordinary texts, or it would have nothing to say


class Parts(Words):
    """Shows its dependence on the batch only where that is neither the whole nor a single row."""

    def score(self, batch):
        scores = super().score(batch)
        return scores if len(batch) in (1, 12) else [score / 2 for score in scores]


def test_parts_of_the_batch_are_asked_about_too():
    assert "size of the batch" in broken(Parts())


class Silent(Words):
    """Has an opinion on one language that no ordinary text is in."""

    def score(self, batch):
        return [len(text) / 99 if "\u00df" in text else None for text in batch.completions]


def test_where_nothing_was_seen_that_is_said():
    found = {finding.check: finding for finding in examine(Silent())}
    for check in ("length and finiteness", "order of the batch", "size of the batch", "determinism", "pickle"):
        assert found[check].passed is None
        assert found[check].detail.startswith("no opinion on any of 12 completions: nothing was seen")
    seen = {
        finding.check: finding for finding in examine(Silent(), pairs=[pair("Spa\u00df und Fu\u00df", "Spa\u00df")])
    }
    assert seen["length and finiteness"].detail == "2 completions, 0 without opinion"
    assert seen["size of the batch"].passed


def test_bounds_are_declared(monkeypatch):
    monkeypatch.setattr(TooHigh, "bounds", (0.0, 2.0))
    assert broken(TooHigh()) == []


def pair(better: str, worse: str, **columns) -> tuple[Example, Example]:
    return Example("Say it.", better, columns), Example("Say it.", worse, columns)


def test_pairs_by_hand():
    right, equal, wrong = pair("one", "one two"), pair("one", "two"), pair("one two three", "one")
    assert broken(Words(), pairs=[right]) == []
    assert broken(Words(), pairs=[right, equal]) == ["better and worse pairs"]  # a tie is not better
    [finding] = [finding for finding in examine(Words(), pairs=[right, wrong, equal]) if finding.passed is False]
    assert finding.detail == "2 of 3 are wrong, such as better 'one two three': 0.25, 'one': 0.5"


def test_columns():
    with pytest.raises(UserError, match="needs the data column 'reference'; write --columns"):
        examine(Overlap())
    right = pair("my cat", "your dog", reference="a cat")
    assert broken(Overlap(), columns={"reference": "a cat"}, pairs=[right]) == []


def test_latency_is_judged_where_a_limit_is_given():
    assert broken(Words(), max_latency=0.0) == ["latency"]
    assert broken(Words(), max_latency=1e6) == []
    with pytest.raises(UserError, match="write numbers from 0 up"):
        examine(Words(), max_latency=-1.0)


def test_closeness():
    assert close(None, None, 0.0)
    assert not close(None, 0.0, 1.0)
    assert close(0.5, 0.50009, 1e-4)
    assert not close(0.5, 0.5002, 1e-4)
    assert close(1000.0, 1000.09, 1e-4)  # relative above 1
    assert not close(1000.0, 1000.2, 1e-4)


@pytest.mark.parametrize(
    ("name", "init_args"),
    [
        ("NoSweepingWords", {}),
        ("Variety", {}),
        ("Fluency", {}),  # with made-up log-probs
        ("SoftOverlong", {"max_new_tokens": 60, "buffer": 20}),
    ],
)
def test_official_rewards_keep_the_contract(name, init_args):
    assert [finding for finding in examine(build(name, init_args)) if finding.passed is False] == []


# ---------------------------------------------------------------- the command


def test_the_table_and_exit_code_0(tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"better": "Some are late.", "worse": "All are late."}) + "\n")
    assert main(["rewards", "check", "NoSweepingWords", "--pairs", str(pairs)]) == 0
    shown = capsys.readouterr().out
    assert "all 1 in order" in shown
    assert "broken" not in shown


def test_exit_code_1_and_json(tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"better": "All are late.", "worse": "Some are late."}) + "\n")
    assert main(["rewards", "check", "NoSweepingWords", "--pairs", str(pairs), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in findings if finding["passed"] is False] == ["better and worse pairs"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["NoSweepingWord"], "there is no reward 'NoSweepingWord'; did you mean 'NoSweepingWords'?"),
        (["Variety", "--init_args", "{m: 3}"], "Variety takes no option 'm'"),
        (["Variety", "--init_args", "{n: 0}"], "Variety: n=0; write 1 or more"),
        (["SoftOverlong"], "SoftOverlong needs: max_new_tokens, buffer"),
        (["Variety", "--pairs", "nowhere.jsonl"], "'nowhere.jsonl' cannot be read"),
        (["Variety", "--device", "abacus"], "--device 'abacus': there is no such device; write cpu, cuda or cuda:1"),
        ([], "missing: reward"),
    ],
)
def test_wrong_calls_are_one_line_and_exit_code_2(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["rewards", "check", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "row 2 is no valid JSON: Expecting property name"),
        ("[1]", "row 2: expected an object"),
        ('{"better": "x"}', 'write texts under these keys: {"better": "...", "worse": "..."}'),
        ('{"better": "x", "worse": null}', "write texts under these keys"),
    ],
)
def test_a_wrong_pair_is_named(line, message, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(f'{{"better": "a", "worse": "b"}}\n{line}\n')
    assert main(["rewards", "check", "Variety", "--pairs", str(pairs)]) == 2
    assert message in capsys.readouterr().err
