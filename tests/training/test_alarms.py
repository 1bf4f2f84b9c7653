"""Alarms against reward hacking: measures by hand, the callback's memory, and rewards that are really hacked."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from grpo_runs import grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import AdamW

from lit_debias.aggregators import GDPO, WeightedSum
from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.grpo.loss import DAPOLoss
from lit_debias.models.loading import load_tokenizer
from lit_debias.rewards.reward import Reward
from lit_debias.rollout.engine import RolloutEngine
from lit_debias.rollout.local import LocalEngine
from lit_debias.support import distributed
from lit_debias.training.callbacks import RewardHackingAlarm
from lit_debias.training.callbacks.hacking import ALARMS, copied, dominance, mean_over, measure
from lit_debias.types import Experience, PromptBatch, Rollout, Scores

TOKENS = 12


def experience(texts, rewards=None, aggregator=None, texts_of_prompts=("p0", "p1"), lengths=None) -> Experience:
    """Return P x G completions with scores, and the advantages that the aggregator makes of them."""
    shape = (len(texts), len(texts[0]))
    lengths = torch.tensor(lengths) if lengths else torch.ones(shape, dtype=torch.long)
    mask = torch.arange(int(lengths.max())) < lengths[..., None]
    values = {name: torch.tensor(value) for name, value in (rewards or {"r": [[0.0] * shape[1]] * shape[0]}).items()}
    scores = Scores(values, {name: torch.ones(shape, dtype=torch.bool) for name in values})
    prompt = torch.zeros(shape[0], 1, dtype=torch.long)
    rollout = Rollout(
        prompts=PromptBatch(list(texts_of_prompts)[: shape[0]]),
        prompt_ids=prompt,
        prompt_mask=prompt.bool(),
        completion_ids=mask.long(),
        completion_mask=mask,
        logprobs=torch.zeros(mask.shape),
        truncated=torch.zeros(shape, dtype=torch.bool),
        texts=texts,
    )
    aggregator = aggregator or WeightedSum(dict.fromkeys(values, 1.0))
    return Experience(rollout, scores, aggregator(scores, 0), mask)


# -------------------------------------------------------------------- measures

TWO = {"a": [[1.0, 1.0, 0.0, 0.0]] * 2, "b": [[1.0, 0.0, 1.0, 0.0]] * 2}  # uncorrelated, of equal variance
FOUR = [["w", "x", "y", "z"]] * 2


@pytest.mark.parametrize(
    ("weights", "share"),
    [((1.0, 1.0), 0.5), ((2.0, 1.0), 0.8), ((1.0, 3.0), 0.1), ((1.0, 0.0), 1.0)],  # w^2 over the sum of w^2
)
@pytest.mark.parametrize("aggregator", [WeightedSum, lambda w: WeightedSum(w, scale="none"), GDPO])
def test_dominance_splits_the_variance_by_weight(weights, share, aggregator):
    found = dominance(experience(FOUR, TWO, aggregator(dict(zip("ab", weights, strict=True)))))
    assert found == pytest.approx({"dominance/a": share, "dominance/b": 1 - share}, abs=1e-6)


def test_dominance_of_one_reward_is_whole_even_if_the_groups_spread_differently():
    rewards = {"a": [[1.0, 1.0, 0.0, 0.0], [0.02, 0.0, 0.02, 0.0]], "b": [[0.5] * 4] * 2}
    assert dominance(experience(FOUR, rewards)) == pytest.approx({"dominance/a": 1.0, "dominance/b": 0.0}, abs=1e-6)


def test_rewards_that_say_the_same_share_and_none_dominates():
    rewards = {"a": TWO["a"], "b": TWO["a"]}
    assert dominance(experience(FOUR, rewards)) == pytest.approx({"dominance/a": 0.5, "dominance/b": 0.5})


@pytest.mark.parametrize("rewards", [{"a": TWO["a"]}, {"a": [[0.5] * 4] * 2, "b": [[0.1] * 4] * 2}])
def test_without_rivals_or_advantages_there_is_no_dominance(rewards):
    assert dominance(experience(FOUR, rewards)) == {}


def test_measures_by_hand():
    texts = [["a b c", "a b c"], ["I am unable to say", ""]]
    # pairs: ab bc ab bc, i-am am-unable unable-to to-say; six of eight differ. Trigrams of "a b c d": abc bcd
    found = measure(experience(texts, texts_of_prompts=("a b c d", "so I am unable, right"), lengths=[[3, 5], [5, 1]]))
    assert found == pytest.approx(
        {"length": 3.5, "distinct_2": 6 / 8, "duplicates": 1 / 4, "copying": (1 + 1 + 1 / 3) / 3, "refusals": 2 / 4}
        | {"numerals": 0.0}
    )


def test_numbers_are_counted_by_the_words_that_hold_a_digit():
    assert measure(experience([["in 1999 a 5th", "3,000 years"], ["none", ""]]))["numerals"] == pytest.approx(
        (2 / 4 + 2 / 3 + 0) / 3  # "3" and "000" are two words; an empty text has none
    )


def test_copied_counts_trigrams_of_the_completion():
    assert copied("the cat sat down", ["The cat sat on it", "cat sat", "no one, here"]) == [pytest.approx(1 / 3), 0.0]


def test_texts_without_words_have_neither_variety_nor_copies():
    assert set(measure(experience([["?", "!"]]))) == {"length", "duplicates", "refusals"}


@pytest.mark.parametrize(
    ("name", "now", "before", "reading"),
    [
        ("dominance", 0.8, 0.1, 0.8),
        ("length", 10.0, 40.0, 4.0),
        ("length", 40.0, 10.0, 4.0),
        ("distinct_2", 0.2, 0.8, 0.75),
        ("distinct_2", 0.2, 0.0, 0.0),
        ("duplicates", 0.5, 0.25, 0.25),
        ("judges", 0.5, 0.75, 0.25),
    ],
)
def test_readings_rise_with_what_is_bad(name, now, before, reading):
    assert ALARMS[name].reading(now, before) == pytest.approx(reading)


# -------------------------------------------------------------------- the callback


@pytest.fixture
def watch(monkeypatch, tiny_model, capsys):
    """Return a function that shows an alarm rollouts of given mean lengths, and returns what was printed and logged."""
    module, run = grpo(tiny_model), SimpleNamespace(is_global_zero=True, should_stop=False)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.__setitem__(name, value))

    def show(alarm, lengths):
        for length in lengths:
            module.experience = experience([["x"]], lengths=[[length]])
            module.rollout_step += 1
            alarm.on_train_batch_end(run, module, None, None, 0)
        return SimpleNamespace(lines=capsys.readouterr().err.splitlines(), logged=logged, stopped=run.should_stop)

    return show


def test_it_rings_once_with_the_step_the_value_and_the_bar_until_it_recovers(watch):
    alarm = RewardHackingAlarm(warmup=2, window=2)
    assert watch(alarm, [10, 10, 10]).logged == {}  # nothing to compare with yet
    assert watch(alarm, [5]).lines == []  # one odd rollout: the mean of the window is 7.5
    rung = watch(alarm, [3, 3, 3])
    assert rung.lines == [
        "alarm at rollout step 5: length 2.5 is above its bar 2; the mean tokens of a completion went from 10 to 4"
    ]
    assert rung.logged["alarms/length"] == pytest.approx(10 / 3)
    assert watch(alarm, [10, 10]).lines == []
    assert len(watch(alarm, [3, 3]).lines) == 1


def test_stopping_is_a_choice(watch):
    assert not watch(RewardHackingAlarm(warmup=1, window=1), [10, 1]).stopped
    stopped = watch(RewardHackingAlarm(warmup=1, window=1, stop=["length"]), [10, 1])
    assert stopped.stopped
    assert stopped.lines[-1] == "training stops at rollout step 4: RewardHackingAlarm.stop names 'length'"


def test_bars_move_and_silence(watch):
    assert watch(RewardHackingAlarm(warmup=1, window=1, bars={"length": 20.0}), [10, 1]).lines == []
    silent = watch(RewardHackingAlarm(warmup=1, window=1, bars=dict.fromkeys(ALARMS)), [10, 1])
    assert silent.lines == []
    assert "alarms/length" in silent.logged  # of the first run; the second one logs nothing


def test_all_ranks_judge_the_mean_over_ranks(watch, monkeypatch):
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: [mine, {"length": 10.0, "copying": 0.5}])
    alarm = RewardHackingAlarm(warmup=1, window=1)
    assert watch(alarm, [10, 1]).lines == []  # 10 and 1 on the two ranks: 5.5
    assert alarm.values["length"] == [10.0, 5.5]
    assert alarm.values["copying"] == [0.5, 0.5]
    assert mean_over([{"a": 1.0}, {"a": 2.0, "b": 3.0}]) == {"a": 1.5, "b": 3.0}


@pytest.mark.parametrize(
    ("reward", "judge", "reading"),
    [(0.1, 0.5, 0.0), (0.2, 0.5, 0.0), (0.3, 0.7, 0.1), (0.3, 0.9, -0.1)],  # after a reward of 0.2 and a judge at 0.8
)
def test_a_judge_is_compared_with_its_best_where_the_reward_rose(tiny_model, monkeypatch, reward, judge, reading):
    module, alarm, logged = grpo(tiny_model, judges={"j": Chance()}), RewardHackingAlarm(), []
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.append(value))
    for pair in ((0.1, 0.4), (0.2, 0.8), (reward, judge)):
        metrics = dict(zip(("eval_reward", "eval_judges/j/mean"), pair, strict=True))
        run = SimpleNamespace(callback_metrics=metrics, sanity_checking=False, is_global_zero=True)
        alarm.on_validation_epoch_end(run, module)
    assert logged == pytest.approx([0.0, -0.4, reading])
    assert alarm.ringing == ({"judges/j"} if reading > 0.05 else set())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ["lenght"]}, "no alarm 'lenght'; did you mean 'length'?"),
        ({"bars": {"refusal": 0.5}}, "no alarm 'refusal'; did you mean 'refusals'?"),
        ({"bars": {"length": 0.0}}, "the bar of 'length' is 0.0"),
        ({"bars": {"length": None}, "stop": ["length"]}, "stop names 'length', which bars silences"),
        ({"window": 0}, "write at least 1"),
    ],
)
def test_mistakes_are_found_at_once(options, message):
    with pytest.raises(UserError, match=message.replace("?", "\\?")):
        RewardHackingAlarm(**options)


# -------------------------------------------------------------------- real runs


class Short(Reward):
    """A reward that is easily hacked: say nothing."""

    def score(self, batch):
        return [1 - len(ids) / TOKENS for ids in batch.completion_ids]


class Long(Reward):
    def score(self, batch):
        return [len(ids) / TOKENS for ids in batch.completion_ids]


class OneToken(Reward):
    """Hacked by saying the same to everybody."""

    def __init__(self, token):
        self.token = token

    def score(self, batch):
        return [ids.count(self.token) / TOKENS for ids in batch.completion_ids]


class Chance(Reward):
    """Nothing that could be learned."""

    def score(self, batch):
        return [hashlib.sha256(text.encode()).digest()[0] / 255 for text in batch.completions]


def fit(model, prompts, folder, alarm, rewards, judges=None, ckpt=None, callbacks=(), engine=None, **options):
    module = grpo(
        model,
        rewards=rewards,
        judges=judges,
        engine=engine or LocalEngine(TOKENS),
        group_size=8,
        loss=DAPOLoss(),
        optimizer=lambda parameters: AdamW(parameters, lr=3e-2),
    )
    run = trainer(folder, **{"max_steps": 30, "max_epochs": -1, "callbacks": [alarm, *callbacks], **options})
    run.fit(module, PromptDataModule(str(prompts), batch_size=4, val_splits="train"), ckpt_path=ckpt, weights_only=True)
    return run, module


def test_a_hacked_reward_rings_and_stops_the_run(tiny_model, prompts, tmp_path, capsys):
    alarm = RewardHackingAlarm(warmup=2, window=2, stop=["length"])
    run, module = fit(tiny_model, prompts, tmp_path, alarm, {"short": Short()})
    printed = capsys.readouterr().err
    step = module.rollout_step
    assert step < 30
    assert f"alarm at rollout step {step}: length " in printed
    assert f"training stops at rollout step {step}: RewardHackingAlarm.stop names 'length'" in printed
    assert alarm.values["length"][-1] < 0.5 * alarm.values["length"][0]
    assert float(run.callback_metrics["alarms/length"]) > 2.0


def test_a_collapse_of_variety_rings_and_stops_the_run(tiny_model, prompts, tmp_path, capsys):
    token = load_tokenizer(str(tiny_model)).encode(" people", add_special_tokens=False)[0]
    alarm = RewardHackingAlarm(warmup=2, window=2, stop=["distinct_2"])
    run, module = fit(tiny_model, prompts, tmp_path, alarm, {"one": OneToken(token)})
    assert module.rollout_step < 30
    assert f"alarm at rollout step {module.rollout_step}: distinct_2 " in capsys.readouterr().err
    assert alarm.values["distinct_2"][-1] < 0.6 < alarm.values["distinct_2"][0]
    assert float(run.callback_metrics["rewards/one/mean"]) > 0.3


class Drifting(RolloutEngine):
    """Answers at first, and from the fourth rollout on what a policy does that has found a way out."""

    def __init__(self, way_out):
        super().__init__(TOKENS)
        self.way_out, self.calls = way_out, 0

    def generate(self, policy, prompts, group_size, seed, greedy=False):
        self.calls += 1
        answers = ["Work and evidence count here.", "Each person is different, I think."]
        said = [self.way_out(text) if self.calls > 3 else answers[self.calls % 2] for text in prompts.texts]
        return policy.encode(prompts, [[f"{text} {letter}" for letter in "abcdefgh"[:group_size]] for text in said])


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("copying", lambda prompt: prompt),
        ("numerals", lambda prompt: "3 4 5 6"),
        ("refusals", lambda prompt: "I'm sorry, but I cannot help with that."),
    ],
)
def test_a_run_that_drifts_into_a_way_out_rings_and_stops(tiny_model, prompts, tmp_path, capsys, name, way_out):
    alarm = RewardHackingAlarm(warmup=2, window=2, stop=[name])
    _, module = fit(tiny_model, prompts, tmp_path, alarm, {"chance": Chance()}, engine=Drifting(way_out))
    assert 3 < module.rollout_step < 8
    assert f"alarm at rollout step {module.rollout_step}: {name} " in capsys.readouterr().err
    assert alarm.values[name][-1] > 0.5
    assert max(alarm.values[name][:2]) < 0.1


def test_a_reward_that_teaches_nothing_rings_nothing(tiny_model, prompts, tmp_path, capsys):
    alarm = RewardHackingAlarm(warmup=2, window=2, bars={"numerals": 0.2})  # of a dozen words, which vary much
    run, module = fit(tiny_model, prompts, tmp_path, alarm, {"chance": Chance()}, max_steps=12)
    assert module.rollout_step == 12
    assert "alarm" not in capsys.readouterr().err
    names = ("length", "distinct_2", "duplicates", "copying", "numerals", "refusals")
    assert {f"alarms/{name}" for name in names} <= set(run.callback_metrics)


def test_a_judge_that_falls_while_the_reward_rises_rings(tiny_model, prompts, tmp_path, capsys):
    alarm = RewardHackingAlarm(bars={**dict.fromkeys(ALARMS), "judges": 0.5}, stop=["judges"])
    judges = {"long": Long(), "alike": Short()}
    validate = {"limit_val_batches": 1, "val_check_interval": 1, "num_sanity_val_steps": 1}
    run, module = fit(tiny_model, prompts, tmp_path, alarm, {"short": Short()}, judges, **validate)
    assert module.rollout_step < 30
    assert f"alarm at rollout step {module.rollout_step}: judges/long " in capsys.readouterr().err
    readings = {name: float(run.callback_metrics[f"alarms/judges/{name}"]) for name in judges}
    assert readings["long"] > 0.5
    assert readings["alike"] <= 0.0  # it rises with the reward
    best, reward_then = alarm.peaks["long"]
    assert best - readings["long"] == pytest.approx(float(run.callback_metrics["eval_judges/long/mean"]))
    assert reward_then < float(run.callback_metrics["eval_reward"])


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_memory_is_in_the_checkpoint(tiny_model, prompts, tmp_path):
    def run(max_steps, ckpt=None):
        alarm = RewardHackingAlarm(warmup=1, window=2, bars={"length": 1.001})
        keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
        options = {"max_steps": max_steps, "enable_checkpointing": True, "callbacks": [keep]}
        fit(tiny_model, prompts, tmp_path, alarm, {"short": Short()}, ckpt=ckpt, **options)
        return json.loads(json.dumps(alarm.state_dict()))

    whole = run(4)
    run(2)
    assert run(4, ckpt=tmp_path / "last.ckpt") == whole
    assert len(whole["values"]["length"]) == 3
    assert whole["ringing"]


def test_waiting_for_judges_that_are_not_there_is_a_mistake(tiny_model, prompts, tmp_path):
    with pytest.raises(UserError, match="stop names 'judges', and there are none"):
        fit(tiny_model, prompts, tmp_path, RewardHackingAlarm(stop=["judges"]), {"short": Short()})
