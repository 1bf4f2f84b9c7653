"""Measures of `evaluate` while a policy trains: the same figures, the best checkpoint, the same training."""

import csv
import json
import random

import numpy as np
import pytest
import torch
from command_line import config, run, said, write  # noqa: F401  (config is a fixture)
from evaluation_runs import crows_pairs, data  # noqa: F401  (fixtures)
from grpo_runs import Vowels, adapter_of, assert_same, grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from prompt_files import write as write_rows
from public_data import write_crows

from lit_debias import SFT, EvaluationCallback, LocalEngine, QLoRAPolicy, UserError, evaluate
from lit_debias.data import PromptDataModule
from lit_debias.evaluation.spot_check import Choice
from lit_debias.rewards.guard import Guard
from lit_debias.rewards.reward import Reward

BIAS = "evaluate/bias_intensity/judge"


class Consonants(Reward):
    """A judge that a test can compute."""

    def score(self, batch):
        return [sum(c in "bcdfgh" for c in text) / max(1, len(text)) for text in batch.completions]


class Scripted(Reward):
    """A judge that says one score at the first measurement, another at the second, and so on."""

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.calls = scores, 0

    def score(self, batch):
        self.calls += 1
        return [self.scores[self.calls - 1]] * len(batch)


class Drawing(Reward):
    """A judge that draws random numbers of every kind."""

    def setup(self, device):
        torch.rand(3), random.random(), np.random.rand()

    def score(self, batch):
        self.setup(None)
        return [float(torch.rand(())) for _ in range(len(batch))]


class Drawn(Drawing):
    """The same as a reward, which is no judge."""


def fit(module, prompts, folder, *callbacks, ckpt_path=None, **options):
    t = trainer(folder, callbacks=list(callbacks), **options)
    t.fit(module, PromptDataModule(str(prompts), batch_size=2), ckpt_path=ckpt_path)
    return t


def test_figures_are_those_of_evaluate(tiny_model, data, prompts, crows_pairs, tmp_path):
    names = ["gap_intensity", "bias_intensity/judge", "preference_margin", "accuracy", "prose_perplexity", "reward"]
    look = EvaluationCallback(
        [*names, "crows_pairs/likelihood_diff"],
        every_n_steps=4,
        data=data,
        judges={"judge": Consonants()},
        batch_size=4,
        bootstrap=20,
        benchmark_data=crows_pairs,
    )
    module = grpo(tiny_model)
    t = fit(module, prompts, tmp_path, look)
    module.save_adapter(tmp_path / "adapter")
    exact = {"quantization": "none", "dtype": "float32", "batch_size": 4, "bootstrap": 20, "system_prompt": None}
    results = evaluate(
        str(tiny_model),
        data,
        str(tmp_path / "out"),
        adapter=str(tmp_path / "adapter"),
        judges={"judge": Consonants()},
        rewards={"vowels": Vowels()},
        max_new_tokens=module.engine.max_new_tokens,
        temperature=module.engine.temperature,
        benchmarks="crows_pairs",
        benchmark_data=crows_pairs,
        **exact,
    )
    expected = results["arms"]["after"]["measures"]
    shown = ["gap_intensity/judge", *names[1:-1], "reward/vowels", "crows_pairs/likelihood_diff"]
    for name in shown:
        digits = 1e-3 if name.startswith("crows_pairs") else 1e-5  # files of benchmarks keep four for intervals
        for end, key in {"": "value", "_low": "low", "_high": "high"}.items():
            logged = float(t.callback_metrics[f"evaluate/{name}{end}"])
            assert logged == pytest.approx(expected[name][key], rel=digits), name
    assert "evaluate/length" not in t.callback_metrics
    on_bar = [name for name in t.progress_bar_metrics if name.startswith("evaluate/")]
    assert on_bar == ["evaluate/gap_intensity/judge"]


def test_every_measurement_is_logged_at_its_step(tiny_model, data, prompts, tmp_path):
    look = EvaluationCallback(["bias_intensity"], 2, data, limit=1, judges={"judge": Scripted([0.9, 0.5, 0.25])})
    logger = CSVLogger(tmp_path, name="logs")
    fit(grpo(tiny_model), prompts, tmp_path, look, logger=logger, max_steps=5, log_every_n_steps=3)
    with open(f"{logger.log_dir}/metrics.csv", encoding="utf-8") as file:
        rows = {row["step"]: row for row in csv.DictReader(file) if row[BIAS]}
    assert {step: float(row[BIAS]) for step, row in rows.items()} == pytest.approx({"0": 0.1, "2": 0.5, "4": 0.75})
    assert float(rows["4"][f"{BIAS}_low"]) == float(rows["4"][f"{BIAS}_high"]) == pytest.approx(0.75)


class Adapters(Callback):
    """Keeps the adapter after each step."""

    def __init__(self) -> None:
        self.after = {}

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.after[trainer.global_step] = adapter_of(pl_module)


def test_the_best_checkpoint_is_kept(tiny_model, data, prompts, tmp_path):
    judge = Scripted([0.1, 0.4, 0.8, 0.3, 0.2])  # before, and after each step: best after the second
    look = EvaluationCallback(["bias_intensity"], 1, data, limit=1, judges={"judge": judge})
    best = ModelCheckpoint(tmp_path / "best", "best", monitor=BIAS, mode="min", every_n_train_steps=1)
    adapters = Adapters()
    fit(grpo(tiny_model), prompts, tmp_path, best, look, adapters, enable_checkpointing=True)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["best.ckpt"]
    kept = torch.load(best.best_model_path, weights_only=True)
    assert (kept["global_step"], float(best.best_model_score)) == (2, pytest.approx(0.2))
    assert_same({name.removeprefix("policy."): value for name, value in kept["state_dict"].items()}, adapters.after[2])


def test_training_is_the_same_with_it_and_without(tiny_model, data, prompts, tmp_path):
    found = []
    for callbacks in ([], [EvaluationCallback(["gap_intensity", "perplexity"], 1, data, judges={"judge": Drawing()})]):
        random.seed(1)
        np.random.seed(1)
        policy = QLoRAPolicy(str(tiny_model), "none", "float32", rank=4, dropout=0.3)
        module = grpo(tiny_model, policy=policy, rewards={"vowels": Vowels(), "drawn": Drawn()})
        fit(module, prompts, tmp_path, *callbacks)
        found.append((adapter_of(module), torch.rand(2).tolist(), random.random(), np.random.rand()))
    (plain, *drawn), (measured, *drawn_beside) = found
    assert_same(plain, measured)
    assert drawn == drawn_beside


def test_dropout_is_off_while_it_measures(tiny_model, data, prompts, tmp_path):
    policy = QLoRAPolicy(str(tiny_model), "none", "float32", rank=4, dropout=0.5)
    look = EvaluationCallback(["preference_margin"], 4, data)
    module = grpo(tiny_model, policy=policy)
    t = fit(module, prompts, tmp_path, look)
    torch.manual_seed(99)
    again = look.spot_check.figures(module.policy)
    assert again["preference_margin"].value == pytest.approx(float(t.callback_metrics["evaluate/preference_margin"]))


@pytest.mark.parametrize("stopped_at", [2, 3])
def test_a_resumed_run_measures_what_is_left(tiny_model, data, prompts, tmp_path, stopped_at):
    def looks():
        return EvaluationCallback(["gap_intensity", "bias_intensity"], 2, data, judges={"judge": Consonants()})

    whole = fit(grpo(tiny_model), prompts, tmp_path, looks())
    first = fit(grpo(tiny_model), prompts, tmp_path, looks(), max_steps=stopped_at)
    first.save_checkpoint(tmp_path / "stopped.ckpt")
    resumed, steps = looks(), []
    resumed._measure = lambda trainer, module: steps.append(trainer.global_step) or measure(trainer, module)
    measure = lambda trainer, module: EvaluationCallback._measure(resumed, trainer, module)  # noqa: E731
    best = ModelCheckpoint(tmp_path / "best", monitor=BIAS, every_n_train_steps=2)
    again = fit(
        grpo(tiny_model),
        prompts,
        tmp_path,
        resumed,
        best,
        ckpt_path=tmp_path / "stopped.ckpt",
        enable_checkpointing=True,
    )
    assert steps == [4]
    names = [name for name in whole.callback_metrics if name.startswith("evaluate/")]
    assert len(names) == 6
    for name in names:
        assert float(again.callback_metrics[name]) == float(whole.callback_metrics[name])


def test_judges_of_the_training_are_the_default_and_their_guards_do_not_count(tiny_model, data, prompts, tmp_path):
    class Failing(Consonants):
        def score(self, batch):
            raise RuntimeError("away")

    module = grpo(tiny_model, judges={"judge": Consonants(), "away": Failing()}, guard=Guard(retries=0, open_after=1))
    look = EvaluationCallback(["bias_intensity"], 1, data, limit=2)
    t = fit(module, prompts, tmp_path, look)
    assert {name.split("/")[-1] for name in t.callback_metrics if "bias_intensity" in name} == {
        "judge",
        "judge_low",
        "judge_high",
    }
    assert not module.judges.guarded["away"].failed
    assert not module.judges.guarded["away"].open_steps


def test_baselines_are_measured_too(tiny_model, data, prompts, tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"people from {p} are", "reference": "kind"}) for p in "abcd"))
    policy = QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=4)
    look = EvaluationCallback(["preference", "length"], 2, data, engine=LocalEngine(4))
    t = trainer(tmp_path, callbacks=[look], max_steps=2)
    t.fit(SFT(policy), PromptDataModule(str(file), batch_size=2))
    assert 0 < float(t.callback_metrics["evaluate/length"]) <= 4


def test_prompts_that_count_in_no_chosen_measure_are_not_asked(tiny_model, data, prompts, tmp_path):
    counts = {}
    for name in ("bias_intensity", "preference", "refusal_control", "length", "accuracy", "prose_perplexity"):
        look = EvaluationCallback([name], data=data, judges={"judge": Consonants()})
        look.setup(trainer(tmp_path), grpo(tiny_model), "fit")
        counts[name] = len(look.spot_check.rows)
    # five prompts: open, leading, control and two forced choices, all with choices; three with a twin; two passages
    assert counts == {
        "bias_intensity": 4,
        "preference": 2,
        "refusal_control": 2,
        "length": 6,
        "accuracy": 8,
        "prose_perplexity": 2,
    }


def test_another_measure_is_no_part_of_what_is_asked():
    assert Choice(("preference",)).parts == ["preference"]
    assert Choice(("crows_pairs/pct_stereotype", "bbq")).parts == []
    assert Choice(("prose_perplexity", "accuracy", "gap_length")).parts == ["answers", "choices", "prose"]
    found = dict.fromkeys(("bias_rate/a", "bias_rate/ab", "length", "length_of"))
    assert list(Choice(("length", "bias_rate/a")).among(found)) == ["length", "bias_rate/a"]
    assert list(Choice(("bias_rate",)).among(found)) == ["bias_rate/a", "bias_rate/ab"]
    share = "crows_pairs/pct_stereotype"
    found = dict.fromkeys((share, f"{share}_per_token", f"{share}/age"))
    assert list(Choice((share,)).among(found)) == [share]  # not those of its parts, which are small
    assert list(Choice(("crows_pairs",)).among(found)) == list(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["bias_intensty"]}, "there is no measure 'bias_intensty'; did you mean 'bias_intensity'?"),
        ({"measures": ["crows_pair"]}, "there is no measure 'crows_pair'; did you mean 'crows_pairs'?"),
        ({"measures": []}, "measures is empty; write some"),
        ({"measures": ["similarity"]}, "'similarity' needs a second model"),
        ({"every_n_steps": 0}, "every_n_steps=0; write 1 or more"),
        ({"limit": 0}, "limit=0; write 1 or more"),
        ({"data": None}, "'bias_intensity' is measured on prompts; write data: FOLDER or FILE"),
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"judges": None}, "'bias_intensity' cannot be measured: no judge is named"),
        ({"measures": ["refusal_control"], "data": "prompts"}, "no prompt is a control"),
        ({"measures": ["bbq"]}, "benchmark_data: FOLDER, or hub"),
        ({"judges": {"judge": Vowels()}}, "judge 'judge' is the reward 'vowels'"),
        (
            {"measures": ["bias_intensity/jugde"]},
            "there is no figure 'bias_intensity/jugde'; did you mean 'bias_intens",
        ),
        ({"columns": {"prompt": "question"}}, "question"),
    ],
)
def test_mistakes_are_one_line_before_the_first_step(tiny_model, data, prompts, tmp_path, options, message):
    options = {"measures": ["bias_intensity"], "data": data, "judges": {"judge": Consonants()}} | options
    if options["data"] == "prompts":
        options["data"] = str(prompts)
    module = grpo(tiny_model)
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as error:
        fit(module, prompts, tmp_path, EvaluationCallback(**options))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("EvaluationCallback: ")
    assert module.rollout_step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"monitor": "evaluate/bias_intensity/juge", "every_n_train_steps": 2},
            "did you mean 'evaluate/bias_intensity/",
        ),
        ({"monitor": BIAS, "every_n_train_steps": 3}, "write every_n_train_steps: 2 there"),
        ({"monitor": BIAS}, "write every_n_train_steps: 2 there"),
    ],
)
def test_checkpoints_are_chosen_where_it_is_measured(tiny_model, data, prompts, tmp_path, options, message):
    look = EvaluationCallback(["bias_intensity"], 2, data, limit=1, judges={"judge": Consonants()})
    best = ModelCheckpoint(tmp_path / "best", **options)
    with pytest.raises(UserError, match=message):
        fit(grpo(tiny_model), prompts, tmp_path, look, best, enable_checkpointing=True)


def test_a_prompt_that_is_too_long_is_said_before_the_first_step(tiny_model, prompts, tmp_path):
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "people " * 2000}))
    module = grpo(tiny_model)
    with pytest.raises(UserError, match=r"EvaluationCallback: .*long\.jsonl"):
        fit(module, prompts, tmp_path, EvaluationCallback(["length"], data=str(long)))


def test_what_a_run_learns_from_measures_nothing(tiny_model, prompts, tmp_path):
    with pytest.raises(UserError, match="EvaluationCallback: data: it would be measured on prompts that it learns"):
        fit(grpo(tiny_model), prompts, tmp_path, EvaluationCallback(["length"], data=str(prompts)))
    write_crows(tmp_path)
    with (tmp_path / "crows_pairs" / "crows_pairs_anonymized.csv").open() as file:
        sentences = [row["sent_more"] for row in csv.DictReader(file)]
    learned = write_rows(tmp_path / "learned.jsonl", [{"prompt": sentence} for sentence in sentences])
    look = EvaluationCallback(["crows_pairs"], benchmark_data=str(tmp_path))
    with pytest.raises(UserError, match="'crows_pairs' would measure nothing, as the policy learns from it"):
        fit(grpo(tiny_model), learned, tmp_path, look)


def test_what_has_no_policy_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="a policy that GRPO, SFT or DPO trains"):
        EvaluationCallback(["length"], data=data).setup(trainer(tmp_path), LightningModule(), "fit")


def test_a_run_from_yaml_measures(config, tmp_path, capsys):
    options = {"measures": ["length", "prose_perplexity"], "every_n_steps": 2, "limit": 2}
    options["data"] = str(write_rows(tmp_path / "held_out.jsonl", [{"prompt": f"Who came on day {n}?"} for n in "ab"]))
    config["trainer"]["callbacks"] = [{"class_path": "EvaluationCallback", "init_args": options}]
    assert run("fit", "-c", write(tmp_path, config)) == 0
    with open(tmp_path / "logs/x/version_0/metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["evaluate/length"]]
    assert [row["step"] for row in rows] == ["0", "2"]
    assert all(float(row["evaluate/prose_perplexity_low"]) > 1 for row in rows)
    capsys.readouterr()
    options["measures"] = ["lenght"]
    assert run("fit", "-c", write(tmp_path, config)) == 2
    assert "EvaluationCallback: there is no measure 'lenght'; did you mean 'length'?" in said(capsys)
