"""SFT and DPO: what is trained, bad data, resumption, and real runs from YAML."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from grpo_runs import InterruptAt, Interruption, adapter_of, assert_same, baseline, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from support import loaded, perturb
from torch.optim import SGD

from lit_debias.cli.main import main
from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.training.baseline import responses
from lit_debias.training.dpo import DPO
from lit_debias.training.sft import SFT
from lit_debias.types import PromptBatch

ROWS = [
    {"prompt": f"people from {place} are", "reference": f"each person in {place}", "biased": "usually kind because"}
    for place in "abcdef"
]
BATCH = PromptBatch(
    ["people", "the rider was late"], {"reference": ["kind", "each person should"], "biased": ["late because", "no"]}
)


def write(file: Path, rows) -> PromptDataModule:
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return PromptDataModule(str(file), batch_size=3, val_splits="train")


@pytest.fixture
def data(tmp_path) -> PromptDataModule:
    return write(tmp_path / "pairs.jsonl", ROWS)


def log_probs(policy, prompt: str, answer: str) -> torch.Tensor:
    """Log-probs of the answer and the end of sequence, one sequence alone, from Hugging Face's own logits."""
    before = policy.encode_prompts([prompt])[0][0]
    tokens = [*policy.tokenizer.encode(answer, add_special_tokens=False), policy.tokenizer.eos_token_id]
    ids = torch.tensor(tokens)
    logits = policy.causal_lm(torch.cat([before, ids])[None]).logits[0, len(before) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def losses_and_gradient(module, prompts):
    lesson = module._encode(prompts)
    parts = [module._part(lesson, groups) for groups in module._micro_batches(lesson)]
    sum(loss for loss, _ in parts).backward()
    gradient = {name: p.grad.clone() for name, p in module.policy.trainable_parameters().items()}
    module.policy.zero_grad()
    return parts, gradient


def test_sft_is_the_mean_over_all_tokens_of_the_batch_and_the_end_is_one_of_them(tiny_model):
    module = baseline(SFT, tiny_model, micro_batch_tokens=1)
    perturb(module.load_policy())
    parts, found = losses_and_gradient(module, BATCH)
    alone = [log_probs(module.policy, p, r) for p, r in zip(BATCH.texts, BATCH.columns["reference"], strict=True)]
    expected = -torch.cat(alone).mean()  # not the mean of two means: the second response is longer
    assert sum(measured["loss"] for _, measured in parts) == pytest.approx(expected.item(), rel=1e-5)
    assert sum(measured["num_tokens"] for _, measured in parts) == sum(map(len, alone))
    assert len(parts) == 2
    expected.backward()
    for name, parameter in module.policy.trainable_parameters().items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("sft_weight", [0.0, 0.5])
def test_dpo_compares_whole_responses_with_the_base(tiny_model, sft_weight):
    module = baseline(DPO, tiny_model, beta=0.3, sft_weight=sft_weight, micro_batch_tokens=1)
    policy = module.load_policy()
    before, _ = losses_and_gradient(module, BATCH)
    if not sft_weight:
        assert sum(measured["loss"] for _, measured in before) == pytest.approx(math.log(2))  # no margin yet
    bases = [[log_probs(policy, p, BATCH.columns[c][i]).sum().detach() for c in module.columns]
             for i, p in enumerate(BATCH.texts)]  # fmt: skip
    perturb(policy)
    parts, found = losses_and_gradient(module, BATCH)
    expected = torch.tensor(0.0)
    for i, prompt in enumerate(BATCH.texts):
        good, bad = (log_probs(policy, prompt, BATCH.columns[column][i]) for column in ("reference", "biased"))
        margin = 0.3 * ((good.sum() - bases[i][0]) - (bad.sum() - bases[i][1]))
        expected = expected + (torch.log1p(torch.exp(-margin)) - sft_weight * good.mean()) / 2
    assert sum(measured["loss"] for _, measured in parts) == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    for name, parameter in policy.trainable_parameters().items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cls", [SFT, DPO])
def test_micro_batches_change_nothing(tiny_model, data, tmp_path, cls):
    adapters = []
    for size in (4096, 1):
        module = baseline(
            cls, tiny_model, micro_batch_tokens=size, optimizer=lambda parameters: SGD(parameters, lr=1.0)
        )
        trainer(tmp_path, max_steps=2).fit(module, data)
        adapters.append(adapter_of(module))
    for name, value in adapters[0].items():
        torch.testing.assert_close(value, adapters[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("cls", [SFT, DPO])
def test_resuming_gives_bitwise_the_same_adapter(tiny_model, tmp_path, cls):
    def run(folder, ckpt=None, callbacks=()):
        module = baseline(cls, tiny_model)
        keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_on_exception=True)
        t = trainer(folder, max_steps=5, max_epochs=-1, enable_checkpointing=True, callbacks=[keep, *callbacks])
        t.fit(module, write(tmp_path / "pairs.jsonl", ROWS), ckpt_path=ckpt, weights_only=True)  # 2 batches an epoch
        return adapter_of(module)

    undisturbed = run(tmp_path / "whole")
    with pytest.raises(Interruption):
        run(tmp_path / "broken", callbacks=[InterruptAt(3)])
    saved = torch.load(tmp_path / "broken/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert set(saved["state_dict"]) == {f"policy.{name}" for name in undisturbed}
    assert_same(undisturbed, run(tmp_path / "broken", ckpt=tmp_path / "broken/last.ckpt"))


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (SFT, {"loss", "entropy", "num_tokens", "grad_norm", "step_time"}),
        (DPO, {"loss", "logps/chosen", "logps/rejected", *(f"rewards/{x}" for x in
               ("chosen", "rejected", "accuracies", "margins"))}),
    ],
)  # fmt: skip
def test_a_run_learns_and_logs_under_trls_names(tiny_model, data, tmp_path, cls, names):
    module = baseline(cls, tiny_model)
    logger = CSVLogger(tmp_path)
    t = trainer(tmp_path, max_steps=12, max_epochs=-1, logger=logger, limit_val_batches=1, val_check_interval=2)
    t.fit(module, data)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert names <= {name for name, value in rows[-1].items() if value}
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    assert {f"eval_{name}" for name in names - {"grad_norm", "step_time"}} <= set(t.callback_metrics)
    assert cls is SFT or float(rows[-1]["rewards/accuracies"]) == 1.0


def test_a_response_that_was_learned_ends(tiny_model, tmp_path):
    from lit_debias.rollout.local import LocalEngine

    module = baseline(SFT, tiny_model)
    row = {"prompt": "people are", "reference": "kind"}
    trainer(tmp_path, max_steps=40, max_epochs=-1).fit(module, write(tmp_path / "one.jsonl", [row] * 3))
    rollout = LocalEngine(12).generate(module.policy, PromptBatch(["people are"]), 1, seed=0, greedy=True)
    assert rollout.texts == [["kind"]]
    assert not rollout.truncated.any()


@pytest.mark.parametrize(
    ("cls", "rows", "message"),
    [
        (SFT, [{"prompt": "a"}] * 3, "no column 'reference'"),
        (DPO, [{"prompt": "a", "reference": "b"}] * 3, "no column 'biased'"),
        (
            DPO,
            [*ROWS, {"prompt": "who?", "reference": "b", "biased": None}],
            "row 7: 'biased' is None, and prompt 'who",
        ),
        (
            SFT,
            [*ROWS, {"prompt": "who?", "reference": " ", "biased": "x"}],
            "row 7: 'reference' is ' ', and prompt 'who",
        ),
    ],
)
def test_bad_data_is_refused_before_a_model_is_loaded(tiny_model, tmp_path, cls, rows, message):
    module = baseline(cls, tiny_model)
    with pytest.raises(UserError, match=message):
        trainer(tmp_path).fit(module, write(tmp_path / "bad.jsonl", rows))
    assert not module.is_loaded


def test_sft_needs_no_biased_response_and_kinds_leave_rows_out(tiny_model, tmp_path):
    rows = [{**row, "biased": None, "prompt_kind": "open"} for row in ROWS]
    rows.append({"prompt": "x", "reference": None, "biased": None, "prompt_kind": "control"})
    data = write(tmp_path / "kinds.jsonl", rows)
    data.prompt_kinds = ["open"]
    module = baseline(SFT, tiny_model)
    trainer(tmp_path, max_steps=1).fit(module, data)
    assert module.global_step == 1


def test_responses_keep_the_order_of_the_columns():
    assert responses(BATCH, ("biased", "reference")) == [["late because", "kind"], ["no", "each person should"]]


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (DPO, {"beta": 0.0}, "beta is 0.0"),
        (DPO, {"sft_weight": -1.0}, "sft_weight is -1.0"),
        (DPO, {"sft_weight": math.inf}, "sft_weight is inf"),
        (DPO, {"loss": "hinge"}, "loss is 'hinge'; write sigmoid or ipo"),
        (DPO, {"label_smoothing": 0.5}, "label_smoothing is 0.5; write a number from 0 to below 0.5"),
        (DPO, {"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        (DPO, {"loss": "ipo", "label_smoothing": 0.1}, "is for loss: sigmoid, and the loss is ipo"),
        (SFT, {"micro_batch_tokens": 0}, "must be positive"),
        (SFT, {"max_grad_norm": 0.0}, "must be positive"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(tiny_model, cls, options, message):
    with pytest.raises(UserError, match=message):
        baseline(cls, tiny_model, **options)


def test_a_model_without_an_end_of_sequence_token_cannot_be_trained(tiny_model):
    policy = loaded(tiny_model)
    policy.eos_token_ids = ()
    with pytest.raises(UserError, match="no end-of-sequence token"):
        policy.encode(BATCH, [["a"], ["b"]], end=True)


@pytest.mark.filterwarnings("ignore:.*logging interval:")
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_the_demo_configurations_train_and_export(tiny_model, tmp_path, monkeypatch, name):
    from peft import PeftConfig

    file = Path(__file__).parents[2] / "configs" / f"demo_{name}.yaml"
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", [{**row, "prompt_kind": kind} for row in ROWS for kind in ("open", "leading")])
    options = ["--trainer.max_steps", "1", "--model.policy.model", str(tiny_model), "--data.path", "pairs.jsonl"]
    assert main(["fit", "-c", str(file), *options]) == 0
    assert PeftConfig.from_pretrained(f"runs/demo/{name}/adapter").r == 16
    assert list(Path(f"runs/demo/{name}/logs").rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore:.*logging interval:")
def test_the_recipe_for_biasdpo_leaves_out_pairs_without_a_difference(tiny_model, tmp_path, monkeypatch):
    file = Path(__file__).parents[2] / "configs" / "biasdpo.yaml"
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": row["prompt"], "chosen": row["reference"], "rejected": row["biased"]} for row in ROWS]
    rows[2]["rejected"] = rows[2]["chosen"]
    Path("biasdpo.csv").write_text("\n".join(["prompt,chosen,rejected", *(",".join(row.values()) for row in rows)]))
    options = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--data.path", "biasdpo.csv"]
    policy = ["--model.policy.model", str(tiny_model), "--model.policy.dtype", "float32"]
    lines: list[str] = []
    monkeypatch.setattr("lit_debias.data.prompt_data.rank_zero_info", lines.append)
    assert main(["fit", "-c", str(file), *options, *policy, "--data.batch_size", "5"]) == 0
    left_out = "1 of 6 rows left out, as 'reference' and 'biased' are the same text"
    assert lines == [f"Data 'biasdpo.csv', train: {left_out}."]
    record = json.loads(Path("runs/biasdpo/adapter/lit_debias.json").read_text())["training"][-1]
    assert record["data"]["rows"] == 5
    assert record["data"]["changes"] == [left_out]
    assert record["settings"]["loss"] == "sigmoid with beta 0.1"


def test_weights_multiply_the_loss_of_a_prompt(tiny_model):
    prompts = PromptBatch(BATCH.texts, {**BATCH.columns, "skew_weight": [0.5, "2.0"]})
    module = baseline(SFT, tiny_model, weights="skew_weight", micro_batch_tokens=1)
    perturb(module.load_policy())
    parts, found = losses_and_gradient(module, prompts)
    alone = [log_probs(module.policy, p, r) for p, r in zip(BATCH.texts, BATCH.columns["reference"], strict=True)]
    expected = -(0.5 * alone[0].sum() + 2 * alone[1].sum()) / sum(map(len, alone))
    assert sum(measured["loss"] for _, measured in parts) == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, parameter in module.policy.trainable_parameters().items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "weights is 'skew_weight', and the data has no such column"),
        ({"skew_weight": -1}, "row 1: 'skew_weight' is -1; write a number from 0 up"),
        ({"skew_weight": "heavy"}, "'skew_weight' is 'heavy'; write a number from 0 up"),
    ],
)
def test_wrong_weights_are_refused_before_a_model_is_loaded(tiny_model, tmp_path, values, message):
    module = baseline(SFT, tiny_model, weights="skew_weight")
    with pytest.raises(UserError, match=message):
        trainer(tmp_path).fit(module, write(tmp_path / "bad.jsonl", [{**row, **values} for row in ROWS]))
    assert not module.is_loaded


@pytest.mark.parametrize("options", [{"augment": "cda"}, {"balance": "skew"}])
def test_changed_rows_are_trained_on(tiny_model, tmp_path, options):
    rows = [{**row, "prompt": f"he asked: {row['prompt']}", "concept": "c", "group": n % 3 and "a"}
            for n, row in enumerate(ROWS)]  # fmt: skip
    rows = [{**row, "group": row["group"] or "b"} for row in rows]
    write(tmp_path / "rows.jsonl", rows)
    data = PromptDataModule(str(tmp_path / "rows.jsonl"), batch_size=2, val_splits="train", **options)
    module = baseline(SFT, tiny_model, weights="skew_weight" if "balance" in options else None)
    trainer(tmp_path, max_steps=1).fit(module, data)
    assert module.global_step == 1
    assert data.changes
    assert module.training_record()["data"]["rows"] == len(data.rows["train"])


def test_the_baselines_are_compared_on_the_same_prompts_and_the_demo_continues_dpo():
    configs = Path(__file__).parents[2] / "configs"
    demo, sft, dpo = (
        yaml.safe_load((configs / f"{name}.yaml").read_text()) for name in ("demo", "demo_sft", "demo_dpo")
    )
    assert sft["data"] == dpo["data"] == demo["data"]
    assert sft["trainer"]["max_steps"] == dpo["trainer"]["max_steps"]
    policies = [config["model"]["init_args"]["policy"]["init_args"] for config in (demo, sft, dpo)]
    assert policies[1] == policies[2]
    assert {name: policies[0][name] for name in ("model", "quantization")} == {
        name: policies[1][name] for name in ("model", "quantization")
    }
    adapter = next(c for c in dpo["trainer"]["callbacks"] if c["class_path"] == "AdapterExport")["init_args"]["out"]
    assert policies[0]["adapter"] == adapter
