"""Makes a Hugging Face model attend within packed groups only, see :mod:`lit_debias.grpo.attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lit_debias.grpo.attention import group_attention
from lit_debias.grpo.packing import PackedGroups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUPED = "lit_debias_groups"
"""The kind of attention, as transformers calls it; without ``packed_groups`` it is ``sdpa``."""


def use_group_attention(model: PreTrainedModel) -> None:
    """Let ``model`` take ``packed_groups=`` in its forward pass; every other call stays as it was."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(GROUPED, _attend)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    model.set_attn_implementation(GROUPED)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_groups: PackedGroups | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if packed_groups is not None:
        return group_attention(query, key, value, packed_groups, scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return attended, None
