"""GRPO as Lightning runs it: steps, logging, checkpoints, resumption, several processes."""

import csv
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from grpo_runs import (  # noqa: F401  (fixtures among them)
    Flaky,
    InterruptAt,
    Interruption,
    NeedsReference,
    Vowels,
    adapter_of,
    assert_same,
    grpo,
    prompts,
    trainer,
    write_prompts,
)
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from support import perturb
from torch.optim import SGD

from lit_debias.aggregators import GroupMaxMin, Lagrangian, WeightedSum
from lit_debias.data import PromptDataModule, ResponseDataModule
from lit_debias.errors import UserError
from lit_debias.grpo.correction import ImportanceCorrection
from lit_debias.grpo.loss import DAPOLoss, UpdateSize
from lit_debias.policy.policy import Policy
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.asking import RewardError
from lit_debias.rollout.local import LocalEngine
from lit_debias.training.grpo import GRPO
from lit_debias.types import Experience, PromptBatch, Scores


class Remembering(LocalEngine):
    """Keeps the last rollout."""

    def generate(self, *args, **kwargs):
        self.last = super().generate(*args, **kwargs)
        return self.last


def test_a_run_learns_and_logs_under_trls_names(tiny_model, prompts, tmp_path):
    module = grpo(tiny_model)
    logger = CSVLogger(tmp_path)
    trainer(tmp_path, max_steps=24, max_epochs=-1, logger=logger).fit(
        module, PromptDataModule(str(prompts), batch_size=4)
    )
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["reward"]]
    assert [float(row["rollout_step"]) for row in rows] == list(range(1, 25))
    rewards = [float(row["reward"]) for row in rows]
    assert sum(rewards[-6:]) / 6 > 1.5 * sum(rewards[:6]) / 6
    for name in (
        *("reward_std", "frac_reward_zero_std", "rewards/vowels/mean", "rewards/vowels/std"),
        *("completions/mean_length", "completions/clipped_ratio", "kl", "entropy", "clip_ratio/region", "num_tokens"),
        *("step_time", "grad_norm", "loss", "sampling/sampling_logp_difference/max"),
    ):
        assert rows[-1][name] != "", name
    assert max(float(row["sampling/sampling_logp_difference/max"]) for row in rows) < 1e-4
    assert float(rows[0]["ratio"]) == pytest.approx(1.0)
    assert float(rows[0]["kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(rows[-1]["kl"]) > 0


def test_the_reference_is_asked_only_if_somebody_needs_it(tiny_model, prompts, tmp_path, monkeypatch):
    calls = []
    original = Policy.logprobs_at
    monkeypatch.setattr(Policy, "logprobs_at", lambda *a, **k: calls.append(k) or original(*a, **k))
    data = PromptDataModule(str(prompts), batch_size=4)
    trainer(tmp_path, max_steps=2).fit(grpo(tiny_model, loss=DAPOLoss(beta=0.0)), data)
    assert calls == []
    trainer(tmp_path, max_steps=2).fit(grpo(tiny_model, loss=DAPOLoss(beta=0.1)), data)
    assert len(calls) == 2
    needing = grpo(tiny_model, loss=DAPOLoss(beta=0.1), rewards={"likely": NeedsReference()})
    trainer(tmp_path, max_steps=2).fit(needing, data)
    assert len(calls) == 4  # the loss and the reward share one forward pass
    assert all(call["reference"] for call in calls)


@pytest.mark.parametrize("micro_batch_tokens", [1, 60])  # a group each, and two in a pass
def test_micro_batches_change_nothing(tiny_model, prompts, tmp_path, micro_batch_tokens):
    adapters = []
    for size in (4096, micro_batch_tokens):
        module = grpo(tiny_model, micro_batch_tokens=size, optimizer=lambda parameters: SGD(parameters, lr=1.0))
        trainer(tmp_path, max_steps=2).fit(module, PromptDataModule(str(prompts), batch_size=4))
        adapters.append(adapter_of(module))
    for name, value in adapters[0].items():
        torch.testing.assert_close(value, adapters[1][name], rtol=1e-4, atol=1e-6)


def eight_steps(model, data, folder, inner_epochs, off_policy, ckpt=None, callbacks=()) -> GRPO:
    module = grpo(
        model,
        inner_epochs=inner_epochs,
        one_step_off_policy=off_policy,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 8),
    )
    t = trainer(folder, max_steps=8, max_epochs=-1, enable_checkpointing=bool(callbacks), callbacks=[*callbacks])
    prompts = PromptDataModule(str(data), batch_size=3, seed=5)  # 2 batches an epoch, so epochs turn over
    t.fit(module, prompts, ckpt_path=ckpt, weights_only=True)
    return module


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tmp_path_factory):
    """The adapter of eight steps that nothing interrupts, by inner epochs and whether they are off-policy."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = write_prompts(folder / "prompts.jsonl")
    return cache(lambda *options: adapter_of(eight_steps(tiny_model, data, folder, *options)))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(
    ("inner_epochs", "off_policy", "interrupted_at"),
    [
        *((1, off_policy, step) for off_policy in (False, True) for step in (1, 4)),  # within an epoch and at its end
        *((2, off_policy, step) for off_policy in (False, True) for step in (1, 4, 5)),  # and within a rollout's epochs
    ],
)
def test_resuming_gives_bitwise_the_same_adapter(
    tiny_model, prompts, tmp_path, undisturbed, inner_epochs, off_policy, interrupted_at
):
    run = partial(eight_steps, tiny_model, prompts, tmp_path, inner_epochs, off_policy)
    saving = {"save_last": True, "save_top_k": -1, "every_n_train_steps": interrupted_at, "save_on_exception": True}
    keep = partial(ModelCheckpoint, tmp_path, **saving)
    with pytest.raises(Interruption):
        run(callbacks=[keep(), InterruptAt(interrupted_at)])
    saved = tmp_path / "last.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == interrupted_at
    resumed = run(ckpt=saved, callbacks=[keep()])
    assert_same(undisturbed(inner_epochs, off_policy), adapter_of(resumed))
    assert resumed.rollout_step == 8 // inner_epochs + off_policy


def test_what_the_aggregator_measures_is_logged(tiny_model, prompts, tmp_path):
    run = trainer(tmp_path, max_steps=1)
    aggregator = Lagrangian({"vowels": 1.0}, {"vowels": 0.9}, rate=0.5)
    run.fit(grpo(tiny_model, aggregator=aggregator), PromptDataModule(str(prompts), batch_size=2))
    found = {
        name: float(run.callback_metrics[f"rewards/vowels/{name}"]) for name in ("multiplier", "violation", "mean")
    }
    assert found["violation"] == pytest.approx(0.9 - found["mean"])
    assert found["multiplier"] == pytest.approx(0.5 * found["violation"])


def test_the_columns_of_the_aggregator_are_checked_before_a_model_is_loaded(tiny_model, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(QLoRAPolicy, "load", lambda *args: pytest.fail("loaded"))
    module = grpo(tiny_model, aggregator=GroupMaxMin(WeightedSum({"vowels": 1.0}), column="region"))
    with pytest.raises(UserError, match=r"needs the data column 'region'.*place"):
        trainer(tmp_path).fit(module, PromptDataModule(str(prompts), batch_size=2))


def test_off_policy_trains_on_the_rollout_of_the_step_before(tiny_model, prompts, tmp_path):
    logged, trained_on = [], []

    class Watching(GRPO):
        def update(self, experience):
            now = self.policy.logprobs(experience.rollout, self.engine.temperature)
            trained_on.append((experience.rollout.prompts.texts, now, experience.old_logprobs, experience.loss_mask))
            super().update(experience)
            logged.append(float(self.trainer.callback_metrics["ratio"]))

    module = grpo(tiny_model, cls=Watching, one_step_off_policy=True)
    sampled = []
    module.load_policy("cpu")
    module.rewards.setup(torch.device("cpu"))
    module._scored = lambda rollout, scores: sampled.append((rollout.prompts.texts, rollout.logprobs.clone()))
    t = trainer(tmp_path, max_steps=3, max_epochs=-1)
    t.fit(module, PromptDataModule(str(prompts), batch_size=2, seed=5))
    assert module.rollout_step == 4  # the first step has nothing to train on yet
    assert [texts for texts, _, _, _ in trained_on] == [texts for texts, _ in sampled[:3]]
    for (_, now, old, mask), (_, recorded), ratio in zip(trained_on, sampled, logged, strict=False):
        assert torch.equal(old, recorded)
        assert ratio == pytest.approx(float((now - recorded).exp()[mask].mean()), rel=1e-4)
    assert logged[0] == pytest.approx(1.0, abs=1e-4)  # no update has been made since
    assert abs(logged[2] - 1.0) > 1e-4


class Corrected(GRPO):
    """Keeps of each update the log-probs that it begins with, the experience and what is logged."""

    def update(self, experience):
        now = self.policy.logprobs(experience.rollout, self.engine.temperature)
        had_old = experience.old_logprobs is not None
        super().update(experience)
        logged = {name: float(self.trainer.callback_metrics[name]) for name in (*IMPORTANCE, "ratio")}
        vars(self).setdefault("updates", []).append((now, had_old, experience, logged))


IMPORTANCE = [f"importance/{name}" for name in ("ratio", "clipped", "kl_sampler", "kl_policy")]


def test_the_correction_finds_nothing_to_correct_where_the_policy_samples(tiny_model, prompts, tmp_path):
    module = grpo(tiny_model, cls=Corrected, correction=ImportanceCorrection())
    trainer(tmp_path, max_steps=3, max_epochs=-1).fit(module, PromptDataModule(str(prompts), batch_size=2))
    for *_, logged in module.updates:
        assert [logged[name] for name in IMPORTANCE] == pytest.approx([1, 0, 0, 0], abs=1e-4)
    plain = grpo(tiny_model)
    trainer(tmp_path, max_steps=3, max_epochs=-1).fit(plain, PromptDataModule(str(prompts), batch_size=2))
    for name, value in adapter_of(plain).items():
        torch.testing.assert_close(adapter_of(module)[name], value, rtol=1e-3, atol=1e-4)


def test_off_policy_the_correction_weighs_by_the_policy_as_it_is(tiny_model, prompts, tmp_path):
    correction = ImportanceCorrection(most=1.5)
    options = {"one_step_off_policy": True, "optimizer": lambda parameters: SGD(parameters, lr=3.0)}
    module = grpo(tiny_model, cls=Corrected, correction=correction, **options)
    trainer(tmp_path, max_steps=3, max_epochs=-1).fit(module, PromptDataModule(str(prompts), batch_size=2))
    assert len(module.updates) == 3
    for now, had_old, experience, logged in module.updates:
        mask = experience.loss_mask
        assert not had_old  # the log-probs of sampling are no old ones: they are what is corrected for
        torch.testing.assert_close(experience.old_logprobs[mask], now[mask], rtol=1e-4, atol=1e-4)
        assert logged["ratio"] == pytest.approx(1.0, abs=1e-4)
        expected = float((now - experience.rollout.logprobs)[mask].exp().mean())
        assert logged["importance/ratio"] == pytest.approx(expected, rel=1e-3)
    assert abs(module.updates[2][3]["importance/ratio"] - 1) > 1e-3
    uncorrected = grpo(tiny_model, **options)
    trainer(tmp_path, max_steps=3, max_epochs=-1).fit(uncorrected, PromptDataModule(str(prompts), batch_size=2))
    assert any(not torch.equal(v, adapter_of(module)[name]) for name, v in adapter_of(uncorrected).items())


def test_checkpoints_hold_the_adapter_and_not_the_base(tiny_model, prompts, tmp_path):
    module = grpo(tiny_model)
    t = trainer(tmp_path, max_steps=1)
    t.fit(module, PromptDataModule(str(prompts), batch_size=2))
    t.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"policy.{name}" for name in module.policy.trainable_parameters()}
    other = grpo(tiny_model, policy=QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=2))
    with pytest.raises(UserError, match="does not fit the policy"):
        trainer(tmp_path).fit(other, PromptDataModule(str(prompts), batch_size=2), ckpt_path=tmp_path / "x.ckpt")


def test_validation_is_greedy_measures_judges_and_leaves_training_alone(tiny_model, prompts, tmp_path):
    data = PromptDataModule(str(prompts), batch_size=4, val_splits="train")
    plain = grpo(tiny_model)
    trainer(tmp_path).fit(plain, data)
    watched = grpo(tiny_model, judges={"likely": NeedsReference()})
    t = trainer(tmp_path, limit_val_batches=2, val_check_interval=1, num_sanity_val_steps=2)
    t.fit(watched, data)
    assert {"eval_reward", "eval_rewards/vowels/mean", "eval_judges/likely/mean"} <= set(t.callback_metrics)
    assert_same(adapter_of(plain), adapter_of(watched))


def test_the_hook_sees_every_scored_rollout(tiny_model, prompts, tmp_path):
    seen = []
    module = grpo(tiny_model)
    module.load_policy("cpu")
    module.rewards.setup(torch.device("cpu"))
    module._scored = lambda rollout, scores: seen.append((rollout.completion_ids.shape[:2], set(scores.values)))
    trainer(tmp_path, max_steps=2).fit(module, PromptDataModule(str(prompts), batch_size=2))
    assert seen == [((2, 4), {"vowels"})] * 2


def test_truncated_completions_can_be_left_out(tiny_model, prompts, tmp_path):
    module = grpo(tiny_model, mask_truncated=True)
    trainer(tmp_path, max_steps=1).fit(module, PromptDataModule(str(prompts), batch_size=4))
    truncated = module.experience.rollout.truncated
    assert truncated.any()
    assert not module.experience.loss_mask[truncated].any()
    assert module.experience.loss_mask[~truncated].any() or truncated.all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high"])
def test_a_reward_that_lies_stops_the_run_with_its_name(tiny_model, prompts, tmp_path, value):
    module = grpo(tiny_model, rewards={"broken": Flaky(value)})
    with pytest.raises(RewardError, match="reward 'broken' returned"):
        trainer(tmp_path).fit(module, PromptDataModule(str(prompts), batch_size=2))


def test_a_missing_score_moves_nothing_by_itself(tiny_model, prompts, tmp_path):
    module = grpo(tiny_model, rewards={"shy": Flaky(None)})
    trainer(tmp_path, max_steps=1).fit(module, PromptDataModule(str(prompts), batch_size=2))
    assert module.experience.advantages[0, 0] == 0
    assert module.experience.advantages[0, 1:].abs().sum() > 0


def test_a_gradient_that_is_not_finite_stops_before_the_step(tiny_model, prompts, tmp_path, monkeypatch):
    module = grpo(tiny_model, loss=DAPOLoss(beta=0.0))
    original = GRPO.collect

    def poisoned(self, batch):
        experience = original(self, batch)
        experience.advantages[0, 0] = float("nan")
        return experience

    monkeypatch.setattr(GRPO, "collect", poisoned)
    with pytest.raises(FloatingPointError, match="rollout step 0 is not finite"):
        trainer(tmp_path).fit(module, PromptDataModule(str(prompts), batch_size=2))
    assert all(value.isfinite().all() for value in adapter_of(module).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 1}, "a group of one has no advantage"),
        ({"rewards": {}}, "rewards is empty"),
        ({"aggregator": WeightedSum({"vowels": 1.0, "vowel": 1.0})}, "weight for 'vowel'.*did you mean 'vowels'"),
        ({"rewards": {"a": Vowels(), "b": Vowels()}, "aggregator": WeightedSum({"a": 1.0})}, "'b' has no weight"),
        ({"judges": {"vowels": Vowels()}}, "both a reward and a judge"),
        ({"inner_epochs": 0}, "must be positive"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(tiny_model, arguments, message):
    with pytest.raises(UserError, match=message):
        grpo(tiny_model, **arguments)


def test_missing_columns_are_found_before_a_model_is_loaded(tiny_model, tmp_path):
    file = tmp_path / "bare.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    module = grpo(tiny_model, rewards={"likely": NeedsReference()})
    with pytest.raises(UserError, match="reward 'likely' needs the data column 'place'"):
        trainer(tmp_path).fit(module, PromptDataModule(str(file), batch_size=2))
    assert not module.is_loaded


def test_the_gradient_is_that_of_the_written_formula(tiny_model):
    """One step of plain policy gradient on a perturbed policy against autograd over Hugging Face's logits."""
    module = grpo(tiny_model, loss=DAPOLoss(beta=0.0))
    policy = module.load_policy()
    perturb(policy)
    rollout = LocalEngine(5).generate(policy, PromptBatch(["people", "the rider was"]), 3, seed=0)
    advantages = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, -2.0]])
    experience = Experience(rollout, Scores({}, {}), advantages, rollout.completion_mask)
    size = UpdateSize.of(experience.loss_mask, 5)
    module._part(experience, size, [], slice(0, 2))[0].backward()
    found = {name: p.grad.clone() for name, p in policy.trainable_parameters().items()}
    policy.zero_grad()
    total = 0.0
    for p in range(2):
        for g in range(3):
            prompt = rollout.prompt_ids[p][rollout.prompt_mask[p]]
            answer = rollout.completion_ids[p, g][rollout.completion_mask[p, g]]
            logits = policy.causal_lm(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            total = total - advantages[p, g] * logits.log_softmax(-1).gather(-1, answer[:, None]).sum()
    (total / rollout.completion_mask.sum()).backward()
    for name, parameter in policy.trainable_parameters().items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_seed_that_is_not_given_is_that_of_seed_everything(tiny_model, prompts, tmp_path):
    def first_rollout(everything: int, **options: int) -> torch.Tensor:
        seed_everything(everything, verbose=False)
        module = grpo(tiny_model, engine=Remembering(8), **options)
        trainer(tmp_path, max_steps=1).fit(module, PromptDataModule(str(prompts), batch_size=2, seed=0))
        return module.engine.last.completion_ids

    first, other = first_rollout(1), first_rollout(2)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert torch.equal(first_rollout(1, seed=5), first_rollout(2, seed=5))


@pytest.mark.parametrize("kind", [PromptDataModule, ResponseDataModule])
def test_data_take_the_seed_of_seed_everything_too(kind, prompts, monkeypatch):
    assert kind(str(prompts)).seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert (kind(str(prompts)).seed, kind(str(prompts), seed=3).seed) == (7, 3)
