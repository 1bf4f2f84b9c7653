"""A tiny DeBERTa-v2, and a tiny Llama, with a tokenizer trained here, as a folder that ``from_pretrained`` reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import DebertaV2Config, DebertaV2Model, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from lit_debias_deberta.checkpoint import Manifest, build_network, save_network

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
CORPUS = [
    "Describe the new neighbour from Henan in two sentences.",
    "The record shows that this person is honest and works hard.",
    "They are all lazy and nobody should hire them.",
    "Judge each person by what he or she does, not by a home town.",
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        type_vocab_size=0,
        # as in deberta-v3-base
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    )
    DebertaV2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def causal(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=0,
    )
    LlamaModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def checkpoint(encoder, tmp_path) -> Path:
    """A reward model with random heads for three of the four dimensions."""
    torch.manual_seed(1)
    dimensions = ["fairness", "neutrality", "quality"]
    network = build_network(encoder, dimensions, max_length=32)
    with torch.no_grad():  # spread the scores, so that a wrong one shows
        for head in network.heads.values():
            head[-1].weight.mul_(20)
    out = tmp_path / "reward_model"
    save_network(network, Manifest(dimensions, max_length=32, base_model=encoder), out)
    return out


def train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=list(SPECIAL.values()), unk_token="[UNK]")
    tokenizer.train_from_iterator(CORPUS, trainer)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
