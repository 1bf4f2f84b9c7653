"""Policies that read pictures: their log-probs and samples are those of plain Hugging Face, on two architectures."""

import json
import logging
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image
from seeing_models import (
    SAVERS,
    draw,
    huggingface_inputs,
    huggingface_logprobs,
    seeing,
    showing,
    together,
)
from support import loaded, perturb
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText
from transformers.models.smolvlm import processing_smolvlm

from lit_debias.errors import UserError
from lit_debias.models.language_model import LanguageModel
from lit_debias.models.picture_encoder import PictureEncoder
from lit_debias.models.probing import layouts
from lit_debias.models.probing.ways import own_ways
from lit_debias.packing.tokens import pack_rollout
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.policy.vlm import VLMPolicy
from lit_debias.rollout import plain_decoders
from lit_debias.rollout.local import LocalEngine
from lit_debias.rollout.places import pick
from lit_debias.types import PromptBatch

WHO = "Who should get the job?"
ANSWERS = ["the rider", "people are kind"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing")
    return {name: save(folder / name) for name, save in SAVERS.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    found = {key: folder / name for key, name in draw(folder).items()}
    found["wide"] = folder / "wide.png"
    Image.linear_gradient("L").resize((64, 32)).save(found["wide"])
    return found


@pytest.fixture(params=SAVERS)
def model(request, models):
    return models[request.param]


def text(said):
    return {"type": "text", "text": said}


# -------------------------------------------------------------------- log-probs


def test_log_probs_with_a_picture_are_those_of_hugging_face(model, files):
    policy, file = seeing(model), files["red", "disc"]
    perturb(policy)
    rollout = policy.encode(showing(WHO, file), [ANSWERS])
    inputs = huggingface_inputs(model, [{"role": "user", "content": [{"type": "image"}, text(WHO)]}], [file])
    assert rollout.prompt_ids[0].tolist() == inputs["input_ids"][0].tolist()
    plain = AutoModelForImageTextToText.from_pretrained(model)
    for network, reference in ((policy.causal_lm, False), (plain, True)):
        found = policy.logprobs(rollout, reference=reference)[0]
        completions = [
            ids[mask] for ids, mask in zip(rollout.completion_ids[0], rollout.completion_mask[0], strict=True)
        ]
        expected = [huggingface_logprobs(network, inputs, completion) for completion in completions]
        torch.testing.assert_close(found, pad_sequence(expected, batch_first=True), rtol=1e-4, atol=1e-5)


def test_several_pictures_stand_where_the_conversation_has_them(model, files):
    policy, shown = seeing(model), [files["wide"], files["blue", "square"]]
    own = [
        {"role": "user", "content": [text("before "), {"type": "image"}, text(" and "), {"type": "image"}]},
        {"role": "assistant", "content": "a rider"},
        {"role": "user", "content": "why?"},
    ]
    rollout = policy.encode(showing(own, *shown), [ANSWERS[:1]])
    theirs = [own[0], {"role": "assistant", "content": [text("a rider")]}, {"role": "user", "content": [text("why?")]}]
    inputs = huggingface_inputs(model, theirs, shown)
    assert rollout.prompt_ids[0].tolist() == inputs["input_ids"][0].tolist()
    expected = huggingface_logprobs(policy.causal_lm, inputs, rollout.completion_ids[0, 0])
    torch.testing.assert_close(policy.logprobs(rollout)[0, 0], expected, rtol=1e-4, atol=1e-5)
    other = policy.encode(showing(own, *reversed(shown)), [ANSWERS[:1]])
    assert not torch.allclose(policy.logprobs(other)[0, 0], expected, atol=0.01)


def test_another_picture_gives_other_log_probs_and_the_same_one_the_same(model, files, tmp_path):
    policy = seeing(model)
    copy = tmp_path / "copy.png"
    copy.write_bytes(files["red", "disc"].read_bytes())
    shown = [files["red", "disc"], copy, files["blue", "disc"], files["red", "square"]]
    rollout = policy.encode(together(*(showing(WHO, file) for file in shown)), [ANSWERS[:1]] * 4)
    first, same, *others = policy.logprobs(rollout)
    assert torch.equal(first, same)
    assert all((first - other).abs().max() > 1e-3 for other in others)
    parts = [pack_rollout(rollout, slice(start, start + 2)) for start in (0, 2)]
    torch.testing.assert_close(
        torch.cat([part.unpack(policy(part).logprobs) for part in parts]), policy.logprobs(rollout)
    )
    blind = policy.logprobs(replace(rollout, pictures=None))
    assert (blind[0] - first).abs().max() > 1e-3


def test_gradients_come_to_every_adapter_of_the_text_decoder_and_to_none_of_the_rest(model, files):
    policy = seeing(model)
    perturb(policy)
    names = policy.trainable_parameters()
    assert names
    assert not [name for name in names if "vision" in name or "visual" in name or "connector" in name]
    rollout = policy.encode(showing(WHO, files["red", "disc"]), [ANSWERS])
    policy(pack_rollout(rollout)).logprobs.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in names.values())


# -------------------------------------------------------------------- samples


@pytest.mark.parametrize("weights", ["merged", "live"])
def test_what_is_sampled_has_the_log_probs_of_the_update(model, files, weights):
    policy = seeing(model)
    perturb(policy)
    plain = PromptBatch(["the rider"], messages=[[{"role": "user", "content": "the rider"}]])
    prompts = together(showing(WHO, files["red", "disc"]), plain, showing(WHO, files["wide"], files["blue", "disc"]))
    seen = {}
    engine = LocalEngine(10, weights=weights)
    rollout = engine.generate(policy, prompts, 4, seed=1, on_group=seen.__setitem__)
    assert "prompt by prompt" in engine.decoders.name
    torch.testing.assert_close(policy.logprobs(rollout), rollout.logprobs, rtol=1e-3, atol=1e-4)
    other = policy.logprobs(pick(rollout, [2, 0]))
    torch.testing.assert_close(other, policy.logprobs(rollout)[[2, 0]], rtol=1e-4, atol=1e-5)
    for number, group in seen.items():
        torch.testing.assert_close(policy.logprobs(group)[0], policy.logprobs(rollout)[number], rtol=1e-4, atol=1e-5)


def test_a_sampled_placeholder_is_text(model, files):
    """By the cache: the prompt with its picture first, then the completion, in which the model looks for no picture."""
    policy = seeing(model)
    perturb(policy)
    rollout = policy.encode(showing(WHO, files["red", "disc"]), [ANSWERS[1:]])
    ids = rollout.completion_ids.clone()
    ids[0, 0, 1:3] = policy.encoder.placeholder
    network, prompt, shown = policy.causal_lm, rollout.prompt_ids[0], rollout.pictures[0]
    with torch.no_grad():
        first = network(input_ids=prompt[None], use_cache=True, **shown.beside(prompt, len(prompt)))
        rest = network(input_ids=ids[0, 0, :-1][None], past_key_values=first.past_key_values, use_cache=True)
    logits = torch.cat((first.logits[0, -1:], rest.logits[0])).log_softmax(-1)
    expected = logits.gather(-1, ids[0, 0][:, None])[:, 0]
    found = policy.logprobs(replace(rollout, completion_ids=ids))[0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_decoders_are_compared_with_pictures(models, files, monkeypatch, caplog):
    """Qwen keeps how far the latest prompt's pictures shift positions; a decoder that forgets it is not used."""
    monkeypatch.setattr(plain_decoders, "shifted_parts", lambda _model: [])
    policy = seeing(models["qwen2_vl"])
    perturb(policy)
    engine = LocalEngine(6)
    with caplog.at_level(logging.INFO):
        rollout = engine.generate(
            policy, together(showing(WHO, files["wide"]), showing(WHO, files["red", "disc"])), 2, 0
        )
    assert engine.decoders.name == "Hugging Face's forward pass, without a cache"
    assert "prompt by prompt: its logits miss the model's own by" in caplog.text
    torch.testing.assert_close(policy.logprobs(rollout), rollout.logprobs, rtol=1e-3, atol=1e-4)


def test_ways_that_lose_the_pictures_are_not_taken(model, monkeypatch, caplog):
    original = layouts.Network.cached

    def blind(self, ids, **options):
        return original(self, ids, **{name: value for name, value in options.items() if name == "past_key_values"})

    monkeypatch.setattr(layouts.Network, "cached", blind)
    with caplog.at_level(logging.INFO):
        assert seeing(model).forms.way.name == "one completion at a time"
    assert "slower way, one completion at a time (completions behind one reading of their prompt: its" in caplog.text
    monkeypatch.setattr(layouts, "showing", lambda model, ids, prompt_tokens, pictures: nullcontext((ids, {})))
    with pytest.raises(UserError, match="no way to compute its log-probs agrees with its own forward pass"):
        seeing(model)


def test_all_ways_have_the_same_log_probs_and_gradients(model, files):
    """Groups with completions of no, one and several tokens that count, one of them a placeholder."""
    policies = {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        policies[checkpointing] = seeing(model, gradient_checkpointing=checkpointing)
        perturb(policies[checkpointing])
    policy = policies[False]
    prompts = together(showing(WHO, files["wide"]), showing(WHO, files["red", "disc"], files["wide"]))
    rollout = policy.encode(prompts, [["the rider", "a", "people"], ["kind", "late", "north"]])
    ids, mask = rollout.completion_ids.clone(), rollout.completion_mask.clone()
    ids[0, 0, 1], mask[1, 2] = policy.encoder.placeholder, False
    packed, found = pack_rollout(replace(rollout, completion_ids=ids), mask=mask), []
    head = policy.causal_lm.get_output_embeddings()
    ways = own_ways(policy.causal_lm, policy.forms.autocast, head, pictures=True)
    assert [way.name for way in ways] == ["completions behind one reading of their prompt", "one completion at a time"]
    assert policies[True].forms.way.name == "one completion at a time"
    for one, way in ((policy, ways[0]), (policy, ways[1]), (policies[True], policies[True].forms.way)):
        one.forms.way = way
        one.zero_grad()
        logprobs = one(packed).logprobs
        (logprobs * torch.linspace(1, 2, len(logprobs))).sum().backward()
        found.append([logprobs.detach(), *(p.grad.clone() for p in one.trainable_parameters().values())])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------- what is refused


def test_ids_that_are_not_the_processors_are_refused(model, monkeypatch):
    original = PictureEncoder._parts_of
    monkeypatch.setattr(PictureEncoder, "_parts_of", lambda self, size: original(self, size)[:-1])
    with pytest.raises(
        UserError, match="its processor and its chat template do not put a picture into a prompt in one"
    ):
        seeing(model)


def test_the_words_of_a_placeholder_are_text(model, files):
    policy = seeing(model)
    word = policy.encoder.word
    ids = policy.prompt_ids(showing(f"what is {word}?", files["red", "disc"]).asked[0])
    assert ids.count(policy.encoder.placeholder) == 4


def test_pictures_are_refused_by_policies_of_text(tiny_model, files):
    with pytest.raises(UserError, match="QLoRAPolicy reads no pictures, and the prompt 'Who should get the job"):
        loaded(tiny_model).encode(showing(WHO, files["wide"]), [ANSWERS])


def test_another_model_that_reads_texts_reads_the_words(tiny_model, files):
    model = LanguageModel(str(tiny_model), 2)
    model.load(torch.device("cpu"))
    conversation = [{"role": "user", "content": WHO}]
    shown, said = (model.read([prompt], ANSWERS[:1]) for prompt in (showing(WHO, files["wide"]).asked[0], conversation))
    assert shown[0] == said[0]
    torch.testing.assert_close(shown[1], said[1])


def test_models_of_text_are_refused(tiny_model):
    with pytest.raises(UserError, match=r"\(llama\) reads no pictures; write one that does"):
        VLMPolicy(str(tiny_model)).load()


def test_models_with_pictures_need_the_other_policy(models):
    with pytest.raises(UserError, match=r"\(Idefics3Config\) that is not read here; .* write class_path: VLMPolicy"):
        QLoRAPolicy(str(models["idefics3"])).load()


def test_faster_decoders_are_refused_where_they_are_asked_for(models):
    with pytest.raises(UserError, match="the lean decoder cannot run this model, it has no lean form of Idefics3"):
        LocalEngine(decoder="lean").prepare(seeing(models["idefics3"]))


def test_options_of_the_processor_change_the_parts_of_a_picture(models, files):
    prompt = showing(WHO, files["wide"]).asked[0]
    counts = {
        pixels: seeing(
            models["qwen2_vl"], picture_options={"size": {"shortest_edge": 64, "longest_edge": pixels}}
        ).prompt_ids(prompt)
        for pixels in (2048, 512)
    }
    assert len(counts[2048]) == len(counts[512]) + 6  # 8 parts of 16 x 16 pixels, and 2
    with pytest.raises(UserError, match=r"picture_options: the processor of model .* knows no 'sizes'.*did you mean"):
        seeing(models["qwen2_vl"], picture_options={"sizes": 512})


def test_four_bits_compute_what_they_store(models, files):
    policy = seeing(models["idefics3"], quantization="nf4")
    perturb(policy)
    rollout = LocalEngine(5).generate(policy, showing(WHO, files["red", "disc"]), 2, seed=0)
    torch.testing.assert_close(policy.logprobs(rollout), rollout.logprobs, rtol=0.05, atol=0.05)


# -------------------------------------------------------------------- processors that read videos too


def changed_copy(model, folder, name, change):
    shutil.copytree(model, folder)
    content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps(change(content)))
    return folder


def test_what_a_processor_has_for_videos_is_left_out(models, tmp_path):
    videos = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 8}
    pictures = json.loads((models["qwen2_vl"] / "preprocessor_config.json").read_text())
    kept = {"processor_class": "Qwen2VLProcessor", "image_processor": pictures, "video_processor": videos}
    folder = changed_copy(models["qwen2_vl"], tmp_path / "qwen", "processor_config.json", lambda _: kept)
    assert seeing(folder).encoder.of_images([Image.new("RGB", (32, 32))])[0] == [322] * 4


def test_code_beside_a_processor_is_left_alone(models, tmp_path):
    named = {"AutoProcessor": "own.Own", "AutoImageProcessor": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    folder = changed_copy(
        models["idefics3"], tmp_path / "own", "processor_config.json", lambda found: {**found, "auto_map": named}
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    pictures = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps({**pictures, "auto_map": named}))
    seeing(folder)
    assert not (tmp_path / "was_run").exists()


def test_smolvlm_2_reads_pictures_without_what_videos_need(models, files, tmp_path, monkeypatch):
    def renamed(config):
        vision = {**config["vision_config"], "model_type": "smolvlm_vision"}
        return {**config, "model_type": "smolvlm", "vision_config": vision}

    folder = changed_copy(models["idefics3"], tmp_path / "smolvlm", "config.json", renamed)
    kind = json.loads((folder / "processor_config.json").read_text()) | {"processor_class": "SmolVLMProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(kind))
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(UserError, match=r"`num2words` is required to run SmolVLM processor.*pip install what it names"):
        seeing(folder)
    monkeypatch.setattr(processing_smolvlm, "num2words", lambda number: str(number))
    prompts = together(showing(WHO, files["red", "disc"]), showing(WHO, files["blue", "disc"]))
    found = [
        policy.logprobs(policy.encode(prompts, [ANSWERS] * 2))
        for policy in (seeing(folder), seeing(models["idefics3"]))
    ]
    torch.testing.assert_close(*found)
