"""Informativeness: content words and scores by hand, a real encoder, and what is missing."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lit_debias import RewardBatch
from lit_debias.errors import UserError
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias_informativeness import Informativeness
from lit_debias_informativeness.content import ContentWords

WORDS = ["[PAD]", "[UNK]", "nurse", "teacher", "works", "paints", "carefully", "nights"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(WORDS), **size, initializer_range=0.5)).save_pretrained(folder)
    return str(folder)


def batch(completions: list[str], references: list[str | None], prompt: str = "q") -> RewardBatch:
    size = len(completions)
    return RewardBatch([prompt] * size, completions, list(range(size)), {"reference": references})


def ready(model: str, **arguments) -> Informativeness:
    reward = Informativeness(model, **arguments)
    reward.setup(torch.device("cpu"))
    return reward


def test_content_words():
    content = ContentWords("english")
    assert content("The nurses, who WORK at night, don't paint.") == {"nurs", "work", "night", "paint"}
    assert content("It\N{RIGHT SINGLE QUOTATION MARK}s of the") == set()
    assert ContentWords("german", ["DIE", "und"])("Die Lehrer und die Arbeit") == {"lehr", "arbeit"}


def test_coverage_by_hand(encoder):
    # content of the reference: nurs, work, care, night
    reward = ready(encoder, similarity_weight=0)
    reference = "The nurse works carefully, and works at night."
    answers = ["Nurses work.", "A careful nurse on nights, working.", "night night night", "Of the and", "", "paints"]
    found = reward.score(batch(answers, [reference] * 6))
    assert found == pytest.approx([2 / 4, 4 / 4, 1 / 4, 0, 0, 0])
    assert reward.encoder._encoder is None  # nobody asks it


def test_the_mix_and_its_ends(encoder):
    rows = batch(["nurse works", "teacher paints nights", "works"], ["nurse carefully", "nurse works", "works"])
    cosines = [max(0.0, value) for value in reference_cosines(encoder, rows)]
    coverage = [1 / 2, 0, 1]
    assert 0 < cosines[0] < 0.999
    for weight in (0.25, 1.0):
        expected = [weight * a + (1 - weight) * b for a, b in zip(cosines, coverage, strict=True)]
        assert ready(encoder, similarity_weight=weight).score(rows) == pytest.approx(expected, abs=1e-5)
    assert ready(encoder).score(rows)[2] == pytest.approx(1.0)


def reference_cosines(encoder: str, rows: RewardBatch) -> list[float]:
    """One text, one forward pass, no padding."""
    model, tokenizer = BertModel.from_pretrained(encoder), PreTrainedTokenizerFast.from_pretrained(encoder)

    def embed(text: str) -> torch.Tensor:
        return model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].mean(0)

    with torch.inference_mode():
        pairs = zip(rows.completions, rows.columns["reference"], strict=True)
        return [float(torch.cosine_similarity(embed(a), embed(b), dim=0)) for a, b in pairs]


def test_an_opposite_meaning_is_not_worth_less_than_none(encoder, monkeypatch):
    reward = ready(encoder)
    monkeypatch.setattr(reward.encoder, "similarity", lambda texts, others: [-0.5] * len(texts))
    assert reward.score(batch(["teacher"], ["nurse"])) == [0.0]


def test_no_reference_is_no_opinion_and_no_answer_is_nothing(encoder):
    reward = ready(encoder)
    assert reward.score(batch(["nurse", "nurse", "nurse", ""], [None, "", " \n", "nurse"])) == [None, None, None, 0.0]
    [only_similarity] = reward.score(batch(["the"], ["the"]))
    assert only_similarity == pytest.approx(1.0)  # function words alone: nothing to cover
    assert ready(encoder, similarity_weight=0).score(batch(["the"], ["the"])) == [None]


def test_against_the_prompt(encoder):
    reward = ready(encoder, against="prompt")
    assert reward.columns == ()
    assert Informativeness.columns == ("reference",)  # the class has not changed
    rows = RewardBatch(["nurse works"] * 2, ["nurse works", "teacher"], [0, 0])
    echo, other = reward.score(rows)
    assert echo == pytest.approx(1.0)
    assert other < 0.9


def test_equal_pairs_are_read_once_and_order_does_not_matter(encoder, monkeypatch):
    reward = ready(encoder)
    rows = batch(["nurse", "teacher works", "nurse"], ["nurse paints", "teacher", "nurse paints"])
    scores = reward.score(rows)
    assert scores[0] == scores[2] != scores[1]
    backwards = batch(rows.completions[::-1], rows.columns["reference"][::-1])
    assert reward.score(backwards)[::-1] == pytest.approx(scores)
    read = []
    monkeypatch.setattr(reward.encoder, "similarity", lambda texts, others: [read.append(t) or 0.0 for t in texts])
    reward.score(rows)
    assert sorted(read) == ["nurse", "teacher works"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity_weight": 1.5}, r"similarity_weight=1\.5; write a number from 0 to 1"),
        ({"similarity_weight": float("nan")}, "similarity_weight=nan"),
        ({"batch_size": 0}, "batch_size=0; write at least 1"),
        ({"against": "answer"}, "against='answer'; write reference or prompt"),
        ({"language": "englisch"}, "'englisch' is unknown; did you mean 'english'"),
        ({"language": "german"}, "no stop words for german"),
        ({"model": "./no/such/model"}, "no such file or folder"),
    ],
)
def test_senseless_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        Informativeness(**arguments)


def test_is_found_through_its_entry_point():
    found = {c.name: c.distribution for c in components(get_plugin_manager())}
    assert found["Informativeness"] == "lit-debias-informativeness"
