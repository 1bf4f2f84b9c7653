"""Models and adapters whose log-probs would be wrong are refused when they are loaded."""

import json

import pytest
import torch
from model_folders import SIZES
from peft import IA3Config, LoraConfig, get_peft_model
from support import loaded
from torch import nn
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lit_debias.errors import UserError
from lit_debias.models.checks import disable_dropout


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_adapters_outside_the_decoders_linear_layers_are_refused(tiny_model, target):
    with pytest.raises(UserError, match=rf"adapter on '.*{target}'.*linear layers of the decoder"):
        loaded(tiny_model, targets=["q_proj", target])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
    ],
)
def test_adapters_of_another_kind_are_refused(tiny_model, tmp_path, settings, message):
    loaded(tiny_model).lm.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(UserError, match=f"{message}.*plain LoRA"):
        loaded(tiny_model, adapter=str(tmp_path))


def test_an_adapter_that_is_no_lora_is_refused(tiny_model, tmp_path):
    IA3Config(target_modules=["q_proj"], feedforward_modules=[]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="kind IA3; name a plain LoRA"):
        loaded(tiny_model, adapter=str(tmp_path))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_an_adapter_of_another_model_is_refused(tiny_model, tmp_path):
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not fit the model"):
        loaded(tiny_model, adapter=str(tmp_path))


def test_every_kind_of_dropout_is_switched_off():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_dropout = 0.1
            self.drop = nn.Dropout(0.1)

        def forward(self, x):
            return self.drop(nn.functional.dropout(x, self.attention_dropout, self.training))

    layer = Layer()
    assert not layer(torch.ones(200)).eq(1).all()
    disable_dropout(layer)
    assert layer.training
    assert layer(torch.ones(200)).eq(1).all()
