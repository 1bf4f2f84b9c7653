"""Fluency: hand-worked scores, the anchors, loops, and an own model against a plain forward pass."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_debias import RewardBatch
from lit_debias.errors import UserError
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias_fluency import Fluency
from lit_debias_fluency.reward import repetition

SENTENCE = "a good neighbour says hello and lends you the ladder without being asked twice"
WORDS = SENTENCE.split()


def batch(rows: list[tuple[list[int], list[float]]], texts: list[str] | None = None) -> RewardBatch:
    return RewardBatch(
        prompts=["q"] * len(rows),
        completions=texts or ["text"] * len(rows),
        group_ids=[0] * len(rows),
        completion_ids=[ids for ids, _ in rows],
        reference_logprobs=[torch.tensor(values) for _, values in rows],
    )


def test_score_by_hand():
    # mean -3 lies 2/3 of the way from -6 to -1.5; 8 different tokens: no repetition, no length factor
    reward = Fluency(floor=-6, ceiling=-1.5, min_tokens=8)
    [score] = reward.score(batch([(list(range(8)), [-2.0, -4.0] * 4)]))
    assert score == pytest.approx(2 / 3)


def test_repetition_by_hand():
    assert repetition([1, 2, 3, 1, 2, 3], 3) == pytest.approx(1 / 4)  # 123 231 312 123
    assert repetition([5] * 6, 3) == pytest.approx(3 / 4)
    assert repetition([1, 2], 3) == 0
    assert repetition([], 1) == 0


def test_repetition_is_weighted_and_cannot_go_below_zero():
    row = ([1, 2, 3, 1, 2, 3, 4, 5], [-1.0] * 8)  # 1 of 6 trigrams is repeated
    for weight, expected in ((0.0, 1.0), (2.0, 2 / 3), (60.0, 0.0)):
        assert Fluency(repetition_weight=weight).score(batch([row])) == [pytest.approx(expected)]


def test_short_completions_are_scaled_down():
    row = ([7, 8], [-1.0, -1.0])
    assert Fluency(min_tokens=8).score(batch([row])) == [pytest.approx(0.25)]
    assert Fluency(min_tokens=1).score(batch([row])) == [1.0]


def test_empty_completions_score_zero():
    rows = [([], []), ([2], [-0.1]), ([9, 2], [-0.1, -0.1])]  # nothing, only end-of-sequence, only spaces
    assert Fluency().score(batch(rows, ["", "", " \n"])) == [0.0, 0.0, 0.0]


def test_likelihood_saturates_above_the_ceiling():
    ids = list(range(10))
    assert Fluency().score(batch([(ids, [-2.5] * 10), (ids, [-0.01] * 10)])) == [1.0, 1.0]


def test_likelier_loop_scores_below_prose():
    prose, loop = (list(range(24)), [-4.3] * 24), ([1, 2, 3, 4] * 6, [-0.2] * 24)
    prose_score, loop_score = Fluency().score(batch([prose, loop]))
    assert loop_score < 0.5 * prose_score


@pytest.mark.parametrize("value", [-math.inf, math.nan, -1e30, 0.0])
def test_scores_stay_finite_and_in_range(value):
    [score] = Fluency().score(batch([(list(range(9)), [value] * 9)]))
    assert 0.0 <= score <= 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"floor": -2.0, "ceiling": -3.0},
        {"ceiling": 0.5},
        {"floor": math.nan},
        {"repetition_weight": -1.0},
        {"repetition_weight": math.nan},
        {"ngram": 0},
        {"min_tokens": 0},
        {"batch_size": 0},
        {"model": "./no/such/model"},
    ],
)
def test_senseless_arguments(arguments):
    with pytest.raises(UserError):
        Fluency(**arguments)


def test_without_logprobs_and_without_model():
    with pytest.raises(UserError, match="model"):
        Fluency().score(RewardBatch(["q"], ["text"], [0]))


def test_is_found_through_its_entry_point():
    found = {c.name: c.distribution for c in components(get_plugin_manager())}
    assert found["Fluency"] == "lit-debias-fluency"


# ---------------------------------------------------------------- with a model of its own


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: index for index, word in enumerate(["<eos>", "<unk>", *dict.fromkeys(WORDS)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def plain_logprobs(folder, prompt, completion):
    """One text, one forward pass, no padding."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    lm = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    context, ids = tokenizer.encode(prompt), tokenizer.encode(completion)
    with torch.no_grad():
        logprobs = lm(torch.tensor([context + ids])).logits[0].log_softmax(-1)
    return ids, torch.stack([logprobs[len(context) - 1 + t, token] for t, token in enumerate(ids)])


def test_own_model_agrees_with_a_plain_forward(model_folder):
    prompts = ["a good neighbour", "hello", "lends you the ladder without", "hello"]
    completions = [SENTENCE, " ".join(WORDS[4:]), "says hello", ""]
    reward = Fluency(floor=-9.0, ceiling=-0.5, model=model_folder, batch_size=2)
    assert not reward.needs_reference_logprobs
    assert Fluency.needs_reference_logprobs  # the class has not changed
    reward.setup(torch.device("cpu"))
    scores = reward.score(RewardBatch(prompts, completions, [0, 1, 2, 3]))
    for prompt, completion, score in zip(prompts[:3], completions[:3], scores[:3], strict=True):
        expected = reward.score_tokens(*plain_logprobs(model_folder, prompt, completion))
        assert score == pytest.approx(expected, abs=1e-5)
        assert 0 < score < 1
    assert scores[3] == 0.0


def test_own_model_does_not_depend_on_the_batch(model_folder):
    prompts, completions = ["a good", "hello you"] * 2, ["says hello", "a", SENTENCE, "the ladder twice"]
    together, alone = (Fluency(floor=-9.0, ceiling=-0.5, model=model_folder, batch_size=size) for size in (4, 1))
    together.setup(torch.device("cpu"))
    alone.setup(torch.device("cpu"))
    rows = RewardBatch(prompts, completions, [0, 1, 2, 3])
    assert together.score(rows) == pytest.approx(alone.score(rows), abs=1e-5)


def test_an_empty_prompt_is_read_from_the_end_of_a_text(model_folder):
    reward = Fluency(floor=-9.0, ceiling=-0.5, model=model_folder)
    reward.setup(torch.device("cpu"))
    [empty] = reward.score(RewardBatch([""], ["says hello"], [0]))
    assert empty == pytest.approx(reward.score_tokens(*plain_logprobs(model_folder, "<eos>", "says hello")), abs=1e-6)
    assert 0 < empty < 1
