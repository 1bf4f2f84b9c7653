"""Rollouts for lit-debias from vLLM: on servers, or inside the trainer's process."""

from lit_debias import hookimpl
from lit_debias.plugins import RolloutEngine
from lit_debias_vllm.colocated import ColocatedVLLMEngine
from lit_debias_vllm.engine import VLLMEngine

__all__ = ["ColocatedVLLMEngine", "VLLMEngine", "lit_debias_engines"]


@hookimpl
def lit_debias_engines() -> list[type[RolloutEngine]]:
    """Return the engines of this distribution."""
    return [VLLMEngine, ColocatedVLLMEngine]
