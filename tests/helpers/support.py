"""What several test modules build: a real but tiny Llama with a tokenizer trained here, and policies on it."""

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_debias.models.probing.ways import own_ways
from lit_debias.packing import attention
from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.types import Rollout

TEXT = [
    "The delivery rider was late because the lift was out of order.",
    "People from the north and people from the south cook in different ways.",
    "Complete the sentence: nurses are usually kind because",
    "Each person should be judged on their own work and evidence.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    fast.chat_template = chat_template
    return fast


def save_tiny_model(folder: Path, chat_template: str | None = CHAT_TEMPLATE, **options) -> Path:
    tokenizer = train_tokenizer(chat_template)
    torch.manual_seed(0)
    options = {"max_position_embeddings": 512, **options}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=0.2,
        **options,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loaded(model: Path, **kwargs) -> QLoRAPolicy:
    """Return a loaded fp32 policy of rank 4 on a tiny model."""
    policy = QLoRAPolicy(str(model), **{"quantization": "none", "dtype": "float32", "rank": 4, **kwargs})
    policy.load("cpu")
    return policy


def perturb(policy: QLoRAPolicy) -> None:
    """Move a fresh adapter away from zero."""
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters().items():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    policy.weights_changed()


def plain_logprobs(policy: QLoRAPolicy, rollout: Rollout) -> torch.Tensor:
    """Return log-probs [P, G, T] by the model's own forward pass, one sequence at a time; differentiable."""
    found = torch.zeros(rollout.completion_ids.shape)
    for p, g in itertools.product(*map(range, found.shape[:2])):
        prompt = rollout.prompt_ids[p][rollout.prompt_mask[p]]
        completion = rollout.completion_ids[p, g][rollout.completion_mask[p, g]]
        logits = policy.causal_lm(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0]
        of_tokens = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(-1, completion[:, None])[:, 0]
        found[p, g, : len(completion)] = of_tokens
    return found


def without_lean(policy: QLoRAPolicy) -> None:
    """Let a policy compute log-probs by Hugging Face's forward pass, as for a model that has no lean form."""
    policy.way = own_ways(policy.causal_lm, policy.autocast, policy.causal_lm.get_output_embeddings())[0]


def dense_flex(monkeypatch) -> Callable[..., torch.Tensor]:
    """Return attention over groups by FlexAttention's mask and PyTorch's fused attention: flex has no CPU gradients."""

    def dense(query, key, value, block_mask, enable_gqa):
        places = (torch.arange(len(tensor[0, 0])) for tensor in (query, key))
        rows, columns = torch.meshgrid(*places, indexing="ij")
        mask = block_mask.mask_mod(torch.tensor(0), torch.tensor(0), rows, columns)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=enable_gqa)

    monkeypatch.setattr(attention, "_flex_attention", lambda: dense)
    return attention.flex_group_attention
