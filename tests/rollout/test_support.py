"""One support for sampling, update and reference where top-k, top-p or min-p leave a part of the vocabulary."""

from dataclasses import replace

import pytest
import torch
from grpo_runs import (  # noqa: F401  (prompts is a fixture)
    InterruptAt,
    Interruption,
    NeedsReference,
    adapter_of,
    assert_same,
    grpo,
    prompts,
    trainer,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from support import loaded, perturb
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lit_debias.data import PromptDataModule
from lit_debias.grpo.loss import DAPOLoss
from lit_debias.packing.tokens import pack_rollout
from lit_debias.rollout.local import LocalEngine
from lit_debias.training.grpo import GRPO
from lit_debias.types import Experience, PromptBatch, Scores

PROMPTS = PromptBatch(["people from the north are", "the rider", "each person should be judged on their own work"])
FILTERS = [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 40, "top_p": 0.9, "min_p": 0.05}]


@pytest.fixture(scope="module")
def policy(tiny_model):
    torch.manual_seed(1)
    policy = loaded(tiny_model)
    perturb(policy)
    policy.eos_token_ids = tuple(range(3, 40))  # ends come at different steps, so that rows are dropped
    return policy


def plain(policy, rollout, temperature):
    """Return [p, g, logits [T, V] at the temperature and tokens [T]] of Hugging Face, one sequence at a time."""
    for p, group in enumerate(rollout.completion_ids):
        for g, row in enumerate(group):
            prompt, said = rollout.prompt_ids[p][rollout.prompt_mask[p]], row[rollout.completion_mask[p, g]]
            with torch.no_grad():
                logits = policy.causal_lm(torch.cat((prompt, said))[None]).logits[0]
            yield p, g, logits[len(prompt) - 1 : -1] / temperature, said


def filtered(logits, top_k=0, top_p=1.0, min_p=0.0):
    """Return the logits as Hugging Face filters them."""
    for warper in (top_k and TopKLogitsWarper(top_k), top_p < 1 and TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)):
        logits = warper(None, logits) if warper else logits
    return logits


def sampled(policy, **options):
    return LocalEngine(12, 0.8, **options).generate(policy, PROMPTS, 4, seed=3)


@pytest.mark.parametrize("path", ["lean", "live", "hugging_face"])
@pytest.mark.parametrize("options", FILTERS, ids=lambda options: "+".join(options))
def test_what_is_kept_and_its_log_probs_are_those_of_hugging_face_in_sampling_and_update(
    policy, options, path, monkeypatch
):
    if path == "hugging_face":
        monkeypatch.setattr(policy.forms, "lean_model", None)
    how = {"lean": {}, "live": {"weights": "live"}, "hugging_face": {"decoder": "hugging_face"}}[path]
    rollout = sampled(policy, **options, **how)
    packed = pack_rollout(rollout)
    tokens = policy(packed, 0.8, support=rollout.support[rollout.completion_mask])
    update, entropy = packed.unpack(tokens.logprobs.detach()), packed.unpack(tokens.entropy)
    assert rollout.lengths.unique().numel() > 2
    for p, g, logits, said in plain(policy, rollout, 0.8):
        expected = filtered(logits, **options).log_softmax(-1)
        logprobs = expected.gather(1, said[:, None])[:, 0]
        near = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(rollout.logprobs[p, g, : len(said)], logprobs, **near)
        torch.testing.assert_close(update[p, g, : len(said)], logprobs, **near)
        wanted = torch.distributions.Categorical(logits=expected.clamp(min=-1e4)).entropy()
        torch.testing.assert_close(entropy[p, g, : len(said)], wanted, **near)
        places, ids = rollout.support[p, g][: len(said)].entries()
        kept = torch.zeros(expected.shape, dtype=torch.bool).index_put((places, ids), torch.tensor(True))
        assert torch.equal(kept, expected.isfinite())
    assert not rollout.support.counts[~rollout.completion_mask].any()
    assert not rollout.logprobs[~rollout.completion_mask].any()


def test_the_reference_of_the_loss_is_within_the_support_and_that_of_rewards_is_not(policy):
    rollout = sampled(policy, top_k=5)
    within, plainly = policy.logprobs_at(rollout, (0.8, 1.0), reference=True, supports=(rollout.support, None))
    with policy.as_reference():
        for p, g, logits, said in plain(policy, rollout, 0.8):
            kept = torch.full_like(logits, -torch.inf)
            places, ids = rollout.support[p, g][: len(said)].entries()  # what the policy kept, not what it would keep
            kept[places, ids] = logits[places, ids]
            for found, expected in ((within, kept), (plainly, logits * 0.8)):
                wanted = expected.log_softmax(-1).gather(1, said[:, None])[:, 0]
                torch.testing.assert_close(found[p, g, : len(said)], wanted, rtol=1e-4, atol=1e-4)


def test_without_filters_and_greedily_there_is_no_support(policy):
    assert sampled(policy).support is None
    assert sampled(policy, top_k=10_000).support is None
    assert LocalEngine(4, top_k=2).generate(policy, PROMPTS, 1, seed=0, greedy=True).support is None


def test_an_id_of_four_bytes_for_each_token_that_is_kept(policy):
    rollout = sampled(policy, top_k=5)
    assert rollout.support.ids.dtype == torch.int32
    assert rollout.support.ids.numel() == 5 * int(rollout.completion_mask.sum())


def test_groups_and_checkpoints_carry_their_support(policy, tmp_path):
    groups = {}
    nobody = Scores({}, {})
    rollout = LocalEngine(8, top_p=0.5).generate(policy, PROMPTS, 4, seed=3, on_group=groups.__setitem__)
    for number, told in groups.items():
        mask = rollout.completion_mask[number : number + 1]
        expected = rollout.support[number : number + 1][mask].entries()
        for found in (told, rollout.group(number)):
            assert all(map(torch.equal, found.support[mask].entries(), expected))
    for carried in (rollout, replace(rollout, support=None)):
        torch.save(Experience(carried, nobody, torch.zeros(3, 4), mask).state_dict(), tmp_path / "x.pt")
        loaded = Experience.from_state_dict(torch.load(tmp_path / "x.pt", weights_only=True), torch.device("cpu"))
        assert (loaded.rollout.support is None) is (carried.support is None)
        if loaded.rollout.support is not None:
            assert all(map(torch.equal, loaded.rollout.support.entries(), rollout.support.entries()))


@pytest.mark.parametrize("options", FILTERS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize("off_policy", [False, True])
def test_the_first_ratio_is_one_on_and_off_policy(tiny_model, prompts, tmp_path, options, off_policy):
    entropies = []

    class Watching(GRPO):
        def update(self, experience):
            super().update(experience)
            entropies.append(float(self.trainer.callback_metrics["entropy"]))

    engine = LocalEngine(6, 0.8, **options)
    module = grpo(tiny_model, cls=Watching, engine=engine, one_step_off_policy=off_policy, loss=DAPOLoss(beta=0.1))
    run = trainer(tmp_path, max_steps=1, max_epochs=-1)
    run.fit(module, PromptDataModule(str(prompts), batch_size=2))
    assert float(run.callback_metrics["ratio"]) == pytest.approx(1.0, abs=1e-5)
    assert float(run.callback_metrics["kl"]) == pytest.approx(0.0, abs=1e-6)
    if not off_policy:
        assert float(run.callback_metrics["sampling/sampling_logp_difference/max"]) < 1e-4
    if options == {"top_k": 5}:
        assert entropies[0] < torch.tensor(5.0).log()


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("off_policy", [False, True])
def test_a_run_with_a_filter_resumes_bitwise(tiny_model, prompts, tmp_path, off_policy):
    def run(folder, callbacks=(), ckpt=None):
        engine = LocalEngine(6, top_p=0.6, stop=["e", "9"])
        rewards = {"likely": NeedsReference()}
        module = grpo(tiny_model, engine=engine, inner_epochs=2, one_step_off_policy=off_policy, rewards=rewards)
        keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_on_exception=True)
        t = trainer(folder, max_steps=6, max_epochs=-1, enable_checkpointing=True, callbacks=[keep, *callbacks])
        t.fit(module, PromptDataModule(str(prompts), batch_size=3), ckpt_path=ckpt, weights_only=True)
        return adapter_of(module)

    whole = run(tmp_path / "whole")
    with pytest.raises(Interruption):
        run(tmp_path / "broken", [InterruptAt(3)])  # between two inner epochs
    saved = torch.load(tmp_path / "broken" / "last.ckpt", weights_only=True)
    assert saved["grpo"]["experience"][0]["rollout"]["support"]["ids"].numel() > 0
    assert_same(whole, run(tmp_path / "broken", ckpt=tmp_path / "broken" / "last.ckpt"))


def test_micro_batches_and_masked_completions_keep_supports_and_tokens_together(tiny_model):
    """The gradient within supports does not depend on how groups are cut, nor on completions that do not count."""
    policy = loaded(tiny_model)
    perturb(policy)
    rollout = LocalEngine(8, top_k=6).generate(policy, PROMPTS, 3, seed=1)
    mask = rollout.completion_mask.clone()
    mask[1, 0] = mask[2, 2] = False
    whole = policy.logprobs_at(rollout, (1.0,), supports=(rollout.support,))[0]
    for groups in (slice(0, 3), slice(0, 2), slice(2, 3)):
        packed = pack_rollout(rollout, groups, mask)
        found = packed.unpack(policy(packed, support=rollout.support[groups][mask[groups]]).logprobs.detach())
        expected = whole[groups].masked_fill(~mask[groups], 0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
