"""A classifier as a reward: scores by hand and by plain transformers calls, labels, formats."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lit_debias import RewardBatch
from lit_debias.errors import UserError
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias_classifier import TextClassifier
from lit_debias_classifier.labels import LabelValues

WORDS = ["[PAD]", "[UNK]", "people", "are", "kind", "rude", "some", "always"]
LABELS = {0: "toxic", 1: "neutral", 2: "kind"}
VALUES = {"neutral": 0.5, "toxic": 0.0, "kind": 1.0}  # not in the model's order
TEXTS = ["people are kind", "rude", "some people are always rude", "people are kind", "always kind are some people"]


def save_tokenizer(folder, **special) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special).save_pretrained(folder)


def save_bert(folder, model_class=BertForSequenceClassification, labels=LABELS, **config) -> str:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    numbers = {name: number for number, name in labels.items()}
    model = model_class(
        BertConfig(
            vocab_size=len(WORDS),
            max_position_embeddings=8,
            initializer_range=0.9,
            id2label=labels,
            label2id=numbers,
            **size,
            **config,
        )
    )
    model.save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save_bert(tmp_path_factory.mktemp("classifier"))


def batch(*texts: str) -> RewardBatch:
    return RewardBatch(["q"] * len(texts), list(texts), list(range(len(texts))))


def ready(model: str, values=VALUES, **arguments) -> TextClassifier:
    reward = TextClassifier(model, values, **arguments)
    reward.setup(torch.device("cpu"))
    return reward


def plain_logits(folder: str, text: str) -> torch.Tensor:
    """One text, one forward pass, no padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return model(**AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt")).logits[0]


def test_expected_value_by_hand():
    # probabilities 1/4, 1/2, 1/4
    logits = torch.tensor([[0.0, math.log(2), 0.0]])
    assert LabelValues([1, 0, 2], [0.5, 0.0, 1.0], exclusive=True).scores(logits).tolist() == pytest.approx([0.5])
    assert LabelValues([0, 1, 2], [0, 0, 1], exclusive=True).scores(logits).tolist() == pytest.approx([0.25])


def test_independent_labels_by_hand():
    # probabilities 3/4 and 1/2; the third output is not named
    logits = torch.tensor([[math.log(3), 0.0, 9.0]])
    assert LabelValues([0], [0.0], exclusive=False).scores(logits).tolist() == pytest.approx([0.25])
    assert LabelValues([0, 1], [0.0, 1.0], exclusive=False).scores(logits).tolist() == pytest.approx([3 / 8])
    assert LabelValues([0], [1.0], exclusive=False).scores(logits).tolist() == pytest.approx([0.75])


def test_softmax_agrees_with_plain_calls_whatever_the_batch(folder):
    expected = []
    for text in TEXTS:
        toxic, neutral, kind = plain_logits(folder, text).softmax(-1).tolist()
        expected.append(0.0 * toxic + 0.5 * neutral + 1.0 * kind)
    assert max(expected) - min(expected) > 0.05
    for size in (1, 2, 32):
        assert ready(folder, batch_size=size).score(batch(*TEXTS)) == pytest.approx(expected, abs=1e-6)
    backwards = ready(folder, batch_size=2).score(batch(*TEXTS[::-1]))
    assert backwards[::-1] == ready(folder, batch_size=2).score(batch(*TEXTS))


def test_sigmoid_where_the_configuration_says_so(tmp_path):
    folder = save_bert(tmp_path, problem_type="multi_label_classification")
    toxic, neutral, _ = plain_logits(folder, TEXTS[0]).sigmoid().tolist()
    [score] = ready(folder, {"toxic": 0, "neutral": 1}).score(batch(TEXTS[0]))
    assert score == pytest.approx((1 - toxic + neutral) / 2, abs=1e-6)


def test_a_decoder_without_padding_token(tmp_path):
    torch.manual_seed(0)
    size = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 1, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**size, id2label={0: "rude", 1: "polite"}, initializer_range=0.9)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, eos_token="[PAD]")
    scores = ready(str(tmp_path), {"rude": 0, "polite": 1}).score(batch(*TEXTS))
    expected = [float(plain_logits(str(tmp_path), text).softmax(-1)[1]) for text in TEXTS]
    assert scores == pytest.approx(expected, abs=1e-6)


def test_empty_and_long_completions(folder):
    reward = ready(folder)
    assert reward.score(batch("", " \n")) == [None, None]
    eight, nine, other = reward.score(batch("rude " * 8, "rude " * 8 + "kind", "rude " * 7 + "kind"))
    assert eight == nine  # the model has 8 positions
    assert other != eight
    two, three = ready(folder, max_length=2).score(batch("rude rude", "rude rude kind"))
    assert two == three


def test_equal_completions_are_read_once(folder, monkeypatch):
    reward = ready(folder, batch_size=2)
    read = []
    original = reward._read
    monkeypatch.setattr(reward, "_read", lambda texts: [read.append(texts), original(texts)][1])
    reward.score(batch(*TEXTS))
    assert read == [["rude", "people are kind"], ["always kind are some people", "some people are always rude"]]


def test_setup_loads_once(folder):
    reward = ready(folder)
    network = reward._network
    reward.setup(torch.device("cpu"))
    assert reward._network is network
    assert not network.training


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"toxc": 0, "neutral": 1}, "has no label 'toxc'; its labels: toxic, neutral, kind$"),
        ({"toxic": 0, "neutral": 1}, "has the label 'kind' too, which needs a value; its labels: toxic, neutral, kind"),
        ({"toxic": 2}, r"values=\{'toxic': 2\}; write labels with numbers from 0 to 1"),
        ({"toxic": math.nan}, "write labels with numbers"),
        ({}, "write labels with numbers"),
    ],
)
def test_wrong_values(folder, values, message):
    with pytest.raises(UserError, match=message) as caught:
        TextClassifier(folder, values)
    assert "\n" not in str(caught.value)


def test_what_is_no_classifier_in_safetensors(folder, tmp_path):
    def refuses(message: str, model: str, **arguments) -> None:
        with pytest.raises(UserError, match=message):
            TextClassifier(model, VALUES, **arguments)

    refuses("revision is for the hub", folder, revision="abc")
    refuses("max_length=0", folder, max_length=0)
    refuses("batch_size=0", folder, batch_size=0)
    refuses("no such file or folder", "./no/such/model")
    refuses("is no text classifier, its kind is BertModel", save_bert(tmp_path / "encoder", BertModel))
    refuses("is a regression", save_bert(tmp_path / "regression", problem_type="regression"))
    pickled = tmp_path / "pickled"
    save_bert(pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refuses(r"has no \*\.safetensors", str(pickled))
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    refuses("is a file", str(gguf))


def test_code_of_a_repository_is_not_run(tmp_path):
    folder = tmp_path / "custom"
    save_bert(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(UserError, match="Python code of its own, which is never run"):
        TextClassifier(str(folder), VALUES)


def test_a_hub_id_is_asked_in_setup(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reward = TextClassifier("someone/no-such-model", VALUES, revision="0123abc")
    with pytest.raises(UserError, match="cannot be loaded"):
        reward.setup(torch.device("cpu"))


def test_the_revision_reaches_all_three_parts(folder, monkeypatch):
    seen = set()
    names = ("AutoConfig", "AutoTokenizer", "AutoModelForSequenceClassification")
    for name in names:
        cls = getattr(transformers, name)

        def load(*args, name=name, original=cls.from_pretrained, revision=None, **kwargs):
            seen.add((name, revision, kwargs.get("trust_remote_code"), kwargs.get("use_safetensors")))
            return original(folder, **kwargs)

        monkeypatch.setattr(cls, "from_pretrained", load)
    ready("someone/classifier", revision="0123abc")
    safetensors = dict(zip(names, (None, None, True), strict=True))
    assert {row for row in seen if row[1]} == {(name, "0123abc", False, safetensors[name]) for name in names}


def test_probabilities_are_those_of_the_model_and_give_the_score(folder):
    reward = ready(folder)
    rows = reward.probabilities(batch(*TEXTS, " "))
    assert rows[-1] is None
    for row, score in zip(rows, reward.score(batch(*TEXTS)), strict=False):
        assert list(row) == list(LABELS.values())
        assert sum(row.values()) == pytest.approx(1)
        assert sum(VALUES[name] * value for name, value in row.items()) == pytest.approx(score, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bf16_on_a_gpu_is_near_fp32(folder):
    reward = TextClassifier(folder, VALUES)
    reward.setup(torch.device("cuda"))
    assert reward._network.dtype == torch.bfloat16
    assert reward.score(batch(*TEXTS)) == pytest.approx(ready(folder).score(batch(*TEXTS)), abs=0.05)


def test_is_found_through_its_entry_point():
    found = {c.name: c.distribution for c in components(get_plugin_manager())}
    assert found["TextClassifier"] == "lit-debias-classifier"
