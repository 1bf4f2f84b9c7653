"""A frozen base whose layers processes share out (FSDP2): each keeps a part of every layer.

A layer is whole on a device only while it computes, forward or backward. What stands outside of the layers is whole on
every device: the embedding, the last norm, and the output layer, whose weight log-probs read in slices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_debias.errors import UserError
from lit_debias.models.base_weights import load_base
from lit_debias.models.layers import is_quantized, weights_digest
from lit_debias.models.probing.layouts import decoder_of
from lit_debias.support import distributed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

OBSTACLE = "its layers are shared out over processes"


def load_sharded_base(
    source: str, quantization: str, dtype: torch.dtype, device: torch.device | str, mesh: DeviceMesh
) -> PreTrainedModel:
    """Load the policy's base as :func:`load_base` does, and share its layers out. Every process of the mesh must call.

    Where files hold ``dtype``, they are mapped into memory: processes of a machine have the same pages, and a layer is
    read when it goes to its device, quantised there, and cut. A device never holds more than its parts and one layer.

    Args:
        source: The model.
        quantization: ``nf4`` or ``none``.
        dtype: Of plain weights, and of what 4-bit weights stand for.
        device: This process's.
        mesh: The processes that share layers out, one dimension without a name, or with that of ``fsdp``.

    Raises:
        UserError: processes have other weights; the model has no layers that can be shared out, or stored 4-bit ones;
            or see :func:`load_base`.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model: Any = load_base(source, "none", dtype, "cpu").requires_grad_(False)
    layers = _layers(model, source)
    distributed.check_alike({f"the weights of model '{source}'": weights_digest(model)})
    for layer in layers:
        if quantization == "nf4":
            _quantize(layer, dtype, source)
        fully_shard(layer.to(device), mesh=mesh, reshard_after_forward=True)
    model.to(device)
    whole = {parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(decoder_of(model), mesh=mesh, ignored_params=whole)  # the root: it fetches layers ahead
    return model  # type: ignore[no-any-return]


def _layers(model: PreTrainedModel, source: str) -> list[nn.Module]:
    """Return the layers that transformers names as those that stay in one piece; none lies within another."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in decoder_of(model).modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(
            f"policy: model '{source}' does not say what its layers are, so they cannot be shared out; write "
            "trainer.strategy: ddp, or another model"
        )
    if any(map(is_quantized, model.modules())):
        raise UserError(
            f"policy: model '{source}' is stored in 4 bits, which cannot be shared out over processes; write the model "
            "that it was made from, with quantization: nf4"
        )
    return layers


def _quantize(layer: nn.Module, dtype: torch.dtype, source: str) -> None:
    """Put 4-bit layers in the place of linear ones; their weights become codes once they go to a device.

    The codes are those of :func:`lit_debias.models.loading.nf4_config`, kept in ``dtype``: FSDP2 gathers one type.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers.pytorch_utils import Conv1D

    for name, linear in [*layer.named_modules()]:
        if isinstance(linear, Conv1D):
            raise UserError(
                f"policy: model '{source}' keeps its weights transposed, which cannot be shared out in 4 bits; write "
                "quantization: none"
            )
        if type(linear) is not nn.Linear:
            continue
        shape: dict[str, Any] = {"input_features": linear.in_features, "output_features": linear.out_features}
        options = {"quant_type": "nf4", "quant_storage": dtype}
        coded = Linear4bit(**shape, bias=linear.bias is not None, compute_dtype=dtype, device="meta", **options)
        coded.weight = Params4bit(linear.weight.data, requires_grad=False, module=coded, **options)
        coded.bias = linear.bias
        layer.set_submodule(name, coded)
