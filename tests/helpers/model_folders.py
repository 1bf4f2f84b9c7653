"""Folders with tiny models, and what a plain Hugging Face model says."""

import json

import torch
from support import save_tiny_model
from transformers import (
    AutoModelForCausalLM,
)

from lit_debias.types import PromptBatch

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}


def save_model(folder, model, **settings):
    """Save a random model of another family, or a changed Llama, with the tiny tokenizer."""
    save_tiny_model(folder)
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(folder)
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    return folder


def changed(folder, name, **values) -> None:
    """Change a JSON file of a model or an adapter; None takes a key away."""
    content = {**json.loads((folder / name).read_text()), **values}
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


PROMPTS = PromptBatch(["the rider", "people from the north and the south"])


ANSWERS = [["was late.", "is"], ["are kind", "cook in different ways."]]


def plain_logprobs(model, rollout):
    """Return [P, G, T] by Hugging Face, one sequence at a time."""
    found = torch.zeros(rollout.completion_ids.shape)
    for p, g in torch.cartesian_prod(*map(torch.arange, found.shape[:2])).tolist():
        prompt = rollout.prompt_ids[p][rollout.prompt_mask[p]]
        answer = rollout.completion_ids[p, g][rollout.completion_mask[p, g]]
        logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        found[p, g, : len(answer)] = logits.float().log_softmax(-1).gather(-1, answer[:, None])[:, 0]
    return found.detach()
