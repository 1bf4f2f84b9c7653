"""Which linear layers get an adapter: those of the text decoder whose product is all that they are used for."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_debias.errors import UserError
from lit_debias.models.checks import FAILURES, plain_pass
from lit_debias.models.layers import is_quantized

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

ALL = "all-linear"
READ_BY_KERNELS = {"x_proj", "dt_proj", "out_proj"}
"""Layers of state-space models whose weights go into a kernel, past their adapters."""
PASSAGE = 16  # tokens of the text that shows which layers are called
_log = logging.getLogger(__name__)


def is_linear(layer: nn.Module) -> bool:
    """Return whether a layer is a matrix product and a bias, no more: plain, 4-bit, or GPT-2's transposed one.

    A subclass may do more, as routers do, or hold codes in place of weights.
    """
    from transformers.pytorch_utils import Conv1D

    if type(layer) in (nn.Linear, Conv1D):
        return True
    return isinstance(layer, nn.Linear) and (is_quantized(layer) or _multiplies(layer))


@torch.no_grad()
def _multiplies(layer: nn.Linear) -> bool:
    """Return whether a subclass, such as Falcon's, computes what its parent does."""
    if not layer.weight.is_floating_point() or layer.weight.element_size() == 1:
        return False
    inputs = torch.linspace(-1, 1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)[None]
    try:
        found = layer(inputs)
    except FAILURES:  # its inputs have another shape
        return False
    expected = nn.functional.linear(inputs, layer.weight, layer.bias)
    return isinstance(found, Tensor) and bool(torch.allclose(found, expected, rtol=0.02, atol=0.02))


def called_layers(model: PreTrainedModel, source: str) -> set[str]:
    """Return the linear layers that a text calls, and whose products its logits follow smoothly; see :func:`kind_of`.

    A layer that only chooses (the best of some tokens, or of some experts) passes no gradient on, so that an adapter on
    it would never learn.

    Raises:
        UserError: the model cannot read a short text, or its gradients are not finite.
    """
    found: set[str] = set()
    embedding: Any = model.get_input_embeddings()
    ids = _passage(embedding).to(model.device)[None]
    with ExitStack() as hooks, torch.enable_grad():
        hooks.callback(embedding.register_forward_hook(lambda _m, _i, output: output.requires_grad_()).remove)
        for name, layer in model.named_modules():
            if is_linear(layer):
                hooks.callback(layer.register_forward_hook(_noting(kind_of(name), found, source)).remove)
        with plain_pass(source):
            logits = model(input_ids=ids, use_cache=False).logits.float()
            logits.log_softmax(-1).square().sum().backward()
    return found


def _passage(embedding: Any) -> Tensor:
    """Return a few ids [PASSAGE] from the middle of the vocabulary, where neither control tokens nor images are.

    Padding is not among them: its embedding is zero, where the gradients of several norms in turn overflow.
    """
    middle = range(len(embedding.weight) // 2, len(embedding.weight))
    ordinary = [number for number in middle if number != getattr(embedding, "padding_idx", None)][:PASSAGE]
    return torch.tensor(ordinary).repeat(PASSAGE)[:PASSAGE]


def _noting(kind: str, found: set[str], source: str) -> Callable[..., None]:
    """Return a hook that notes a layer, once a gradient comes to its product."""

    def arrived(gradient: Tensor) -> None:
        if not bool(gradient.isfinite().all()):
            raise UserError(f"model '{source}': the gradient at '{kind}' is not finite on plain tokens; write another")
        found.add(kind)  # be it zero: a gate that begins closed opens later

    def forward(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(arrived)  # type: ignore[no-untyped-call]

    return forward


def kind_of(name: str) -> str:
    """Return a layer's name, of experts without numbers: which of them are called depends on the text."""
    return re.sub(r"\d+", "#", name) if "expert" in name else name


def choose_targets(base: PreTrainedModel, source: str, config: LoraConfig, called: set[str]) -> None:
    """Put names in the place of ``all-linear``, where not all linear layers can carry an adapter.

    Left out are layers that would not learn (of images and sound, and those that only choose), routers and their
    experts, and those of state-space and convolutional mixers. Attention and MLPs stay, and of a mixture of experts the
    MLP that all tokens share, unless PEFT takes its names for those of experts.

    Args:
        base: The model, without adapters.
        source: Its name, for errors.
        config: Of the adapter; changed in place. Targets that are written stay.
        called: By :func:`called_layers`.

    Raises:
        UserError: no layer is left.
    """
    if str(config.target_modules).lower() != ALL:
        return
    head = base.get_output_embeddings()
    layers = {name: layer for name, layer in base.named_modules() if layer is not head}
    linear = {name for name, layer in layers.items() if isinstance(layer, nn.Linear) or is_linear(layer)}
    mixture = any("experts" in name.split(".") for name in layers)
    safe = {name for name in linear if is_linear(layers[name]) and kind_of(name) in called}
    safe = {name for name in safe if not _of_mixer(layers, name) and not (mixture and _of_experts(layers, name))}
    chosen = _kept_by_peft(base, config, safe)
    if chosen == linear and not mixture:
        return
    if not chosen:
        names = {kind.rpartition(".")[2] for kind in called} - {"lm_head"} - READ_BY_KERNELS
        raise UserError(
            f"policy: model '{source}' has no attention or MLP that targets: all-linear could mean; write the layers, "
            f"such as {sorted(names)}"
        )
    config.target_modules = _shortest(chosen, layers)
    kinds = sorted({name.rpartition(".")[2] for name in chosen})
    _log.info("Adapters of '%s' sit on %d of its layers: %s", source, len(chosen), ", ".join(kinds))


def _around(layers: dict[str, nn.Module], name: str) -> Iterator[nn.Module]:
    """Yield what a layer stands in, from the inside out, up to the model itself."""
    while name:
        name = name.rpartition(".")[0]
        yield layers[name]


def _of_mixer(layers: dict[str, nn.Module], name: str) -> bool:
    """Return whether a layer stands beside a convolution or a state's decay."""
    return any(
        hasattr(module, "A_log") or any(isinstance(child, nn.Conv1d) for child in module.children())
        for module in _around(layers, name)
    )


def _of_experts(layers: dict[str, nn.Module], name: str) -> bool:
    """Return whether a layer of a mixture is a router, or belongs to experts; what all tokens share does not."""
    *path, leaf = name.split(".")
    if leaf in {"gate", "router"} or leaf.endswith("_gate") or {"experts", "router"} & set(path):
        return True
    shared = any(part.startswith("shared") for part in path)
    return not shared and any(_is_mixture(module) for module in _around(layers, name))


def _is_mixture(module: nn.Module) -> bool:
    """Return whether a module chooses among experts, and nothing else: a decoder layer also attends."""
    children = dict(module.named_children())
    experts = any("expert" in f"{name} {type(child).__name__}".lower() for name, child in children.items())
    return experts and "attention" not in type(module).__name__.lower() and not any("att" in name for name in children)


def _kept_by_peft(base: PreTrainedModel, config: LoraConfig, names: set[str]) -> set[str]:
    """Return the layers that PEFT adapts under their own names.

    In mixtures whose experts were layers of their own in older checkpoints, PEFT takes ``gate_proj`` and the like for
    those experts, wherever they stand.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    tried = copy.deepcopy(config)
    tried.target_modules = set(names)
    convert_peft_config_for_transformers(tried, base, None)
    return read_back_by_peft(base, config, names & set(tried.target_modules))


def read_back_by_peft(base: PreTrainedModel, config: LoraConfig, names: set[str]) -> set[str]:
    """Return the layers whose adapters PEFT finds again in its own file.

    It renames what it reads, as transformers does with checkpoints, also where the names are today's.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers as converted

    keys = {f"base_model.model.{name}.lora_A.weight": name for name in names}
    found = converted(base, config, dict.fromkeys(keys, torch.zeros(1, 1)))
    return {name for key, name in keys.items() if key in found}


def _shortest(chosen: set[str], layers: dict[str, nn.Module]) -> set[str]:
    """Return the last parts of names where they mean the chosen layers alone, and whole names elsewhere."""
    leaves = {name.rpartition(".")[2] for name in chosen}
    return leaves if {name for name in layers if name.rpartition(".")[2] in leaves} == chosen else chosen
