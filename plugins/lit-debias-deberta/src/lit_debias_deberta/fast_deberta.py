"""DeBERTa's attention for a frozen encoder: what its weights say about positions is computed once.

Disentangled attention (He et al. 2021, arXiv 2006.03654, equation 4) adds to query_i . key_j how the query likes the
distance i - j, and how the key does. Hugging Face's attention projects all distances in every layer of every call,
multiplies with all of them, and gathers those that occur. Here the projections are kept, each text is multiplied with
the distances that occur in it, and their sum is the mask of PyTorch's fused attention.

Shapes: N texts of L tokens, A heads of E features, K = 2 x ``pos_ebd_size`` embeddings of distances.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


def freeze_attention(encoder: PreTrainedModel) -> None:
    """Replace the attention of a DeBERTa v2 or v3 in place, same output and same state dict; leave other encoders.

    Its weights must not change afterwards. An unknown variant keeps Hugging Face's attention, and a log line says why.
    """
    if type(encoder).__name__ != "DebertaV2Model":
        return
    obstacle = why_not_fast(encoder)
    if obstacle:
        _log.warning("DeBERTa scores with Hugging Face's attention, which is slower: %s", obstacle)
        return
    layers: Any = encoder.encoder
    with torch.no_grad():
        embeddings = layers.get_rel_embedding()
        for layer in layers.layer:
            layer.attention.self = FrozenAttention(layer.attention.self, embeddings)


def why_not_fast(encoder: PreTrainedModel) -> str | None:
    """Return what keeps a DebertaV2Model from :class:`FrozenAttention`, or None."""
    config = encoder.config
    terms = sorted(config.pos_att_type or [])
    if not config.relative_attention or terms != ["c2p", "p2c"]:
        return f"relative_attention={config.relative_attention}, pos_att_type={terms}, not c2p and p2c"
    if not getattr(config, "share_att_key", False):
        return "share_att_key=False, positions have projections of their own"
    if getattr(encoder, "z_steps", 0) or config.output_attentions:
        return "z_steps or output_attentions is set"
    return None


class FrozenAttention(nn.Module):
    """Takes the place of ``DisentangledSelfAttention`` in evaluation.

    Args:
        attention: The module that it replaces, or an earlier replacement; its projections are used, not copied.
        embeddings: [K, H] of the distances, as all layers share them.
    """

    position_keys: Tensor
    """[A, K, E], divided by the scale of the attention."""
    position_queries: Tensor
    """[A, K, E] likewise."""

    def __init__(self, attention: Any, embeddings: Tensor) -> None:
        super().__init__()
        self.query_proj, self.key_proj = attention.query_proj, attention.key_proj
        self.value_proj: nn.Module = attention.value_proj
        self.num_attention_heads: int = attention.num_attention_heads
        self.attention_head_size: int = attention.attention_head_size
        self.pos_ebd_size: int = attention.pos_ebd_size
        self.scale = 1 / math.sqrt(3 * self.attention_head_size)  # three terms: content, c2p, p2c
        for name, projection in (("position_keys", self.key_proj), ("position_queries", self.query_proj)):
            table = self._heads(projection(embeddings)).transpose(0, 1) * self.scale
            self.register_buffer(name, table.contiguous(), persistent=False)
        self.train(attention.training)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return the context [N, L, H] of states [N, L, H], mask [N, 1, L, L] and bucketed distances [1, L, L].

        Raises:
            RuntimeError: the encoder is in training mode, or something is asked for that scoring does not need.
        """
        if self.training or output_attentions or query_states is not None or relative_pos is None:
            raise RuntimeError("this attention is frozen for scoring; load the encoder again for anything else")
        query, key, value = (
            self._heads(projection(hidden_states)) for projection in (self.query_proj, self.key_proj, self.value_proj)
        )
        bias = self._position_bias(query, key, relative_pos)
        # the smallest number, not -inf: padding, all of whose keys are masked, gets a mean as in the original
        bias = bias.masked_fill_(~attention_mask.bool(), torch.finfo(bias.dtype).min)
        context = scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias, scale=self.scale
        )
        return context.transpose(1, 2).flatten(2), None

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], self.num_attention_heads, self.attention_head_size)

    def _position_bias(self, query: Tensor, key: Tensor, relative_pos: Tensor) -> Tensor:
        """Return c2p + p2c [N, A, L, L] of queries and keys [N, L, A, E]."""
        distances = torch.cat([relative_pos[0, 0].flip(0), relative_pos[0, 1:, 0]])  # [2L - 1] of -(L - 1) .. L - 1
        rows = (distances + self.pos_ebd_size).clamp(0, 2 * self.pos_ebd_size - 1)
        to_position = _by_offset(query, self.position_keys[:, rows.flip(0)])
        from_position = _by_offset(key, self.position_queries[:, rows])
        return (to_position + from_position.transpose(-1, -2)).transpose(0, 1)


def _by_offset(states: Tensor, table: Tensor) -> Tensor:
    """Return [A, N, L, L]: state i [N, L, A, E] times row j - i + L - 1 of the table [A, 2L - 1, E], for each j.

    One product per head for all texts; the shift by i is a view of it.
    """
    n, length, heads, _ = states.shape
    width = 2 * length - 1
    products = states.permute(2, 0, 1, 3).flatten(1, 2) @ table.transpose(1, 2)  # [A, N L, 2L - 1]
    strides = (n * length * width, length * width, width - 1, 1)
    return products.as_strided((heads, n, length, length), strides, length - 1)
