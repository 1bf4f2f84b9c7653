"""Measures of ``lit-debias evaluate`` while a policy trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng

from lit_debias.benchmark.benchmark import Benchmark
from lit_debias.data.images import Images
from lit_debias.errors import UserError, did_you_mean
from lit_debias.evaluation.benchmarked import PublicBenchmarks
from lit_debias.evaluation.examiner import Examiner
from lit_debias.evaluation.fingerprint import check_judges
from lit_debias.evaluation.measures import Estimates
from lit_debias.evaluation.settings import check_numbers
from lit_debias.evaluation.spot_check import Choice, SpotCheck, read_rows
from lit_debias.plugins.benchmarks import benchmarks_of
from lit_debias.policy.policy import Policy
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.support import distributed
from lit_debias.training.adapter_module import AdapterModule
from lit_debias.training.grpo import GRPO
from lit_debias.training.sharding import is_sharding

T = TypeVar("T")
PREFIX = "evaluate/"
"""Of the names of metrics."""


class EvaluationCallback(Callback):
    """Measure the policy as ``lit-debias evaluate`` does, on a few prompts, while it trains.

    Before the first step, and then every ``every_n_steps``, it logs each figure as ``evaluate/<measure>`` with its 95%
    bootstrap interval, ``evaluate/<measure>_low`` and ``evaluate/<measure>_high``, whatever ``log_every_n_steps`` is.
    ``ModelCheckpoint(monitor="evaluate/...", every_n_train_steps=...)`` keeps the best adapter by one of them. No
    second model is loaded, and training draws the same random numbers with it as without it. Of several processes the
    first one measures, while the others wait.

    Args:
        measures: What is measured, by the names of ``results.json``: ``bias_intensity`` for every judge or
            ``bias_intensity/NAME`` for one, ``gap_intensity`` between twins, ``preference``, ``prose_perplexity``, ...;
            benchmarks: ``crows_pairs`` for all its figures, ``crows_pairs/pct_stereotype`` for one. The progress bar
            shows the first figure.
        every_n_steps: Optimiser steps between two measurements.
        data: Prompts that nothing trains on, as ``lit-debias evaluate --data`` takes them; benchmarks need none.
        splits: Splits of the data whose prompts are used; by default as there.
        columns: Name of a column -> its name in the data, as there.
        limit: At most this many prompts, each with its twin, of those that the measures rest on.
        judges: Rewards in [0, 1] (1 is fair) that nothing is trained on; by default the judges of GRPO.
        engine: Samples the answers; by default that of GRPO, if it is a LocalEngine.
        batch_size: Prompts in one forward pass.
        benchmarks: Further benchmarks, as ``lit-debias evaluate`` takes them: names, ``all-offline``, or a list in
            which some have options. All figures of one are logged, or those that ``measures`` names.
        benchmark_data: Folder that holds a folder for each benchmark that does not bring its data, or ``hub``.
        benchmark_limit: At most this many items of each, every stratum with its share.
        bootstrap: Bootstrap samples behind the intervals.
        seed: Draws prompts, answers and bootstrap samples, the same at every measurement.
        images: Column of the data with the pictures that each prompt shows, and their folder, for ``VLMPolicy``.

    Raises:
        UserError: there is no such measure, or a number is below 1; before training, the data or a judge is missing, or
            a ModelCheckpoint monitors what is not measured at its steps.
    """

    def __init__(
        self,
        measures: list[str] | None = None,
        every_n_steps: int = 20,
        data: str | None = None,
        splits: str | list[str] | None = None,
        columns: dict[str, str] | None = None,
        limit: int | None = 16,
        judges: dict[str, Reward] | None = None,
        engine: LocalEngine | None = None,
        batch_size: int = 8,
        benchmarks: str | list[str | Benchmark] = "",  # type: ignore[type-arg]  # jsonargparse takes the plain class
        benchmark_data: str | None = None,
        benchmark_limit: int | None = 100,
        bootstrap: int = 1000,
        seed: int = 0,
        images: Images | None = None,
    ) -> None:
        with _named():
            check_numbers(
                every_n_steps=every_n_steps,
                limit=limit,
                batch_size=batch_size,
                benchmark_limit=benchmark_limit,
                bootstrap=bootstrap,
            )
            self.choice = Choice(tuple(measures or ()), tuple(benchmarks_of(benchmarks)))
        self.every_n_steps, self.batch_size, self.seed = every_n_steps, batch_size, seed
        self.data, self.splits, self.columns, self.limit = data, splits, columns, limit
        self.judges, self.engine, self.images = judges, engine, images
        self.benchmark_data, self.benchmark_limit, self.bootstrap = benchmark_data, benchmark_limit, bootstrap
        self.step = -1
        """Optimiser steps before the last measurement, -1 before the first."""
        self.values: dict[str, float] = {}
        """What was logged then."""

    # ---------------------------------------------------------------- before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read and check what will be asked, before a model is loaded."""
        self.step, self.values = -1, {}
        if stage == "fit":
            with _named():
                if is_sharding(trainer):
                    raise UserError(
                        "the first process measures alone, and ModelParallelStrategy leaves it a part of the base; "
                        "leave it out, and measure the adapter with lit-debias evaluate"
                    )
                self.spot_check = self._read(pl_module)

    def _read(self, module: LightningModule) -> SpotCheck:
        if not isinstance(module, AdapterModule):
            raise UserError("it measures a policy that GRPO, SFT or DPO trains; leave it out")
        suites = self._suites(module)
        limit, seed = self.benchmark_limit, self.seed
        benchmarks = PublicBenchmarks.of(self.choice.benchmarks, self.benchmark_data, limit, seed, self.bootstrap)
        benchmarks.read()
        if self.choice.of_prompts and module.policy_recipe.reads_pictures != (self.images is not None):
            raise UserError(
                "VLMPolicy is asked with pictures, and others are not; write images for it, and for it alone"
            )
        rows = read_rows(self.choice, self.data, self.splits, self.columns, self.limit, seed, suites, self.images)
        judges, rewards, engine = suites["judges"], suites["rewards"], self._engine(module)
        examiner = Examiner(judges, rewards, engine, self.batch_size, seed=seed, parts=self.choice.parts)
        return SpotCheck(rows, examiner, benchmarks)

    def _suites(self, module: AdapterModule) -> dict[str, RewardSuite]:
        judges, rewards = RewardSuite(self.judges or {}), RewardSuite({})
        if isinstance(module, GRPO):
            check_judges(judges.rewards, module.rewards.rewards)
            judges = judges if self.judges else module.judges
            rewards = module.rewards if "reward" in self.choice.firsts else rewards
        return {"judges": judges, "rewards": rewards}

    def _engine(self, module: AdapterModule) -> LocalEngine:
        own = self.engine or getattr(module, "engine", None) or LocalEngine()
        return own if isinstance(own, LocalEngine) else LocalEngine(own.max_new_tokens, own.temperature)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the policy can read what it is asked and does not learn from it, and load judges of one's own."""
        with _named():
            _on_first_rank(lambda: self._load(pl_module))

    def _load(self, module: LightningModule) -> None:
        assert isinstance(module, AdapterModule)
        self.spot_check.check_unseen(module.training_record()["data"], module.policy_recipe.adapter)
        self.spot_check.check(policy_of(module))
        if self.judges:
            device = module.reward_device if isinstance(module, GRPO) else None
            self.spot_check.examiner.judges.setup(device or policy_of(module).device)

    # ---------------------------------------------------------------- while it trains

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure before the first step; a run that is resumed knows what was measured last."""
        if self._due(trainer):
            self._measure(trainer, pl_module)
        else:
            show(trainer, self.values)
        with _named():
            check_monitors(trainer, self.values, self.every_n_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where it is time."""
        if self._due(trainer):
            self._measure(trainer, pl_module)

    def _due(self, trainer: Trainer) -> bool:
        return trainer.global_step // self.every_n_steps > self.step // self.every_n_steps

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        with _named():
            found = _on_first_rank(lambda: self._values(policy_of(module)))
        for name in self.values.keys() - found.keys():  # of another step: no best one is chosen by it
            trainer.callback_metrics.pop(name, None)
        self.step, self.values = trainer.global_step, found
        show(trainer, found)
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.fit_loop.total_batch_idx + 1)

    def _values(self, policy: Policy) -> dict[str, float]:
        found = self.spot_check.figures(policy)
        for suite in (self.spot_check.examiner.judges, self.spot_check.examiner.rewards):
            suite.forget_failures()
        if self.step < 0:
            self.choice.check(found)
        return to_log(self.choice.among(found))

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return when what was measured last, and what came out."""
        return {"measures": list(self.choice.names), "step": self.step, "values": dict(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned, if it is of the same measures."""
        if state_dict["measures"] == list(self.choice.names):
            self.step, self.values = state_dict["step"], dict(state_dict["values"])


def policy_of(module: LightningModule) -> Policy:
    """Return the policy that a module trains; setup refuses modules without one."""
    assert isinstance(module, AdapterModule)
    return module.policy


def to_log(found: Estimates) -> dict[str, float]:
    """Return figures and the ends of their intervals by the names of metrics; what is no number is left out."""
    values: dict[str, float | None] = {}
    for name, estimate in found.items():
        known = estimate.as_dict()
        ends = {f"{PREFIX}{name}_{end}": known[end] for end in ("low", "high")}
        values |= {f"{PREFIX}{name}": known["value"], **ends}
    return {name: value for name, value in values.items() if value is not None}


def show(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Give values to other callbacks, and the first of them to the progress bar."""
    metrics = {name: torch.tensor(value) for name, value in values.items()}
    trainer.callback_metrics.update(metrics)
    trainer.progress_bar_metrics.update({name: float(value) for name, value in list(values.items())[:1]})


def check_monitors(trainer: Trainer, names: Collection[str], every_n_steps: int) -> None:
    """Check the checkpoints that are chosen by what is measured here.

    Raises:
        UserError: one waits for another name, or would be saved where nothing new has been measured.
    """
    for checkpoint in trainer.checkpoint_callbacks:
        monitor = (isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor) or ""
        if not monitor.startswith(PREFIX):
            continue
        if monitor not in names:
            raise UserError(
                f"ModelCheckpoint monitors '{monitor}', which is not measured{did_you_mean(monitor, names)}"
            )
        saved = getattr(checkpoint, "_every_n_train_steps", every_n_steps)
        if saved == 0 or saved % every_n_steps:
            raise UserError(
                f"ModelCheckpoint monitors '{monitor}' at steps where it is not measured; write every_n_train_steps: "
                f"{every_n_steps} there"
            )


def _on_first_rank(work: Callable[[], T]) -> T:
    """Return to every process what the first one finds; none goes on with other random numbers."""
    found: list[T] = []
    with distributed.fail_together(), isolate_rng():
        if distributed.rank() == 0:
            found.append(work())
    [answer, *_] = distributed.gather_objects(found)
    result: T = answer[0]
    return result


@contextmanager
def _named() -> Iterator[None]:
    """Say in errors where they come from."""
    try:
        yield
    except UserError as error:
        raise UserError(f"EvaluationCallback: {error}") from error
