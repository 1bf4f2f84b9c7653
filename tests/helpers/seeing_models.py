"""Tiny random models that read pictures, drawn pictures whose colour is a group and whose shape is a concept."""

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from support import train_tokenizer
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from lit_debias.conversations import with_pictures, words_of
from lit_debias.models.processors import load_processor
from lit_debias.policy.policy import Policy
from lit_debias.policy.vlm import VLMPolicy
from lit_debias.types import PromptBatch

IDEFICS3_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}:{% for part in m['content'] %}{% if part['type'] == 'image' %}"
    "<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS, SHAPES = ("red", "blue"), ("disc", "square")


def _tokenizer(template, added):
    tokenizer = train_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    return tokenizer


def _text_config(tokenizer, **options):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
        **options,
    }


def save_idefics3(folder: Path) -> Path:
    """Save a tiny Idefics3, the architecture of SmolVLM: a picture of 32 x 32 pixels is 4 tokens."""
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    words = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *tiles]
    tokenizer = _tokenizer(IDEFICS3_TEMPLATE, words)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=True,
        vision_config={**tower, "image_size": 32, "patch_size": 8, "initializer_range": 0.2},
        text_config=_text_config(tokenizer, model_type="llama"),
    )
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=IDEFICS3_TEMPLATE).save_pretrained(folder)
    return folder


def save_qwen2_vl(folder: Path) -> Path:
    """Save a tiny Qwen2-VL: a picture of 32 x 32 pixels is 4 tokens, and one of 64 x 32 is 8."""
    words = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(QWEN_TEMPLATE, words)
    start, end, image, video = tokenizer.convert_tokens_to_ids(words)
    rotation = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2VLConfig(
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2},
        text_config=_text_config(tokenizer, rope_parameters=rotation),
    )
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=64, max_pixels=4096, patch_size=8, merge_size=2).save_pretrained(folder)
    return folder


SAVERS = {"idefics3": save_idefics3, "qwen2_vl": save_qwen2_vl}


def draw(folder: Path) -> dict[tuple[str, str], str]:
    """Draw a picture of each colour and shape, and return (colour, shape) -> name of its file."""
    names = {}
    for colour in COLOURS:
        for shape in SHAPES:
            image = Image.new("RGB", (32, 32), "white")
            drawing = ImageDraw.Draw(image)
            (drawing.ellipse if shape == "disc" else drawing.rectangle)((6, 6, 26, 26), fill=colour)
            names[colour, shape] = f"{colour}-{shape}.png"
            image.save(folder / names[colour, shape])
    return names


def save_twins(folder: Path, **columns) -> Path:
    """Draw pictures, and write a row for each, twins that differ in colour; ``columns`` are functions of both."""
    rows = [
        {
            "prompt": "Who should get the job?",
            "images": name,
            "group": colour,
            "concept": shape,
            "twin_id": shape,
            **{column: of(colour, shape) for column, of in columns.items()},
        }
        for (colour, shape), name in draw(folder).items()
    ]
    file = folder / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def seeing(model: Path, **options) -> Policy:
    """Return a loaded fp32 policy of rank 4 on a tiny model."""
    return VLMPolicy(str(model), **{"quantization": "none", "dtype": "float32", "rank": 4, **options}).load("cpu")


def showing(prompt, *files) -> PromptBatch:
    """Return one prompt that shows pictures."""
    messages = with_pictures(prompt, [(file.name, str(file)) for file in files], "prompt")
    return PromptBatch([words_of(messages)], messages=[messages])


def together(*batches: PromptBatch) -> PromptBatch:
    """Return several prompts."""
    return PromptBatch([b.texts[0] for b in batches], messages=[b.asked[0] for b in batches])


def huggingface_inputs(model: Path, messages, files) -> dict[str, torch.Tensor]:
    """Return what transformers' own processor makes of a conversation in its own form, and of pictures."""
    reader = load_processor(str(model))
    text = reader.apply_chat_template(messages, add_generation_prompt=True)
    return reader(
        text=[text], images=[Image.open(file) for file in files], return_tensors="pt", add_special_tokens=False
    )


def huggingface_logprobs(network, inputs, completion) -> torch.Tensor:
    """Return the log-probs [T] of a completion [T] behind inputs of one prompt, by the network's forward pass."""
    inputs, prompt = dict(inputs), inputs["input_ids"][0]
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in inputs:
            filled = torch.full((1, len(completion)), int(name == "attention_mask"))
            inputs[name] = torch.cat((inputs[name], filled), 1)
    inputs["input_ids"] = torch.cat((prompt, completion))[None]
    logits = network(**inputs, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]
