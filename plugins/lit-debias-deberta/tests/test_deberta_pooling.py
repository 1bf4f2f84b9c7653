"""What the heads see, by hand."""

from __future__ import annotations

import pytest
import torch

from lit_debias_deberta.checkpoint import build_network
from lit_debias_deberta.pooling import novelty, pool

#            [CLS]  prompt 1, 2   [SEP]  response 1, 2, 3     padding
SIDES = torch.tensor([[-1, 0, 0, -1, 1, 1, 1, -1]])
X, Y, Z = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
TOKENS = torch.tensor([[Z, X, Y, Z, [5.0, 0.0, 0.0], Z, [0.0, 0.6, 0.8], X]])


def test_a_word_of_both_texts_is_not_new():
    # x is in both (length does not count); y is near .6 y + .8 z with cosine .6; z only stands in the response
    assert novelty(TOKENS, SIDES)[0].tolist() == pytest.approx([1, 0, 0.4, 1, 0, 1, 0.4, 1])


def test_an_empty_text_makes_the_other_one_new():
    assert novelty(TOKENS, torch.where(SIDES == 1, -1, SIDES)).tolist() == [[1] * 8]


def test_parts_by_hand():
    states = torch.tensor([[[100.0], [2.0], [4.0], [100.0], [3.0], [6.0], [9.0], [100.0]]])
    attention = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])
    # means of prompt (2, 4) and response (3, 6, 9); the same weighted by 0, .4 and by 0, 1, .4
    found = pool(states, TOKENS, SIDES, attention, "parts")
    assert found[0].tolist() == pytest.approx([3, 6, 0.4 * 4 / 2, (6 + 0.4 * 9) / 3])
    assert pool(states, TOKENS, SIDES, attention, "mean")[0].tolist() == pytest.approx([(300 - 100 + 24 + 0) / 7])
    empty = pool(states, TOKENS, torch.full_like(SIDES, -1), attention, "parts")
    assert empty[0].tolist() == [0, 0, 0, 0]


def test_sides_follow_the_tokenizer_whatever_is_cut_and_padded(encoder):
    network = build_network(encoder, ["fairness"], max_length=12)
    pairs = [("Hire them?", "They are all lazy and nobody should hire them."), ("Hire them?", "")]
    encoding, sides = network.encode(pairs, 12)
    assert sides.shape == encoding["input_ids"].shape
    assert (sides[encoding["attention_mask"] == 0] == -1).all()
    words = network.tokenizer.convert_ids_to_tokens(encoding["input_ids"][0])
    own = ["".join(w for w, whose in zip(words, sides[0], strict=True) if whose == side) for side in (0, 1)]
    assert own[0].startswith("\u2581Hir")
    assert own[1].startswith("\u2581They")
    assert (sides[1] == 1).sum() == 0


def test_logits_are_fp32_under_autocast(encoder):
    torch.manual_seed(0)
    network = build_network(encoder, ["fairness"], max_length=32).eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network.read(["Hire them?"] * 2, ["They are lazy.", "They work."])
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # bf16 has 8 significant bits, and would tie near scores
