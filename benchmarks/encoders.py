"""Reward models on a random DeBERTa-v3-shaped encoder, with a tokenizer that has a word for every id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Model, PreTrainedTokenizerFast

from lit_debias_deberta.checkpoint import Manifest, save_network
from lit_debias_deberta.network import DIMENSIONS, RewardNetwork

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}

# The config.json of deberta-v3-base; the tiny one is for tests.
ENCODERS: dict[str, dict[str, Any]] = {
    "deberta-v3-base": {
        "vocab_size": 128100,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "position_buckets": 256,
    },
    "tiny": {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "position_buckets": 16,
    },
}


def encoder_config(shape: str) -> DebertaV2Config:
    """Return the configuration of a key of :data:`ENCODERS`."""
    return DebertaV2Config(
        **ENCODERS[shape],
        max_position_embeddings=512,
        type_vocab_size=0,
        relative_attention=True,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        num_labels=len(DIMENSIONS),
    )


def save_reward_model(shape: str, folder: Path, max_length: int) -> Path:
    """Write a reward model with random encoder and heads, the same for equal torch."""
    torch.manual_seed(0)
    config = encoder_config(shape)
    network = RewardNetwork(DebertaV2Model(config), word_tokenizer(config.vocab_size), max_length=max_length)
    with torch.no_grad():  # spread the scores, so that a wrong one shows
        for head in network.heads.values():
            head[-1].weight.mul_(20)
    save_network(network, Manifest(list(DIMENSIONS), max_length=max_length), folder)
    return folder


def classifier(folder: Path) -> DebertaV2ForSequenceClassification:
    """Return Hugging Face's classifier with the encoder in ``folder`` and a new head of as many labels."""
    model = DebertaV2ForSequenceClassification(DebertaV2Config.from_pretrained(folder)).eval()
    model.deberta = DebertaV2Model.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that reads ``w4`` as the id 4, and joins two texts as DeBERTa does."""
    words = [*SPECIAL.values(), *(f"w{index}" for index in range(len(SPECIAL), size))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
