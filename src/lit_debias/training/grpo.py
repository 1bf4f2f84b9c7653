"""GRPO as a LightningModule: the wiring of one step, no mathematics of its own.

A step samples (``engine``), asks the reference (``policy``), scores (``rewards``) and compares (``aggregator``) in
``collect``; it computes the loss (``loss``) and moves the adapter in ``update``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_debias.aggregators import Aggregator, WeightedSum
from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError, did_you_mean
from lit_debias.grpo.correction import ImportanceCorrection
from lit_debias.grpo.loss import DAPOLoss, PolicyLoss, UpdateSize
from lit_debias.packing.tokens import pack_rollout
from lit_debias.plugins.manager import get_plugin_manager, show_scored
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.guard import Guard
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.engine import RolloutEngine
from lit_debias.rollout.local import LocalEngine
from lit_debias.support import distributed
from lit_debias.support.devices import known_device
from lit_debias.support.seeds import seed_at, seed_of_rank, seed_of_run
from lit_debias.training import metrics
from lit_debias.training.adapter_module import AdapterModule, Part
from lit_debias.training.ahead import Ahead
from lit_debias.training.anchor import ProseAnchor
from lit_debias.training.checkpoints import kept_where_it_stops
from lit_debias.training.described import of_grpo
from lit_debias.training.drawing import Collected, Drawing
from lit_debias.training.dynamic_sampling import Choosing, DynamicSampling
from lit_debias.training.rehearsal import class_path
from lit_debias.training.resumption import START_ANEW, check_same, gathered, own_experience
from lit_debias.training.sharding import check_engine
from lit_debias.types import Experience, PromptBatch, Rollout, Scores, own_copy


class GRPO(AdapterModule):
    """Group Relative Policy Optimization (arXiv 2402.03300) with several rewards.

    One training step takes a batch of prompts, samples a group of completions for each, scores them, and makes
    ``inner_epochs`` optimiser steps on them. ``trainer.global_step`` and ``max_steps`` count optimiser steps.

    Args:
        policy: The model that is trained.
        rewards: What is rewarded, by names of your choice; they become metric names and aggregator keys.
        aggregator: Turns scores into advantages; by default the sum of all rewards, normalised in each group.
        engine: Samples completions.
        loss: The policy loss, its clipping, and the KL penalty.
        group_size: Completions for each prompt, at least 2.
        inner_epochs: Optimiser steps on one rollout (mu in the paper).
        micro_batch_tokens: Groups share a forward and backward pass up to so many packed tokens (a prompt counts once);
            changes memory, never the result.
        mask_truncated: Leave completions that the length limit cut out of the loss.
        judges: Rewards that are only measured in validation, never trained on.
        optimizer: Builds the optimiser from the adapter's parameters; by default AdamW as PyTorch sets it.
        lr_scheduler: Builds the schedule, stepped after each optimiser step.
        max_grad_norm: Gradients are scaled down to this norm.
        reward_device: Where rewards and judges compute, as PyTorch names devices: ``cpu``, ``cuda:1``. Null is the
            policy's device.
        overlap_scoring: Score each group once it is finished, while others are still sampled and the reference is
            asked. It pays where the rewards compute elsewhere than the policy: on a ``reward_device``, or behind a
            network. Rewards are then asked group by group, which rounds a little otherwise than all at once. With
            ``one_step_off_policy`` they may compute beside the update.
        one_step_off_policy: Train on the rollout of the step before, which the policy of one update ago sampled; the
            importance ratio is taken against the log-probs that sampling recorded. ``VLLMEngine`` samples the next one
            in the meantime; engines in this process gain nothing. The first step makes no optimiser step.
        seed: Seeds sampling; equal seeds give equal runs. null takes that of ``seed_everything``.
        guard: What to do where a reward or judge fails; by default the run stops.
        guards: Guards of single rewards and judges, by name, instead of ``guard``; null leaves one without.
        correction: Weighs tokens by policy / sampler, for an engine that samples from another distribution than the
            policy's: other kernels, other bits, or the policy of the step before. null trusts that both are the same,
            as they are in ``LocalEngine``.
        dynamic_sampling: Train on groups whose completions differ in advantage alone, and sample others in the place of
            the rest: {groups: 8, max_resamples: 3}. null trains on every group of the batch.
        anchor: Holds the policy to ordinary prose, which training on short answers makes more surprising.

    Raises:
        UserError: a group of fewer than 2, weights or guards for other names than those of the rewards, or
            ``dynamic_sampling`` with an aggregator that learns.
    """

    remedy = "lower the learning rate or raise the aggregator's min_std"

    def __init__(
        self,
        policy: QLoRAPolicy,
        rewards: dict[str, Reward],
        aggregator: Aggregator | None = None,
        engine: RolloutEngine | None = None,
        loss: PolicyLoss | None = None,
        group_size: int = 8,
        inner_epochs: int = 1,
        micro_batch_tokens: int = 2048,
        mask_truncated: bool = False,
        judges: dict[str, Reward] | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        reward_device: str | None = None,
        overlap_scoring: bool = False,
        one_step_off_policy: bool = False,
        seed: int | None = None,
        guard: Guard | None = None,
        guards: dict[str, Guard | None] | None = None,
        correction: ImportanceCorrection | None = None,
        dynamic_sampling: DynamicSampling | None = None,
        anchor: ProseAnchor | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler, max_grad_norm, anchor)
        if not rewards:
            raise UserError("rewards is empty; name at least one reward under model.init_args.rewards")
        self.rewards = RewardSuite(rewards, guard, guards)
        self.aggregator = aggregator or WeightedSum(dict.fromkeys(rewards, 1.0))
        self.engine = engine or LocalEngine()
        self.new_tokens = self.engine.max_new_tokens
        self.loss = loss or DAPOLoss()
        self.judges = RewardSuite(judges or {}, guard, guards)
        self.group_size, self.inner_epochs, self.micro_batch_tokens = group_size, inner_epochs, micro_batch_tokens
        self.mask_truncated, self.one_step_off_policy = mask_truncated, one_step_off_policy
        self.seed = seed_of_run(seed)
        self.reward_device = None if reward_device is None else known_device("reward_device", reward_device)
        self.overlap_scoring, self.correction = overlap_scoring, correction
        self.drawing, self.dynamic_sampling = Drawing(self), dynamic_sampling
        self._choosing = None if dynamic_sampling is None else Choosing(dynamic_sampling, self.drawing)
        self.rollout_step = 0
        self.experience: Experience | None = None
        self.ahead = Ahead(self)
        self._check()
        for name in sorted(set(guards or {}) - set(scored := self.scored_by())):
            raise UserError(f"guards names '{name}', and there is no such reward or judge{did_you_mean(name, scored)}")

    def _check(self) -> None:
        if self.group_size < 2:
            raise UserError(
                f"group_size={self.group_size}: a group of one has no advantage; write model.init_args.group_size >= 2"
            )
        if min(self.inner_epochs, self.micro_batch_tokens) < 1:
            raise UserError("inner_epochs and micro_batch_tokens must be positive")
        names, weighted = set(self.rewards.rewards), set(self.aggregator.names)
        for name in sorted(names & set(self.judges.rewards)):
            raise UserError(f"'{name}' is both a reward and a judge; a judge must have a name of its own")
        for name in sorted(weighted - names):
            raise UserError(
                f"aggregator has a weight for '{name}', and there is no such reward{did_you_mean(name, names)}"
            )
        for name in sorted(names - weighted):
            raise UserError(f"reward '{name}' has no weight in the aggregator; add it to weights or to judges")

    # ---------------------------------------------------------------- one step

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Collect a rollout, and make ``inner_epochs`` optimiser steps on it."""
        start = time.perf_counter()
        with kept_where_it_stops(self):
            (self.ahead.step if self.one_step_off_policy else self._step)(prompts)
        self.rollout_step += 1
        self._log({"rollout_step": float(self.rollout_step), "step_time": time.perf_counter() - start})

    def _step(self, prompts: PromptBatch) -> None:
        if not self.pending:  # otherwise an interrupted run goes on between two inner epochs
            self.experience = self.collect(prompts)
        self.train_on_experience()

    def train_on_experience(self) -> None:
        """Make the inner epochs that are left."""
        while self.pending:
            self.update(cast(Experience, self.experience))

    def collect(self, prompts: PromptBatch) -> Experience:
        """Sample a group of completions for each prompt, score them, and compare those of a group (collective)."""
        with self.collecting(prompts) as collected:
            return collected()

    @contextmanager
    def collecting(self, prompts: PromptBatch) -> Iterator[Callable[[], Experience]]:
        """Begin what :meth:`collect` returns, and yield what waits for it; leaving the context ends what is not done.

        Off-policy, an engine may sample in the background until then.
        """
        with (self._choosing or self.drawing).collecting(prompts, self._sampling_seed()) as collected:
            yield lambda: self._compared(collected())

    def _compared(self, collected: Collected) -> Experience:
        self.rewards.settle(collected.asked)
        rollout, scores = collected.drawn.rollout, collected.drawn.scores
        advantages = self.aggregator(own_copy(scores), self.rollout_step)
        self._scored(rollout=rollout, scores=scores)
        self._log_rollout(rollout, scores, advantages, collected.drawn.seconds)
        self._log(collected.metrics)
        counted = rollout.completion_mask & ~(rollout.truncated[..., None] & self.mask_truncated)
        if self._choosing is not None:  # where no group has a spread, there is one that is not to be learned
            counted &= self.drawing.has_spread(rollout, scores)[:, None, None]
        behaviour = rollout.logprobs if self.one_step_off_policy and self.correction is None else None
        return Experience(rollout, scores, advantages, counted, collected.drawn.reference, old_logprobs=behaviour)

    def update(self, experience: Experience) -> None:
        """Make one optimiser step on the whole experience; how it is cut into micro-batches changes nothing."""
        torch.manual_seed(seed_of_rank(self._sampling_seed() * self.inner_epochs + experience.epochs_done))
        rollout, size = experience.rollout, UpdateSize.of(experience.loss_mask, self.engine.max_new_tokens)
        micro_batches = self.policy.parts(rollout.prompt_mask, experience.loss_mask, self.micro_batch_tokens)
        logprobs: list[Tensor] = []
        loss_of = partial(self._part, experience, size, logprobs)
        sums, norm = self.optimise(micro_batches, loss_of, f"rollout step {self.rollout_step}", rollout.prompts)
        if experience.old_logprobs is None:
            experience.old_logprobs = torch.cat(logprobs)
            self._log(metrics.of_sampling(experience))
        experience.epochs_done += 1
        self._log(metrics.of_update(sums, size) | {"grad_norm": norm}, shown=("kl",))

    # ---------------------------------------------------------------- parts of a step

    @property
    def pending(self) -> bool:
        """Whether a rollout has inner epochs left."""
        return self.experience is not None and self.experience.epochs_done < self.inner_epochs

    def _sampling_seed(self) -> int:
        return seed_at(self.seed, self.rollout_step)

    def _log_rollout(self, rollout: Rollout, scores: Scores, advantages: Tensor, seconds: float) -> None:
        self._log(
            metrics.of_rollout(rollout, scores, self.drawing.total(scores), seconds),
            shown=("reward", "tokens_per_second"),
        )
        self._log(self.aggregator.metrics(own_copy(scores), own_copy(advantages), self.rollout_step))

    def _part(self, experience: Experience, size: UpdateSize, kept: list[Tensor], groups: slice) -> Part:
        """Return what a micro-batch adds to the loss and to the metrics; ``kept`` gets its log-probs [B, G, T]."""
        rollout, mask = experience.rollout, experience.loss_mask[groups]
        packed = pack_rollout(rollout, groups, experience.loss_mask)
        support = rollout.support and rollout.support[groups][mask]
        tokens = self.policy(packed, self.engine.temperature, self.loss.entropy_bonus > 0, support)
        logprobs = packed.unpack(tokens.logprobs)
        kept.append(logprobs.detach())
        reference = experience.reference_logprobs
        old = (kept[-1] if experience.old_logprobs is None else experience.old_logprobs[groups]).flatten(0, 1)
        weights, corrected = self._weights(old, rollout.logprobs[groups].flatten(0, 1), mask.flatten(0, 1))
        loss, measured = self.loss(
            logprobs.flatten(0, 1),
            old,
            experience.advantages[groups].flatten(),
            mask.flatten(0, 1),
            size,
            reference_logprobs=None if reference is None else reference[groups].flatten(0, 1),
            entropy=packed.unpack(tokens.entropy).flatten(0, 1),
            weights=weights,
        )
        return loss, measured | corrected | {"loss": loss.detach()}

    def _weights(self, old: Tensor, sampled: Tensor, mask: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        return (None, {}) if self.correction is None else self.correction(old, sampled, mask)

    # ---------------------------------------------------------------- validation, test, prediction

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Score greedy completions; metrics carry the prefix ``eval_``."""
        self._measure(prompts, "eval_")

    def test_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Score greedy completions; metrics carry the prefix ``test_``."""
        self._measure(prompts, "test_")

    def predict_step(self, prompts: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Return prompt, the data's other columns and greedy completion, a row each."""
        rollout = self._greedy(prompts)
        return [{**row, "completion": texts[0]} for row, texts in zip(prompts.rows(), rollout.texts, strict=True)]

    def _greedy(self, prompts: PromptBatch) -> Rollout:
        with self.policy.failing_together():
            return self.engine.generate(self.policy, prompts, group_size=1, seed=0, greedy=True)

    def _measure(self, prompts: PromptBatch, prefix: str) -> None:
        everyone = RewardSuite(self.scored_by())
        with kept_where_it_stops(self):
            with distributed.fail_together():
                rollout, _ = self.drawing.with_reference(self._greedy(prompts), everyone, for_loss=False)
                scores, judged = self.rewards.score(rollout), self.judges.score(rollout)
            self.rewards.settle(scores)
            self.judges.settle(judged)
        values = metrics.of_validation(rollout, scores, judged, self.drawing.total(scores))
        for name, value in values.items():
            how, shown = metrics.OVER_RANKS.get(name, "mean"), name == "reward"
            self.log(prefix + name, value, shown, reduce_fx=how, on_epoch=True, sync_dist=True, batch_size=len(prompts))

    # ---------------------------------------------------------------- Lightning's life cycle

    def scored_by(self) -> dict[str, Reward]:
        """Return all rewards and judges, by name."""
        return {**self.rewards.rewards, **self.judges.rewards}

    def setup(self, stage: str) -> None:
        """Check the engine, the data's columns and its batches before a model is loaded."""
        super().setup(stage)
        check_engine(self.trainer, self.engine)
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and self._choosing is not None and isinstance(data, PromptDataModule):
            self._choosing.options.share(data.batch_sizes["train"] // distributed.world_size())
        columns = getattr(data, "column_names", None)
        if columns is not None:
            self.rewards.check_columns(columns)
            self.aggregator.check_columns(columns)
            self.judges.check_columns(columns)

    def configure_model(self) -> None:
        """Load policy and rewards onto this rank's device; called for every stage, loads once."""
        if self.is_loaded:
            return
        super().configure_model()
        with distributed.fail_together():  # a process may have servers of its own
            self.engine.prepare(self.policy)
        self._check_ends()
        device = self.reward_device or self.policy.device
        self.rewards.setup(device)
        self.judges.setup(device)
        self._scored = partial(show_scored, get_plugin_manager())

    def _check_ends(self) -> None:
        if self.policy.eos_token_ids:
            return
        if self.mask_truncated:
            raise UserError(
                f"policy: model '{self.policy.source}' has no end-of-sequence token, so every completion is truncated, "
                "and mask_truncated would leave nothing to train on; write mask_truncated: false"
            )
        rank_zero_warn(
            f"model '{self.policy.source}' has no end-of-sequence token: every completion has max_new_tokens tokens"
        )

    def training_record(self) -> dict[str, Any]:
        """Return how the adapter was trained, with the rewards and their weights at the end."""
        return super().training_record() | of_grpo(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter, the step, and a rollout that still has inner epochs to go; leave the base out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["grpo"] = {
            "rollout_step": self.rollout_step,
            "experience": gathered(self.experience if self.pending else None),
            **self.ahead.state_dict(),
            "aggregator": self.aggregator.state_dict(),
            "aggregator_class": class_path(self.aggregator),
            "inner_epochs": self.inner_epochs,
            "temperature": self.engine.temperature,
        }

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another run, as every module, and of another aggregator or group.

        Raises:
            UserError: says what is another one.
        """
        super().check_checkpoint(checkpoint)
        state, mine = checkpoint.get("grpo"), class_path(self.aggregator)
        if state is None:
            raise UserError(f"the checkpoint is not of a run of GRPO; {START_ANEW}")
        check_same("aggregator", state.get("aggregator_class", mine), mine)
        waiting = [rollout for rollout in (*state["experience"], *state.get("ahead", [])) if rollout]
        if not waiting:
            return
        now = {"group_size": self.group_size, "temperature": self.engine.temperature}
        was = {"group_size": waiting[0]["advantages"].shape[1], "temperature": state.get("temperature")}
        if any(state["experience"]):
            now["inner_epochs"], was["inner_epochs"] = self.inner_epochs, state.get("inner_epochs")
        for name, value in was.items():
            if value not in (None, now[name]):
                raise UserError(
                    f"the checkpoint holds a rollout that is not trained on yet, with {name}={value}, and the "
                    f"configuration says {now[name]}; write {value}, or resume from the end of a step"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what :meth:`on_save_checkpoint` kept.

        Raises:
            UserError: the checkpoint is of another adapter, or another number of processes in the middle of a step.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("grpo")
        if state is None:  # of a baseline, whose adapter is validated or predicts
            return
        self.rollout_step = state["rollout_step"]
        if state.get("aggregator_class", mine := class_path(self.aggregator)) == mine:
            self.aggregator.load_state_dict(state["aggregator"])
        self.experience = own_experience(state["experience"], self.policy.device)
        self.ahead.load_state_dict(state)
