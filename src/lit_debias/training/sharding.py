"""Lightning's ModelParallelStrategy for a policy whose base is shared out over processes, and whose adapter is not.

The adapter, its gradients and the optimiser's state are whole in every process, in fp32: they are hundredths of the
base, and checkpoints, averages of weights, export and engines then are what they are under DDP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch.distributed.device_mesh import init_device_mesh

from lit_debias.errors import UserError
from lit_debias.rollout.engine import RolloutEngine

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class ShardedBase(ModelParallelStrategy):
    """Takes checkpoints of what trains alone, one file each, as DDP does; ``auto`` sizes mean all processes."""

    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True
    optimizer_state = ParallelStrategy.optimizer_state
    load_model_state_dict = ParallelStrategy.load_model_state_dict
    load_optimizer_state_dict = ParallelStrategy.load_optimizer_state_dict
    save_checkpoint = ParallelStrategy.save_checkpoint
    load_checkpoint = ParallelStrategy.load_checkpoint

    def setup_environment(self) -> None:
        """Let processes meet, and arrange them; before there is a module they only meet.

        Raises:
            UserError: ``data_parallel_size`` is not the number of processes.
        """
        processes = self.num_nodes * self.num_processes
        if self._data_parallel_size not in ("auto", processes):
            raise UserError(
                f"trainer.strategy: data_parallel_size is {self._data_parallel_size}, and there are {processes} "
                "processes; write auto"
            )
        self._data_parallel_size, self._tensor_parallel_size = processes, 1
        if self.lightning_module is None:
            self._setup_distributed()
        else:
            super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return what trains; the rest would be gathered for nothing."""
        assert self.lightning_module is not None
        named = self.lightning_module.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}


def adopt_strategy(trainer: Trainer) -> None:
    """Turn a ModelParallelStrategy into :class:`ShardedBase`; the trainer has it already, so it changes its class.

    Raises:
        UserError: it would split single products over processes.
    """
    strategy = trainer.strategy
    if type(strategy) is not ModelParallelStrategy:
        return
    if strategy._tensor_parallel_size not in ("auto", 1):
        raise UserError(
            f"trainer.strategy: tensor_parallel_size is {strategy._tensor_parallel_size}; layers are shared out here, "
            "and products are not split: write tensor_parallel_size: 1"
        )
    strategy.__class__ = ShardedBase
    validation = trainer.fit_loop.epoch_loop.val_loop
    for loop in (validation, trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
        loop.inference_mode = False  # a layer that was gathered in it could not be trained on afterwards


def mesh_of(trainer: Trainer) -> DeviceMesh | None:
    """Return the processes that share the base out, None where each has all of it."""
    if not is_sharding(trainer):
        return None
    # By this name PEFT knows that layers compute whole; Lightning's mesh would stand for split products.
    return init_device_mesh(trainer.strategy.root_device.type, (trainer.world_size,), mesh_dim_names=("fsdp",))


def is_sharding(trainer: Trainer) -> bool:
    """Return whether processes share the base out."""
    return isinstance(trainer.strategy, ShardedBase)


def check_engine(trainer: Trainer, engine: RolloutEngine) -> None:
    """Raise :class:`UserError` for an engine that needs the whole base where processes share it out."""
    if is_sharding(trainer) and engine.needs_base:
        raise UserError(
            f"engine: {type(engine).__name__} needs the whole base in this process, and ModelParallelStrategy leaves "
            "each with a part of it; write VLLMEngine with sync: adapter, whose servers have a base of their own"
        )
