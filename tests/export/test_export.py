"""``lit-debias export``: the adapter for others, the merged model that is base + adapter, and the upload."""

import json
from pathlib import Path

import pytest
import torch
from command_line import run, said
from hub_server import hub  # noqa: F401  (a fixture)
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from support import loaded, perturb
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_debias.export.folder import write_adapter
from lit_debias.export.merging import Merge, distance, write_merged
from lit_debias.models.adapters import TRAINED
from lit_debias.models.base_weights import load_base
from lit_debias.models.checks import settle_mode

IDS = torch.arange(3, 40)[None]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def adapter_on(model, folder, **options) -> Path:
    policy = loaded(model, **options)
    perturb(policy)
    write_adapter(policy, folder, {"algorithm": "GRPO", "steps": 3})
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory) -> Path:
    return adapter_on(tiny_model, tmp_path_factory.mktemp("adapters") / "adapter")


@pytest.fixture(scope="module")
def nf4_adapter(tiny_model, tmp_path_factory) -> Path:
    return adapter_on(tiny_model, tmp_path_factory.mktemp("adapters") / "nf4", quantization="nf4")


@torch.no_grad()
def logits_of(model, adapter=None):
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
        settle_mode(model)
    return model(IDS).logits


def test_a_merged_model_is_base_and_adapter(tiny_model, adapter, tmp_path, capsys):
    out = tmp_path / "merged"
    assert (
        run("export", "--adapter", adapter, "--out", out, "--merge", "--model", tiny_model, "--dtype", "float32") == 0
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = logits_of(base, adapter)
    merged = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits_of(merged), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, logits_of(AutoModelForCausalLM.from_pretrained(tiny_model)), atol=0.1)
    assert (
        AutoTokenizer.from_pretrained(out)("people").input_ids
        == AutoTokenizer.from_pretrained(tiny_model)("people").input_ids
    )
    assert "read back, against base + adapter in fp32: KL divergence" in capsys.readouterr().out
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert "| merged | the adapter is added to the base's weights; summed in fp32, rounded to float32" in card.text
    assert f'AutoModelForCausalLM.from_pretrained("{"PATH_OR_ID_OF_THIS"}", dtype="auto")' in card.text
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    for file in out.iterdir():
        assert str(tiny_model.parent).encode() not in file.read_bytes(), file


def test_merged_weights_are_rounded_once(tiny_model, adapter, tmp_path, capsys):
    for name in ("float32", "bfloat16"):
        options = ("--out", tmp_path / name, "--merge", "--model", tiny_model, "--dtype", name)
        assert run("export", "--adapter", adapter, *options) == 0
    exact, rounded = (load_file(tmp_path / name / "model.safetensors") for name in ("float32", "bfloat16"))
    assert exact.keys() == rounded.keys()
    assert all(torch.equal(value.to(torch.bfloat16), rounded[name]) for name, value in exact.items())


def test_an_adapter_of_4_bits_goes_onto_the_numbers_that_they_stand_for(tiny_model, nf4_adapter, tmp_path):
    found = write_merged(Merge(str(tiny_model), str(nf4_adapter), "nf4"), tmp_path, torch.float32)
    expected = logits_of(load_base(str(tiny_model), "nf4", torch.float32, "cpu"), nf4_adapter)
    torch.testing.assert_close(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-4, rtol=1e-4
    )
    assert found.keys() == {"merged"}
    assert found["merged"].kl < 1e-6


def test_onto_plain_weights_it_is_another_model_and_that_is_said(tiny_model, nf4_adapter, tmp_path, capsys):
    options = ("--merge", "--model", tiny_model, "--onto", "plain", "--dtype", "float32", "--out", tmp_path / "m")
    assert run("export", "--adapter", nf4_adapter, *options) == 0
    shown = capsys.readouterr().out
    assert "against the policy that was trained, on the 4-bit base: KL divergence" in shown
    plain = logits_of(AutoModelForCausalLM.from_pretrained(tiny_model), nf4_adapter)
    torch.testing.assert_close(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "m")), plain, atol=1e-4, rtol=1e-4
    )
    trained = logits_of(load_base(str(tiny_model), "nf4", torch.float32, "cpu"), nf4_adapter)
    assert (plain - trained).abs().max() > 0.05
    assert "which it never saw" in (tmp_path / "m/README.md").read_text()


def test_the_distance_of_two_models_by_hand():
    first = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    second = torch.tensor([[0.75, 0.25], [0.1, 0.9]]).log()
    found = distance([first], [second], [[0, 1]])
    kl = (0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log() + 0.8 * torch.tensor(9.0).log()) / 2
    assert found.kl == pytest.approx(float(kl))
    assert found.largest == pytest.approx(float(torch.tensor(9.0).log()))
    assert found.other_choices == 0.5


def test_an_adapter_of_another_tool_gets_a_card_and_a_base_that_others_find(tiny_model, tmp_path, capsys):
    policy = loaded(tiny_model)
    perturb(policy)
    policy.lm.save_pretrained(tmp_path / "a", selected_adapters=[TRAINED])
    assert str(tiny_model) in (tmp_path / "a/adapter_config.json").read_text()
    out = tmp_path / "b"
    assert run("export", "--adapter", tmp_path / "a", "--out", out, "--base", "somebody/tiny") == 0
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/tiny"
    assert ModelCard.load(out / "README.md").data.base_model == "somebody/tiny"
    assert torch.equal(logits_of(loaded(tiny_model, adapter=str(out)).causal_lm), logits_of(policy.causal_lm))
    assert (out / "tokenizer.json").is_file()
    capsys.readouterr()
    assert run("export", "--adapter", tmp_path / "a", "--out", tmp_path / "c", "--merge") == 2
    assert "does not say how its base was loaded in training; write --quantization nf4 or" in said(capsys)
    assert not (tmp_path / "c").exists()


def test_upload(adapter, tiny_model, tmp_path, hub, capsys):
    out = tmp_path / "out"
    options = ("--out", out, "--push", "owner/name", "--private", "--model", tiny_model)
    assert run("export", "--adapter", adapter, *options) == 0
    assert hub.kept["repo"]["name"] == "name"
    assert hub.kept["repo"].get("private") or hub.kept["repo"].get("visibility") == "private"
    assert hub.kept["files"] == {file.name: file.read_bytes() for file in out.iterdir()}
    assert b'PeftModel.from_pretrained(base, "owner/name")' in hub.kept["files"]["README.md"]
    assert hub.kept["tokens"] == {"Bearer hf_secret"}
    assert f"uploaded: {hub.address}/owner/name" in capsys.readouterr().out


def test_an_upload_that_is_refused_leaves_the_folder(adapter, tiny_model, tmp_path, hub, capsys):
    hub.refuse = True
    options = ("--out", tmp_path / "out", "--push", "owner/name", "--model", tiny_model)
    assert run("export", "--adapter", adapter, *options) == 2
    error = said(capsys)
    assert "--push owner/name:" in error
    assert f"hf upload owner/name {tmp_path / 'out'}" in error
    assert (tmp_path / "out/README.md").is_file()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--adapter", "nowhere"), "adapter 'nowhere': no adapter_config.json there"),
        ((), "does not say where its base is ('tiny-llama', a local model); write --model FOLDER, or its hub id"),
        (("--model", "no/such/folder"), "model 'no/such/folder': no such file or folder"),
        (("--model", "MODEL", "--push", "name"), "--push 'name' is no name on the hub; write OWNER/NAME"),
        (("--model", "MODEL", "--push", "a/b"), "HF_HUB_OFFLINE=1 forbids it"),
        (("--model", "MODEL", "--base", "x"), "--base 'x' is no name on the hub"),
        (("--model", "MODEL", "--out", "OUT"), "exists; write a new folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(adapter, tiny_model, tmp_path, capsys, options, error):
    places = {"MODEL": str(tiny_model), "OUT": str(tmp_path)}
    given = ["--adapter", str(adapter), "--out", str(tmp_path / "out"), "--merge"]
    assert run("export", *given, *(places.get(option, option) for option in options)) == 2
    assert error in said(capsys)
    assert not (tmp_path / "out").exists()


def test_an_upload_needs_a_token(adapter, tiny_model, tmp_path, hub, capsys, monkeypatch):
    monkeypatch.setattr("lit_debias.export.hub.HfApi", lambda: type("Api", (), {"token": None})())
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    options = ("--out", tmp_path / "out", "--push", "owner/name", "--model", tiny_model)
    assert run("export", "--adapter", adapter, *options) == 2
    assert "run 'hf auth login', or set HF_TOKEN" in said(capsys)
