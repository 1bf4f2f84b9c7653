"""The frozen attention gives Hugging Face's output, with fewer products, and leaves alone what it does not know."""

from __future__ import annotations

import copy
import logging
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DebertaV2Config, DebertaV2Model

from lit_debias_deberta.fast_deberta import FrozenAttention, freeze_attention

LENGTHS = [9, 1, 30, 17]
V3 = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "initializer_range": 0.3,  # so large that positions matter
}


def both(**options) -> tuple[DebertaV2Model, DebertaV2Model]:
    """Return Hugging Face's model and a copy with frozen attention."""
    torch.manual_seed(0)
    original = DebertaV2Model(DebertaV2Config(**(V3 | options))).eval()
    fast = copy.deepcopy(original)
    freeze_attention(fast)
    return original, fast


def texts(lengths=LENGTHS, vocabulary=50) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, vocabulary, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize(
    "options",
    [
        {},  # most distances are beyond the middle of the buckets
        {"position_buckets": 256, "max_position_embeddings": 512},  # as v3: every distance has a bucket of its own
        {"position_buckets": -1, "max_relative_positions": 12},  # no buckets, and longer texts than distances
        {"norm_rel_ebd": "none", "conv_kernel_size": 3, "conv_act": "gelu"},  # v2-xlarge
    ],
)
@torch.inference_mode()
def test_output_is_hugging_faces(options):
    original, fast = both(**options)
    assert all(isinstance(layer.attention.self, FrozenAttention) for layer in fast.encoder.layer)
    for lengths in (LENGTHS, [1], [2, 2], [64] if options.get("position_buckets") != -1 else [40]):
        batch = texts(lengths)
        expected, ours = original(**batch).last_hidden_state, fast(**batch).last_hidden_state
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)  # padding included
        assert expected.std() > 0.5


@torch.inference_mode()
def test_positions_matter_in_that_comparison():
    original, fast = both()
    for layer in fast.encoder.layer:
        layer.attention.self.position_queries.zero_()
    difference = original(**texts()).last_hidden_state - fast(**texts()).last_hidden_state
    assert difference.abs().max() > 0.01


@torch.inference_mode()
def test_bf16_is_as_near_to_fp32_as_hugging_face():
    original, fast = both()
    batch, real = texts(), texts()["attention_mask"].bool()
    exact = original(**batch).last_hidden_state[real]
    theirs = original.bfloat16()(**batch).last_hidden_state[real].float()
    ours = fast.bfloat16()(**batch).last_hidden_state[real].float()
    assert ours.sub(exact).square().mean().sqrt() < 1.2 * theirs.sub(exact).square().mean().sqrt()
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0)  # states have a standard deviation of 1
    with torch.autocast("cpu", torch.bfloat16):
        mixed = both()[1](**batch).last_hidden_state[real].float()
    torch.testing.assert_close(mixed, exact, atol=0.1, rtol=0)


def test_the_state_dict_stays_and_freezing_again_sees_new_weights():
    original, fast = both()
    assert fast.state_dict().keys() == original.state_dict().keys()
    for model in (original, fast):
        model.encoder.rel_embeddings.weight.data.mul_(-2)
    freeze_attention(fast)
    with torch.no_grad():
        torch.testing.assert_close(fast(**texts())[0], original(**texts())[0], atol=1e-5, rtol=0)


def test_training_is_refused():
    with pytest.raises(RuntimeError, match="frozen for scoring"):
        both()[1].train()(**texts())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"share_att_key": False}, "share_att_key=False"),
        ({"pos_att_type": ["c2p"]}, r"pos_att_type=\['c2p'\]"),
        ({"relative_attention": False, "pos_att_type": []}, "relative_attention=False"),
        ({"output_attentions": True}, "output_attentions"),
    ],
)
@torch.inference_mode()
def test_what_it_does_not_know_stays_hugging_faces(options, reason, caplog):
    original, other = both(**options)
    assert not any(isinstance(module, FrozenAttention) for module in other.modules())
    assert torch.equal(original(**texts())[0], other(**texts())[0])
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(reason, record.getMessage())


@torch.no_grad()
def test_fewer_products_at_the_shape_of_v3_base():
    """Counted, not computed, for 8 texts of 64 tokens."""
    base = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 1}
    with torch.device("meta"):
        original, fast = both(**base, position_buckets=256, max_position_embeddings=512)
        counts = []
        for model in (original, fast):
            with FlopCounterMode(display=False) as counter:
                model(input_ids=torch.zeros(8, 64, dtype=torch.long), attention_mask=torch.ones(8, 64).long())
            counts.append(counter.get_total_flops())
    tokens, width = 8 * 64, 768
    projections = 2 * 2 * 512 * width**2  # of 512 distances, as keys and as queries
    products = 2 * 2 * tokens * width * (512 - 127)  # with the 127 distances of 64 tokens instead of all
    assert counts[0] - counts[1] == projections + products
