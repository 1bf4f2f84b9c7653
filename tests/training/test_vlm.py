"""GRPO, DPO and SFT on drawn pictures: the colour is the group, the shape a concept, twins differ in colour."""

from collections import defaultdict

import pytest
import torch
import yaml
from command_line import run
from command_line import said as said_by_command
from grpo_runs import InterruptAt, Interruption, Vowels, adapter_of, assert_same, trainer
from peft import PeftModel
from seeing_models import SAVERS, SHAPES, save_twins
from torch.optim import AdamW
from transformers import AutoModelForImageTextToText

from lit_debias.aggregators import WeightedSum
from lit_debias.data import PromptDataModule
from lit_debias.data.images import Images
from lit_debias.errors import UserError
from lit_debias.export.record import read_record
from lit_debias.grpo.loss import DAPOLoss
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.policy.vlm import VLMPolicy
from lit_debias.rewards.reward import Reward
from lit_debias.rollout.engine import RolloutEngine
from lit_debias.rollout.local import LocalEngine
from lit_debias.support.skew import extremes
from lit_debias.training.dpo import DPO
from lit_debias.training.grpo import GRPO
from lit_debias.training.sft import SFT

SAID = {"red": "k", "blue": "l"}
"""What a biased model answers to a picture of each colour, a token."""
OTHER = {"red": "blue", "blue": "red"}


class SaysTheSame(Reward):
    """Share of the answers to the twin that say what an answer says: low where it depends on the colour."""

    columns = ("twin_id", "group", "images")
    depends_on_batch = True

    def score(self, batch):
        twins, groups, files = (batch.columns[name] for name in self.columns)
        assert all(file.startswith(group) for file, group in zip(files, groups, strict=True))
        answers = defaultdict(list)
        for twin, group, completion in zip(twins, groups, batch.completions, strict=True):
            answers[twin, group].append(completion)
        others = [answers[twin, OTHER[group]] for twin, group in zip(twins, groups, strict=True)]
        return [other.count(said) / len(other) for other, said in zip(others, batch.completions, strict=True)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing")
    return {name: save(folder / name) for name, save in SAVERS.items()}


@pytest.fixture(params=SAVERS)
def model(request, models):
    return models[request.param]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    own, other = (lambda colour, _: SAID[colour]), (lambda colour, _: SAID[OTHER[colour]])
    return save_twins(folder, reference=own, biased=other)


def data(file, **options):
    return PromptDataModule(str(file), images=Images(), val_splits=None, batch_size=4, seed=0, **options)


def policy(model, **options):
    torch.manual_seed(7)  # LoRA's A
    return VLMPolicy(str(model), "none", "float32", rank=8, **options)


def adam(lr):
    return lambda parameters: AdamW(parameters, lr=lr)


def grpo(model, **options):
    defaults = {
        "engine": LocalEngine(4),
        "group_size": 4,
        "optimizer": adam(1e-2),
        "loss": DAPOLoss(beta=0.02),
        "seed": 0,
    }
    seeing = options.pop("policy", None) or policy(model)
    rewards = options.pop("rewards", {"same": SaysTheSame(), "vowels": Vowels()})
    weights = WeightedSum(dict.fromkeys(rewards, 1.0))
    return GRPO(seeing, rewards, weights, **{**defaults, **options})


def all_rows(module):
    rows = module.trainer.datamodule.rows["train"]
    return module.trainer.datamodule.collate({name: list(rows[name]) for name in rows.column_names})


@torch.no_grad()
def skew(module):
    """Return MinSkew and MaxSkew of the colours in what is answered, of which each shape is a concept."""
    prompts = all_rows(module)
    rollout = module.policy.encode(prompts, [list(SAID.values())] * len(prompts))
    likelihoods = module.policy.logprobs(rollout).sum(-1).exp()
    shares = {}
    for answer, values in zip(SAID.values(), likelihoods.T, strict=True):
        for shape in SHAPES:
            columns = zip(prompts.columns["concept"], prompts.columns["group"], values.tolist(), strict=True)
            of_groups = {group: value for concept, group, value in columns if concept == shape}
            total = sum(of_groups.values())
            shares[f"{answer} {shape}"] = {group: value / total for group, value in of_groups.items()}
    return extremes(shares)


# -------------------------------------------------------------------- what is learned


def test_grpo_takes_the_bias_away_that_sft_has_taught(models, pictures, tmp_path):
    model = models["qwen2_vl"]
    biased = SFT(policy(model), optimizer=adam(2e-2), seed=0)
    trainer(tmp_path, max_steps=12).fit(biased, data(pictures))
    biased.save_adapter(tmp_path / "biased")
    low, high = skew(biased)
    assert low < -2  # nats: k is said of red, and l of blue
    assert high > 0.6  # of at most log 2
    fair = grpo(
        model,
        policy=policy(model, adapter=str(tmp_path / "biased")),
        rewards={"same": SaysTheSame()},
        engine=LocalEngine(1),
        group_size=8,
        loss=DAPOLoss(),
    )
    trainer(tmp_path, max_steps=8).fit(fair, data(pictures, twins=True))
    now_low, now_high = skew(fair)
    assert now_low > -0.5
    assert now_high < 0.2


def test_dpo_lowers_its_loss(model, pictures, tmp_path):
    module = DPO(policy(model), optimizer=adam(1e-2), seed=0)
    losses = []
    module._log = lambda values, shown=(): losses.append(values["loss"])
    trainer(tmp_path, max_steps=4).fit(module, data(pictures))
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)  # log 2: the policy is its reference
    assert losses[-1] < losses[1] < 0.69


# -------------------------------------------------------------------- steps, checkpoints, folders


def test_steps_are_resumed_between_inner_epochs_with_their_pictures(models, pictures, tmp_path):
    model = models["qwen2_vl"]

    def fit(folder, **options):
        module = grpo(model, inner_epochs=2)
        callbacks = options.pop("callbacks", [])
        run_of = trainer(folder, callbacks=callbacks, max_epochs=-1)
        run_of.fit(module, data(pictures, twins=True), **options)
        return module

    whole = fit(tmp_path)
    assert whole.trainer.global_step == 4
    assert whole.experience.rollout.pictures is not None
    assert float(whole.trainer.callback_metrics["sampling/sampling_logp_difference/max"]) < 1e-4
    broken = grpo(model, inner_epochs=2)
    run_of = trainer(tmp_path, callbacks=[InterruptAt(3)], max_epochs=-1)
    with pytest.raises(Interruption):
        run_of.fit(broken, data(pictures, twins=True))
    run_of.save_checkpoint(tmp_path / "a.ckpt")
    resumed = fit(tmp_path, ckpt_path=tmp_path / "a.ckpt")
    assert_same(adapter_of(resumed), adapter_of(whole))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT
def test_the_adapter_is_read_by_peft_and_by_a_policy(models, pictures, tmp_path):
    model = models["idefics3"]
    module = grpo(model)
    trainer(tmp_path, max_steps=2).fit(module, data(pictures, twins=True))
    module.save_adapter(tmp_path / "adapter")
    prompts = all_rows(module)
    rollout = module.policy.encode(prompts, [["the rider", "kind"]] * len(prompts))
    found = module.policy.logprobs(rollout)
    base = AutoModelForImageTextToText.from_pretrained(model)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.cat((rollout.prompt_ids[0][rollout.prompt_mask[0]], rollout.completion_ids[0, 0]))
    size, answer = int(rollout.prompt_mask[0].sum()), rollout.completion_ids[0, 0]
    with torch.no_grad():
        logits = plain(input_ids=ids[None], **rollout.pictures[0].beside(ids, size)).logits[0, size - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, answer[:, None])[:, 0]
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-4, atol=1e-5)
    again = policy(model, adapter=str(tmp_path / "adapter")).load()
    torch.testing.assert_close(again.logprobs(rollout), found, rtol=1e-5, atol=1e-6)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "from transformers import AutoModelForImageTextToText, AutoProcessor" in card
    assert "vllm" not in card
    assert read_record(tmp_path / "adapter")["reads_pictures"] is True


def test_a_command_trains_validates_and_exports(models, pictures, tmp_path, capsys):
    model = models["idefics3"]
    seeing = {"model": str(model), "quantization": "none", "dtype": "float32", "rank": 4}
    overlong = {"class_path": "SoftOverlong", "init_args": {"max_new_tokens": 4, "buffer": 3}}
    columns = {"column": "images", "root": str(pictures.parent)}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": str(tmp_path),
            "callbacks": [{"class_path": "AdapterExport", "init_args": {"out": str(tmp_path / "adapter")}}],
        },
        "model": {
            "class_path": "GRPO",
            "init_args": {
                "policy": {"class_path": "VLMPolicy", "init_args": seeing},
                "engine": {"class_path": "LocalEngine", "init_args": {"max_new_tokens": 4}},
                "group_size": 2,
                "rewards": {"overlong": overlong},
            },
        },
        "data": {
            "class_path": "PromptDataModule",
            "init_args": {"path": str(pictures), "images": columns, "val_splits": "train", "batch_size": 4},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert run("fit", "-c", tmp_path / "run.yaml") == 0
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    assert (adapter / "adapter_model.safetensors").is_file()
    capsys.readouterr()
    assert run("export", "--adapter", adapter, "--out", merged, "--merge", "--model", model) == 2
    assert "is of a model that reads pictures, which is not merged here" in said_by_command(capsys)


# -------------------------------------------------------------------- what is refused before a model loads


class Blind(RolloutEngine):
    def generate(self, *_arguments, **_options):
        pytest.fail("it was asked")


REFUSED = {
    "no pictures": (
        VLMPolicy,
        None,
        None,
        "VLMPolicy reads pictures, and the data names none; write data.init_args.im",
    ),
    "no eyes": (QLoRAPolicy, Images(), None, "QLoRAPolicy reads no pictures, and data.init_args.images names some; wr"),
    "blind": (VLMPolicy, Images(), Blind(), "Blind samples without the pictures of VLMPolicy; write class_path: Local"),
}


@pytest.mark.parametrize(("kind", "images", "engine", "reason"), REFUSED.values(), ids=REFUSED)
def test_pictures_that_nobody_would_see(tiny_model, pictures, tmp_path, monkeypatch, kind, images, engine, reason):
    monkeypatch.setattr(QLoRAPolicy, "load", lambda *_: pytest.fail("a model was loaded"))
    module = GRPO(kind(str(tiny_model)), {"vowels": Vowels()}, engine=engine)
    with pytest.raises(UserError, match=reason):
        trainer(tmp_path).fit(module, PromptDataModule(str(pictures), images=images, val_splits=None))
