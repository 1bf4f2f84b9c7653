"""What every module that trains the policy's adapter shares: optimiser, its step, logging, adapter-only checkpoints."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_debias.data import PromptDataModule
from lit_debias.data.columns import cells
from lit_debias.data.sources import ORIGIN
from lit_debias.errors import UserError, did_you_mean
from lit_debias.export.folder import write_adapter
from lit_debias.policy.lengths import check_prompts
from lit_debias.policy.policy import Policy
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rewards.reward import Reward
from lit_debias.support import distributed, threads
from lit_debias.support.neighbours import making_room
from lit_debias.support.precision import dtype_of
from lit_debias.training.anchor import ProseAnchor
from lit_debias.training.averaging import average_adapters
from lit_debias.training.checkpoints import RECORD, read
from lit_debias.training.described import of_module
from lit_debias.training.machines import check_base, check_machines
from lit_debias.training.metrics import OVER_RANKS
from lit_debias.training.outputs import default_outputs
from lit_debias.training.rehearsal import Recipe, class_path, rehearse
from lit_debias.training.resumption import check_checkpoint, record, say_differences
from lit_debias.training.sharding import adopt_strategy, mesh_of
from lit_debias.training.trainer_checks import autocast_dtype, check_options, check_pictures, check_precision
from lit_debias.types import PromptBatch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from typing_extensions import Self

Metrics: TypeAlias = dict[str, Tensor]
Part: TypeAlias = tuple[Tensor, Mapping[str, Tensor | float]]
"""What a micro-batch adds to the loss of the whole update, over all ranks, and to what the update measures."""


class AdapterModule(LightningModule):
    """Trains the adapter of a :class:`QLoRAPolicy` with manual optimisation.

    Args:
        policy: The model that is trained.
        optimizer: Builds the optimiser from the adapter's parameters; by default AdamW as PyTorch sets it.
        lr_scheduler: Builds the schedule, stepped after each optimiser step; one that watches a metric is stepped after
            each batch, and after each validation where the metric is of validation.
        max_grad_norm: Gradients are scaled down to this norm.
        anchor: Adds a term to the loss that holds the policy to ordinary language.

    Raises:
        UserError: ``max_grad_norm`` is not positive; and in ``setup``, whatever does not suit the trainer.
    """

    remedy: ClassVar[str] = "lower the learning rate"
    """What to do where a gradient is not finite."""
    policy: Policy
    """The model that is trained, from :meth:`load_policy` on."""
    micro_batch_tokens: int = 2048
    """Packed tokens that share a forward and backward pass."""
    new_tokens: int = 1
    """Tokens of the longest completion that is sampled."""

    def __init__(
        self,
        policy: QLoRAPolicy,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        anchor: ProseAnchor | None = None,
    ) -> None:
        super().__init__()
        if not max_grad_norm > 0:
            raise UserError("max_grad_norm must be positive")
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the adapter alone; on_load_checkpoint compares the names
        self.policy_recipe = policy
        # Not the default of the argument: options of AdamW would reach another optimiser that a file names.
        self.make_optimizer, self.make_scheduler = optimizer or AdamW, lr_scheduler
        self.max_grad_norm, self.anchor = max_grad_norm, anchor
        self.recipe: Recipe | None = None
        """How it is optimised, known after :meth:`setup` of a fit."""
        self.resumes_from: str | None = None
        """A checkpoint to look at before a model loads; Lightning says which one it is only afterwards."""
        self._norm = math.nan
        self._short_wait = threads.ShortWait()

    # ---------------------------------------------------------------- one optimiser step

    def optimise(
        self, micro_batches: Sequence[slice], loss_of: Callable[[slice], Part], name: str, prompts: PromptBatch
    ) -> tuple[Counter[str], float]:
        """Make one optimiser step on the sum of what micro-batches add to the loss.

        Args:
            micro_batches: The groups that share a forward and backward pass, cut as memory asks.
            loss_of: Computes the part of a micro-batch.
            name: The step's, for errors.
            prompts: This rank's, for errors.

        Returns:
            The sums of what this rank measured, and the norm of the gradient before clipping.

        Raises:
            FloatingPointError: the gradient is not finite.
            UserError: the schedule has no such step.
        """
        optimizer = cast(Optimizer, self.optimizers())
        optimizer.zero_grad()
        sums: Counter[str] = Counter()
        with making_room(self.device):
            if self.anchor is not None:
                self._log({"anchor": self._hold(self.anchor)})
            for groups in self.policy.in_step(micro_batches):
                loss, measured = loss_of(groups)
                with self._gradient_sync(last=groups == micro_batches[-1]):
                    self.manual_backward(loss * distributed.world_size())  # DDP averages, the loss is over all ranks
                sums.update({key: float(value) for key, value in measured.items()})
            if self.policy.is_sharded:
                distributed.average_gradients(self.policy.trainable_parameters().values())
            return sums, self._optimizer_step(optimizer, name, prompts)

    def _hold(self, anchor: ProseAnchor) -> float:
        """Add the gradient of an anchor to that of this rank; return the term's value over all ranks, scaled so."""
        value = 0.0
        for term in anchor.terms(self.policy, self.global_step, self.micro_batch_tokens):
            with self._gradient_sync(last=False):
                self.manual_backward(term * distributed.world_size())
            value += float(term.detach())
        return value * distributed.world_size()

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        strategy = self.trainer.strategy
        if last or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return cast(AbstractContextManager[None], strategy.block_backward_sync())

    def _optimizer_step(self, optimizer: Optimizer, name: str, prompts: PromptBatch) -> float:
        """Clip, step, and return the norm of the gradient before clipping; an error says the step's name and prompt."""
        try:
            optimizer.step()  # calls on_before_optimizer_step
        except FloatingPointError as error:
            raise FloatingPointError(
                f"the gradient of {name} is not finite (first prompt: {prompts.texts[0]!r:.60}); "
                f"{self.remedy}; the last checkpoint is untouched"
            ) from error
        schedule = self._schedule()
        if schedule is not None and not isinstance(schedule, ReduceLROnPlateau):
            try:
                schedule.step()
            except ValueError as error:  # a schedule that knows its end, in a run that counts epochs
                raise UserError(f"lr_scheduler: {error}; write as many steps as the run makes") from error
        return self._norm

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, which a loss scaler has divided by its scale by now.

        Raises:
            FloatingPointError: it is not finite. A scaler leaves out that step and halves its scale, as long as it is
                above 1.
        """
        parameters = self.policy.trainable_parameters().values()
        self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        skipped = scaler is not None and scaler.get_scale() > 1
        if not math.isfinite(self._norm) and not skipped:  # the same on every rank: gradients have been averaged
            raise FloatingPointError(f"the gradient's norm is {self._norm}")

    def _schedule(self) -> LRScheduler | ReduceLROnPlateau | None:
        return cast("LRScheduler | ReduceLROnPlateau | None", self.lr_schedulers())

    def _follow_metric(self, of_validation: bool) -> None:
        """Step a schedule that watches a metric, where its metric is new."""
        schedule = self._schedule() if self.trainer.state.fn == "fit" else None
        if not isinstance(schedule, ReduceLROnPlateau):
            return
        name, known = str(schedule.monitor), self.trainer.callback_metrics  # type: ignore[attr-defined]
        if name.startswith("eval_") != of_validation or not self.global_step:
            return
        if name not in known:
            raise UserError(f"lr_scheduler: there is no metric '{name}' to monitor{did_you_mean(name, known)}")
        schedule.step(float(known[name]))

    def _log(self, values: Mapping[str, float], shown: Collection[str] = ()) -> None:
        for name, value in values.items():
            how, prog_bar = OVER_RANKS.get(name, "mean"), name in shown
            self.log(name, value, prog_bar, on_step=True, on_epoch=False, reduce_fx=how, sync_dist=True, batch_size=1)

    # ---------------------------------------------------------------- Lightning's life cycle

    def configure_callbacks(self) -> list[Any]:
        """Check the trainer's options, before it does; let averages of weights see the adapter alone; add outputs."""
        adopt_strategy(self.trainer)
        check_options(self.trainer)
        if self.trainer.state.fn == "fit":
            average_adapters(self.trainer)
        return default_outputs(self.trainer)

    def setup(self, stage: str) -> None:
        """Check precision, optimiser, schedule and checkpoint; subclasses check the data, before a model is loaded."""
        # The state after the optimiser step, which Lightning warns of, is the one to resume from.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # it is, see settle_mode
        share_cores()
        check_pictures(self.policy_recipe, getattr(self.trainer, "datamodule", None), getattr(self, "engine", None))
        device, plugin = self.trainer.strategy.root_device, self.trainer.precision_plugin
        check_precision(self.trainer, dtype_of(self.policy_recipe.precision, device))
        with plugin.forward_context():
            mixed = autocast_dtype(device) is not None
        if mixed:  # the policy has an autocast of its own; rewards, judges and sampling are to have none
            plugin.forward_context = nullcontext  # type: ignore[method-assign]
        if stage == "fit":
            self.recipe = rehearse(self.make_optimizer, self.make_scheduler, self.trainer)
            given = "none" if self.resumes_from is None else "there"
            distributed.check_alike({"the checkpoint to go on from": given})  # each process has looked for one
            if self.resumes_from is not None:
                self.check_checkpoint(self.trainer.strategy.load_checkpoint(self.resumes_from))
        check_machines(self, self.scored_by())

    def scored_by(self) -> dict[str, Reward]:
        """Return all rewards and judges that a subclass has, by name."""
        return {}

    def teardown(self, stage: str) -> None:
        """Give the trainer its autocast back."""
        self._short_wait.end()
        vars(self.trainer.precision_plugin).pop("forward_context", None)

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that this run cannot go on from; a fit alone calls it.

        Raises:
            UserError: says what is another one.
        """
        assert self.recipe is not None
        check_checkpoint(checkpoint, class_path(self), self.recipe, self.trainer)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let threads wait for short where other processes want the cores."""
        self._short_wait.follow(crowded=threads.crowd() is not None)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Step a schedule that watches a metric of training."""
        self._follow_metric(of_validation=False)

    def on_validation_end(self) -> None:
        """Step a schedule that watches a metric of validation."""
        if not self.trainer.sanity_checking:
            self._follow_metric(of_validation=True)

    def configure_model(self) -> None:
        """Load the policy onto this rank's device, and check the prompts; called for every stage, loads once."""
        self.load_policy(self.trainer.strategy.root_device, mesh_of(self.trainer))
        for prompts in self._tables():
            check_prompts(self.policy, prompts.asked, prompts.columns[ORIGIN], self.new_tokens)

    def load_policy(self, device: torch.device | str = "cpu", mesh: DeviceMesh | None = None) -> Policy:
        """Load the policy onto a device, unless it is there, and return it; see :meth:`QLoRAPolicy.load`."""
        if not self.is_loaded:
            self.policy = self.policy_recipe.load(device, mesh)
            check_base(self.policy)
        return self.policy

    @property
    def is_loaded(self) -> bool:
        """Whether the policy is there."""
        return "policy" in self._modules

    def _tables(self) -> list[PromptBatch]:
        """Return every split of the data that this stage reads, with file and row of each prompt in ``ORIGIN``."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, PromptDataModule):
            return []
        tables = [rows for rows in data.rows.values() if rows is not None]
        return [data.collate({name: list(cells(rows, name)) for name in rows.column_names}) for rows in tables]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser over the adapter's parameters, and the schedule if there is one."""
        optimizer = self.make_optimizer(self.policy.trainable_parameters().values())
        if self.make_scheduler is None:
            return optimizer
        return [optimizer], [self.make_scheduler(optimizer)]

    # ---------------------------------------------------------------- what is kept

    def save_adapter(self, out: Path, base: str | None = None) -> None:
        """Write the adapter's folder; see :func:`lit_debias.export.folder.write_adapter`."""
        write_adapter(self.policy, out, self.training_record(), base)

    def training_record(self) -> dict[str, Any]:
        """Return how the adapter was trained, in plain values, for its model card."""
        return of_module(self)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: torch.device | str | None = None, **arguments: Any
    ) -> Self:
        """Return a module with the adapter of a checkpoint on its policy.

        A checkpoint holds the adapter and the optimiser's state, and no base, reward or option. To go on training,
        resume with ``Trainer.fit(..., ckpt_path=...)`` instead.

        Args:
            checkpoint_path: The checkpoint.
            map_location: Device of the policy, by default the CPU.
            arguments: Those of the class, ``policy`` among them, as the run had them.

        Raises:
            UserError: there is no ``policy``; or the checkpoint cannot be read, or is of another adapter.
        """
        if "policy" not in arguments:
            rewards = ", rewards={...}" if "rewards" in signature(cls).parameters else ""
            raise UserError(
                "a checkpoint holds an adapter, and no base and no options; write "
                f"{cls.__name__}.load_from_checkpoint(PATH, policy=QLoRAPolicy(...){rewards}) as in the run, or take "
                "the adapter's folder that fit left: QLoRAPolicy(MODEL, adapter=FOLDER)"
            )
        content = read(Path(checkpoint_path))
        module = cls(**arguments)
        module.load_policy(map_location or "cpu")
        module.check_adapter(content)
        module.load_state_dict(content["state_dict"], strict=False)
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter, or its average, and how it is trained; leave the base out."""
        names = [f"policy.{name}" for name in self.policy.trainable_parameters()]
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in names}
        checkpoint[RECORD] = record(class_path(self), self.recipe)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another adapter or run, before Lightning copies what it holds.

        Raises:
            UserError: names or shapes differ, or see :meth:`check_checkpoint`.
        """
        if self.trainer.state.fn == "fit":
            self.check_checkpoint(checkpoint)
            assert self.recipe is not None
            say_differences(checkpoint, self.recipe, self.trainer)
        self.check_adapter(checkpoint)

    def check_adapter(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another adapter.

        Raises:
            UserError: names or shapes differ.
        """
        expected = {f"policy.{name}": tuple(p.shape) for name, p in self.policy.trainable_parameters().items()}
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        if expected != found:
            odd = min(set(expected.items()) ^ set(found.items()))
            raise UserError(
                f"the checkpoint does not fit the policy (first difference: {odd[0]} {list(odd[1])}); "
                "write the model, rank and targets that it was trained with"
            )


def share_cores() -> None:
    """Leave each rank its part of the cores, however the ranks of this machine were started; all must call it.

    A launcher knows of the processes that it starts itself: of two "nodes" on one machine each takes all cores. Threads
    are only ever made fewer.
    """
    count = threads.of_ranks(distributed.gather_objects(threads.place()), distributed.rank())
    if count is not None and count < torch.get_num_threads():
        torch.set_num_threads(count)
