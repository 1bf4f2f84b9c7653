"""What GRPO with QLoRA on Lightning usually gets wrong, and no other file tests; docs/correctness.md lists them all."""

import os
import re
import signal
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from grpo_runs import Flaky, Vowels, adapter_of, assert_same, grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from model_folders import SIZES, save_model
from support import loaded, perturb, save_tiny_model
from torch.optim import SGD, AdamW
from transformers import Qwen2Config, Qwen2ForCausalLM

from lit_debias.data import PromptDataModule
from lit_debias.errors import ResumableError, UserError
from lit_debias.grpo.loss import DAPOLoss, UpdateSize
from lit_debias.models.layers import is_quantized
from lit_debias.packing.tokens import pack_rollout
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.local import LocalEngine
from lit_debias.support import distributed
from lit_debias.training.metrics import of_rollout
from lit_debias.types import Experience, PromptBatch, Scores

PROMPTS = PromptBatch(["people from the north are", "the rider", "each person should be judged on their own work"])


# ---------------------------------------------------------------- 1: the end of a completion


def test_an_end_token_in_the_last_place_is_no_truncation(tiny_model):
    policy = loaded(tiny_model)
    policy.eos_token_ids = tuple(range(len(policy.tokenizer)))
    ended = LocalEngine(1).generate(policy, PROMPTS, 2, seed=0)
    policy.eos_token_ids = ()
    cut = LocalEngine(1).generate(policy, PROMPTS, 2, seed=0)
    assert torch.equal(ended.completion_ids, cut.completion_ids)
    assert ended.completion_mask.all()  # the end token itself is learned
    assert not ended.truncated.any()
    assert cut.truncated.all()


# ---------------------------------------------------------------- 4: one network samples and learns


def test_the_bases_own_dropout_is_off(tmp_path):
    policy = loaded(save_model(tmp_path, None, attention_dropout=0.5))
    perturb(policy)
    rollout = LocalEngine(8).generate(policy, PROMPTS, 2, seed=0)
    torch.testing.assert_close(policy.logprobs(rollout), rollout.logprobs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_the_policys_and_not_that_of_the_adapter_it_continues_from(tiny_model, tmp_path, dropout):
    first = loaded(tiny_model, dropout=0.3)
    perturb(first)
    first.lm.save_pretrained(tmp_path)
    second = loaded(tiny_model, adapter=str(tmp_path), dropout=dropout)
    rollout = second.encode(PROMPTS, [["a kind person"]] * 3)
    assert torch.equal(second.logprobs(rollout), second.logprobs(rollout)) is (dropout == 0)
    assert torch.equal(second.logprobs(rollout, reference=True), second.logprobs(rollout, reference=True))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_with_dropout_resumes_bitwise(tiny_model, prompts, tmp_path):
    def run(folder, callbacks=(), ckpt=None):
        policy = QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=4, dropout=0.5)
        module = grpo(tiny_model, policy=policy, inner_epochs=2)
        keep = ModelCheckpoint(folder, save_last=True, save_on_exception=True, every_n_train_steps=1)
        t = trainer(folder, max_steps=6, max_epochs=-1, enable_checkpointing=True, callbacks=[keep, *callbacks])
        t.fit(module, PromptDataModule(str(prompts), batch_size=3), ckpt_path=ckpt, weights_only=True)
        return adapter_of(module)

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path / "broken", [At(3, stop)])
    assert_same(whole, run(tmp_path / "broken", ckpt=tmp_path / "broken" / "last.ckpt"))


# ---------------------------------------------------------------- 2, 7: padding, and what the copy holds


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_biases_reach_the_inference_copy(tmp_path, quantization):
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    policy = loaded(save_model(tmp_path, model), quantization=quantization, targets=["q_proj", "up_proj"])
    perturb(policy)
    assert policy.causal_lm.model.layers[0].self_attn.k_proj.bias.abs().sum() > 0  # adapted or not
    rollout = LocalEngine(8).generate(policy, PROMPTS, 2, seed=0)
    torch.testing.assert_close(policy.logprobs(rollout), rollout.logprobs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("weights", ["merged", "live"])
def test_checkpointing_and_quantisation_sample_what_the_update_sees(tiny_model, weights):
    policy = loaded(tiny_model, quantization="nf4", gradient_checkpointing=True)
    perturb(policy)
    rollout = LocalEngine(8, weights=weights).generate(policy, PROMPTS, 2, seed=0)
    torch.testing.assert_close(policy.logprobs(rollout), rollout.logprobs, rtol=2e-3, atol=2e-3)


def test_a_prompt_among_longer_ones_gets_the_completion_that_it_gets_alone(tmp_path):
    policy = loaded(save_tiny_model(tmp_path))
    perturb(policy)
    policy.tokenizer.pad_token = None
    together = LocalEngine(10).generate(policy, PROMPTS, 1, seed=0, greedy=True)
    assert not together.prompt_mask.all()
    for text, found in zip(PROMPTS.texts, together.texts, strict=True):
        assert LocalEngine(10).generate(policy, PromptBatch([text]), 1, seed=0, greedy=True).texts == [found]


# ---------------------------------------------------------------- 13, 18: ranks that fail, and nothing to learn from


def test_where_one_rank_fails_all_stop(monkeypatch):
    gathered = []

    def gather(message):
        gathered.append(message)
        return [None, message or ("KeyError: 'there'", False)]

    monkeypatch.setattr(distributed, "gather_objects", gather)
    with pytest.raises(KeyError, match="here"), distributed.fail_together():
        raise KeyError("here")
    assert gathered == [("KeyError: 'here'", False)]  # it told the others before it stopped
    with pytest.raises(UserError, match="process 1 failed: KeyError: 'there'"), distributed.fail_together():
        pass


@pytest.mark.parametrize(
    ("mine", "other", "kind"),
    [
        (None, True, ResumableError),
        (None, False, UserError),
        (ResumableError("here"), True, ResumableError),
        (ResumableError("here"), False, UserError),  # the other one keeps no checkpoint, for which all are needed
        (KeyError("here"), True, KeyError),
    ],
)
def test_a_checkpoint_is_kept_by_all_ranks_or_none(monkeypatch, mine, other, kind):
    monkeypatch.setattr(distributed, "gather_objects", lambda told: [told, ("there", other)])

    def fail():
        with distributed.fail_together():
            if mine is not None:
                raise mine

    with pytest.raises(kind) as caught:
        fail()
    assert type(caught.value) is kind


def test_failures_of_scoring_are_told_to_every_rank(tiny_model, prompts, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(distributed, "gather_objects", lambda message: told.append(message) or [message])
    with pytest.raises(UserError, match="'broken' returned"):
        trainer(tmp_path).fit(
            grpo(tiny_model, rewards={"broken": Flaky(float("nan"))}), PromptDataModule(str(prompts), batch_size=2)
        )
    assert any("'broken' returned" in message[0] for message in told if isinstance(message, tuple))


def test_an_update_without_tokens_gives_every_parameter_a_gradient_of_zero(tiny_model):
    module = grpo(tiny_model, loss=DAPOLoss(beta=0.1, entropy_bonus=0.1))
    rollout = LocalEngine(5).generate(module.load_policy(), PROMPTS, 2, seed=0)
    nothing = torch.zeros_like(rollout.completion_mask)
    zeros = torch.zeros(nothing.shape)
    experience = Experience(rollout, Scores({}, {}), torch.ones(3, 2), nothing, zeros)
    logprobs = []
    loss, _ = module._part(experience, UpdateSize.of(nothing, 5), logprobs, slice(0, 3))
    loss.backward()
    assert loss.item() == 0
    assert not logprobs[0].any()
    for name, parameter in module.policy.trainable_parameters().items():  # DDP waits for each of them
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_a_step_that_masks_everything_changes_nothing(tiny_model, prompts, tmp_path):
    module = grpo(
        tiny_model, engine=LocalEngine(1), mask_truncated=True, optimizer=lambda parameters: SGD(parameters, lr=1.0)
    )
    module.load_policy("cpu")
    module.policy.eos_token_ids = ()  # everything is truncated
    before = adapter_of(module)
    t = trainer(tmp_path, max_steps=2)
    module.rewards.setup(torch.device("cpu"))
    module._scored = lambda rollout, scores: None
    t.fit(module, PromptDataModule(str(prompts), batch_size=2))
    assert_same(before, adapter_of(module))
    assert all(value.isfinite() for value in t.callback_metrics.values())


def test_metrics_are_finite_where_nothing_was_scored(tiny_model):
    rollout = LocalEngine(3).generate(loaded(tiny_model), PROMPTS, 2, seed=0)
    nobody = Scores({"shy": torch.zeros(3, 2)}, {"shy": torch.zeros(3, 2, dtype=torch.bool)})
    values = of_rollout(rollout, nobody, torch.full((3, 2), torch.nan), 1.0)
    assert all(np.isfinite(value) for value in values.values())
    assert "rewards/shy/mean" not in values  # a 0 would be a score
    assert values["rewards/shy/missing_rate"] == 1.0
    assert values["frac_reward_zero_std"] == 1.0


def test_the_mean_of_a_reward_is_over_the_scores_of_all_ranks(tiny_model, monkeypatch):
    rollout = LocalEngine(3).generate(loaded(tiny_model), PROMPTS, 2, seed=0)
    of_talks = (0.5, 0.05, 5)  # sum, sum of squares and count of another rank
    other = {"talks": of_talks, "shy": (3.0, 2.5, 4), "mute": (0.0, 0.0, 0), "reward": of_talks}
    values = {"talks": torch.full((3, 2), 0.9), "shy": torch.zeros(3, 2), "mute": torch.zeros(3, 2)}
    valid = {name: torch.full((3, 2), name == "talks") for name in values}

    def all_sum(mine):
        names = list(values) if len(mine) == len(values) else ["reward"]
        return mine + torch.tensor([other[name] for name in names])

    monkeypatch.setattr("lit_debias.aggregators.aggregator.all_sum", all_sum)
    found = of_rollout(rollout, Scores(values, valid), values["talks"], 1.0)
    assert found["rewards/talks/mean"] == pytest.approx((6 * 0.9 + 0.5) / 11)
    assert found["rewards/shy/mean"] == pytest.approx(0.75)  # this rank has none
    assert found["rewards/shy/std"] == pytest.approx(((2.5 - 4 * 0.75**2) / 3) ** 0.5)
    assert not {"rewards/mute/mean", "rewards/mute/std"} & found.keys()
    assert found["reward"] == pytest.approx((6 * 0.9 + 0.5) / 11)


# ---------------------------------------------------------------- 21, 22: continuing from an adapter


def test_a_continued_adapter_gets_gradients_in_fp32_and_its_reference_none(tiny_model, tmp_path):
    first = loaded(tiny_model)
    perturb(first)
    first.lm.save_pretrained(tmp_path)
    policy = loaded(tiny_model, adapter=str(tmp_path), dtype="bfloat16", quantization="nf4")
    rollout = policy.encode(PROMPTS, [["a kind person", "late"]] * 3)
    policy.logprobs(rollout, reference=True)
    policy(pack_rollout(rollout)).logprobs.sum().backward()
    for name, parameter in policy.named_parameters():
        if ".default." in name:
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None, name


# ---------------------------------------------------------------- 19, 26, 27: Lightning


@pytest.mark.parametrize("option", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_the_trainers_own_clipping_and_accumulation_are_refused(tiny_model, prompts, tmp_path, option):
    with pytest.raises(UserError, match=f"trainer.{next(iter(option))}"):
        trainer(tmp_path, **option).fit(grpo(tiny_model), PromptDataModule(str(prompts), batch_size=2))


def test_every_stage_uses_what_the_first_has_loaded(tiny_model, prompts, tmp_path, monkeypatch):
    setups = []
    monkeypatch.setattr(Vowels, "setup", lambda self, device: setups.append(device))
    module = grpo(tiny_model, optimizer=AdamW)
    data = PromptDataModule(str(prompts), batch_size=2, val_splits="train")
    t = trainer(tmp_path, max_steps=1, limit_val_batches=1)
    t.fit(module, data)
    lm = module.policy.lm
    t.validate(module, data, verbose=False)
    assert module.policy.lm is lm
    assert len(setups) == 1
    assert sum(len(group["params"]) for group in t.optimizers[0].param_groups) == len(adapter_of(module))
    assert "hyper_parameters" not in t._checkpoint_connector.dump_checkpoint()  # config.yaml is the only truth


# ---------------------------------------------------------------- 23, 24: train mode, and restored settings


def test_checkpointing_is_restored_where_sampling_fails(tiny_model):
    policy = loaded(tiny_model, gradient_checkpointing=True)
    with pytest.raises(RuntimeError, match="stopped"), policy.forms.live():
        stop()
    assert policy.causal_lm.is_activation_checkpointing


class Modes(Callback):
    """Asks in the middle of validation."""

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.training = {module.training for module in pl_module.policy.lm.modules() if is_quantized(module)}


def test_validation_leaves_the_quantised_base_in_train_mode(tiny_model, prompts, tmp_path):
    policy = QLoRAPolicy(str(tiny_model), quantization="nf4", dtype="bfloat16", rank=4)
    module = grpo(tiny_model, policy=policy, engine=LocalEngine(3))
    data = PromptDataModule(str(prompts), batch_size=2, val_splits="train")
    modes = Modes()
    trainer(tmp_path, max_steps=1, limit_val_batches=1, val_check_interval=1, callbacks=[modes]).fit(module, data)
    assert modes.training == {True}
    layer = module.policy.causal_lm.model.layers[0].mlp.up_proj.base_layer
    assert layer.compute_dtype == torch.bfloat16  # fp32 reaches no fast kernel
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


# ---------------------------------------------------------------- 28: stopping and going on


class At(Callback):
    """Does something after the backward pass that follows the given number of optimiser steps."""

    def __init__(self, optimizer_step, action):
        self.optimizer_step, self.action = optimizer_step, action

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.optimizer_step:
            self.action()


def stop():
    raise RuntimeError("stopped")


def press_control_c():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def _signals():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(
    ("action", "steps_kept"), [(press_control_c, 3), (terminate, 4)], ids=["control-c", "termination"]
)
def test_a_run_that_is_told_to_stop_can_be_resumed(tiny_model, prompts, tmp_path, action, steps_kept):
    def run(folder, callbacks=(), ckpt=None):
        module = grpo(tiny_model, inner_epochs=2)
        keep = ModelCheckpoint(folder, save_last=True, save_on_exception=True, every_n_train_steps=100)
        t = trainer(folder, max_steps=6, max_epochs=-1, enable_checkpointing=True, callbacks=[keep, *callbacks])
        t.fit(module, PromptDataModule(str(prompts), batch_size=3), ckpt_path=ckpt, weights_only=True)
        return adapter_of(module)

    whole = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "broken", [At(3, action)])  # between the two inner epochs of the second rollout
    saved = tmp_path / "broken" / "last.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == steps_kept
    assert_same(whole, run(tmp_path / "broken", ckpt=saved))


def test_a_checkpoint_between_inner_epochs_loads_whatever_the_columns_held(tiny_model, tmp_path):
    odd = {"a": [None, [1]], "b": [date(2026, 1, 1), {"c": None}], "d": [np.float32(1), np.str_("x")]}
    rollout = LocalEngine(3).generate(loaded(tiny_model), PromptBatch(["one", "two"], odd), 2, seed=0)
    scores = Scores({"r": torch.zeros(2, 2)}, {"r": torch.ones(2, 2, dtype=torch.bool)}, {"r": 0.1}, columns=odd)
    saved = Experience(rollout, scores, torch.ones(2, 2), rollout.completion_mask, epochs_done=1)
    torch.save(saved.state_dict(), tmp_path / "x.pt")
    found = Experience.from_state_dict(torch.load(tmp_path / "x.pt", weights_only=True), torch.device("cpu"))
    assert found.rollout.texts == rollout.texts
    assert found.rollout.prompts.texts == ["one", "two"]
    assert found.scores.columns == {}
    assert found.epochs_done == 1
    torch.testing.assert_close(found.rollout.logprobs, rollout.logprobs)


# ---------------------------------------------------------------- 32: validation and training's randomness


def test_validation_leaves_torchs_generator_alone(tiny_model, prompts, tmp_path):
    module = grpo(tiny_model)
    data = PromptDataModule(str(prompts), batch_size=2, val_splits="train")
    t = trainer(tmp_path, limit_val_batches=2)
    module.load_policy("cpu")
    module.rewards.setup(torch.device("cpu"))
    module._scored = lambda rollout, scores: None
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    t.validate(module, data, verbose=False)
    assert torch.equal(torch.get_rng_state(), expected)


# ---------------------------------------------------------------- the list itself


def test_every_test_that_the_list_names_exists():
    tests = Path(__file__).parents[1]
    named = re.findall(r"`([a-z_/]+)::([a-z_0-9]+)`", (tests.parent / "docs" / "correctness.md").read_text())
    assert named
    for file, test in named:
        folder, _, name = file.rpartition("/")
        assert f"def test_{test}(" in (tests / folder / f"test_{name}.py").read_text(), f"{file}::{test}"
