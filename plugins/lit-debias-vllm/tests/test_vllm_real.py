"""VLLMEngine on vLLM itself, where LIT_DEBIAS_VLLM_PYTHON names a python that has it; two minutes on two cores."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import vllm_inside
import vllm_inside_probe
from grpo_runs import grpo, prompts, trainer  # noqa: F401
from support import loaded, perturb, train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from vllm_process import started
from vllm_server import serving

import lit_debias
import lit_debias_vllm_server
from lit_debias import PromptDataModule, UserError
from lit_debias.cli.main import main
from lit_debias.grpo.correction import ImportanceCorrection
from lit_debias.plugins import PromptBatch
from lit_debias_vllm import VLLMEngine, check, transfer

PYTHON = os.environ.get("LIT_DEBIAS_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="LIT_DEBIAS_VLLM_PYTHON names no python of vLLM; `make test-vllm` makes one"),
    pytest.mark.timeout(1200),
]
WAYS = ("adapter", "merged")
SERVERS = Path(lit_debias_vllm_server.__file__).parents[1]
RECEIVER = ("--worker-extension-cls", "lit_debias_vllm_server.Receiver")
PROMPTS = PromptBatch([f"people from {place} are" for place in "abcdef"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a tiny Llama whose heads are as wide as vLLM's kernels want them."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "llama", train_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.1}
    ids = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def servers(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    with started(PYTHON, model, folder) as first, started(PYTHON, model, folder) as second:
        first.wait()
        second.wait()
        yield first, second


@pytest.fixture
def policy(model):
    torch.manual_seed(1)
    policy = loaded(model)
    perturb(policy)
    return policy


def engine_at(*servers, folder, **options) -> VLLMEngine:
    options = {"max_new_tokens": 24, "folder": str(folder), "timeout": 200.0, "patience": 60.0, **options}
    return VLLMEngine([server.url for server in servers], **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_the_policys_up_to_rounding(policy, servers, tmp_path, way, temperature):
    engine = engine_at(servers[WAYS.index(way)], folder=tmp_path, sync=way, temperature=temperature)
    rollout = engine.generate(policy, PROMPTS, 4, seed=3)
    gap = check.gap_of(policy, rollout, temperature)
    assert gap.policy < 0.1  # bf16; the temperature divides logits and what rounding did to them
    assert gap.reference > 1
    assert engine.generate(policy, PROMPTS, 4, seed=3).texts == rollout.texts
    stop = int(rollout.completion_ids[1, 2, 4])
    policy.eos_token_ids = (2, stop)
    ended = engine.generate(policy, PROMPTS, 4, seed=3)
    assert ended.lengths[1, 2] <= 5
    assert not ended.truncated[1, 2]
    greedy = engine.generate(policy, PROMPTS, 1, seed=0, greedy=True)
    assert check.gap_of(policy, greedy, 1.0).policy < 0.1


def test_doctor_finds_all_that_is_needed(servers, capsys):
    assert main(["doctor", "--engine", servers[0].url]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "serves 'base' on cpu, up to 512 tokens" in shown
    assert "auto is what samples faster here" in shown
    assert "of the temperature" in shown
    assert "ok prefill whole" in shown


def test_an_adapter_on_top_of_merged_weights_is_refused(policy, servers, tmp_path):
    engine_at(servers[1], folder=tmp_path / "merged", sync="merged").prepare(policy)
    with pytest.raises(UserError, match=r"merged weights were sent to .* before"):
        engine_at(servers[1], folder=tmp_path / "adapter", sync="adapter").prepare(policy)


@pytest.mark.parametrize("way", WAYS)
def test_weights_come_by_http_where_a_server_sees_no_folder(policy, model, tmp_path, way, monkeypatch):
    monkeypatch.setattr(transfer, "PART", 20_000)
    hidden, seen = tmp_path / "hidden", tmp_path / "seen"
    hidden.mkdir()
    with started(PYTHON, model, tmp_path, *RECEIVER, path=SERVERS, hidden=hidden) as server:
        server.wait()
        for folder, carrier in ((seen, "folder"), (hidden, "http")):
            engine = engine_at(server, folder=folder, sync=way)
            for _ in range(2):
                rollout = engine.generate(policy, PROMPTS, 4, seed=3)
                gap = check.gap_of(policy, rollout, 1.0)
                assert gap.policy < 0.1 < gap.reference
                perturb(policy)
            assert engine._pool.servers[0].carrier == carrier
        with pytest.raises(UserError, match=r"must see that folder .*--worker-extension-cls"):
            engine_at(server, folder=hidden, sync=way, transfer="folder").prepare(policy)


class OnceItComputes:
    """Enough as soon as the server computes."""

    def __init__(self, url):
        self.url = url

    @property
    def enough(self):
        return metric(self.url, "num_requests_running") > 0

    def __call__(self, number, rollout):
        pass


def test_requests_that_nobody_waits_for_end_on_the_server(policy, servers, tmp_path):
    url = servers[0].url
    engine = engine_at(servers[0], folder=tmp_path, sync="adapter", max_new_tokens=400)
    engine.prepare(policy)
    policy.eos_token_ids = ()  # nothing ends a completion
    before = metric(url, "generation_tokens_total")
    rollout = engine.generate(policy, PROMPTS, 4, seed=3, on_group=OnceItComputes(url))
    assert rollout.lengths.eq(1).all()
    end = time.monotonic() + 60
    while metric(url, "num_requests_running") and time.monotonic() < end:
        time.sleep(0.1)
    assert metric(url, "generation_tokens_total") - before < len(PROMPTS) * 4 * 400 / 2


def metric(url, name):
    """Return a figure that a server tells of itself."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vllm:{name}{{"))


def test_vllm_inside_the_process_trains_and_is_what_stands_in_for_it(model, tmp_path, monkeypatch):
    program, source = Path(vllm_inside_probe.__file__), Path(lit_debias.__file__).parents[1]
    paths = os.pathsep.join(map(str, (source, SERVERS, program.parent)))
    done = subprocess.run(
        [PYTHON, str(program), str(model), str(tmp_path / "real")],
        env={**os.environ, "PYTHONPATH": paths, "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named 'lightning'" in done.stderr:
        pytest.skip("the environment of LIT_DEBIAS_VLLM_PYTHON has vLLM alone")
    assert done.returncode == 0, done.stderr[-3000:]
    real = json.loads(done.stdout.splitlines()[-1])
    vllm_inside.installed(monkeypatch, on_cpu=True)
    ours = vllm_inside_probe.probe(model, tmp_path / "ours")
    assert real["seen"] == ours["seen"]
    for found in (real, ours):
        for way in WAYS:
            assert found["runs"][way]["steps"] == 2
            assert max(found["runs"][way]["gaps"]) < 0.01


def test_what_stands_in_for_a_server_answers_as_it_does(policy, servers, model, tmp_path):
    from lit_debias_vllm.sampling import Sampling
    from lit_debias_vllm.versions import Versions

    folder = Versions(str(tmp_path)).now(policy).adapter()
    body = Sampling(2, 4, 1.0, (2,)).body("base", "x", [1, 40, 50], 3)
    greedy = Sampling(2, 4, 0.0, (2,)).body("base", "x", [1, 40, 50], 3)
    asked = [
        ("/health", None),
        ("/v1/models", None),
        ("/server_info?config_format=json", None),
        ("/weight_info", None),
        ("/v1/completions", body),
        ("/v1/completions", body | {"model": "nobody"}),
        ("/v1/completions", body | {"max_tokens": 600}),
        ("/v1/completions", body | {"temperature": 2.5}),
        ("/v1/completions", greedy),
        ("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""}),
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": str(folder)}),
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": str(folder)}),
        ("/v1/load_lora_adapter", {"lora_name": "b", "lora_path": "/nowhere"}),
        ("/v1/completions", body | {"model": "a"}),
        ("/v1/models", None),
        ("/v1/unload_lora_adapter", {"lora_name": "a"}),
        ("/v1/unload_lora_adapter", {"lora_name": "a"}),
        ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(model)}}),
        ("/reset_prefix_cache", {}),
        ("/update_weight_version", {"new_version": "v"}),
        ("/nowhere", {}),
    ]
    with serving(model) as stand_in:
        for path, content in asked:
            (real_status, real), (status, ours) = (ask(server.url, path, content) for server in (servers[0], stand_in))
            assert status == real_status, path
            assert shape(ours, real) == shape(ours, ours), path


def ask(url, path, body):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=200) as reply:
            status, text = reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return status, json.loads(text) if text.startswith("{") else text


def shape(keys, value):
    """Return the types of what stands under the keys of another object; numbers and texts are alike."""
    if isinstance(keys, dict):
        named = [key for key in keys if key != "top_logprobs"]  # its keys are tokens
        return {key: shape(keys[key], value[key]) for key in named} if isinstance(value, dict) else type(value)
    if isinstance(keys, list) and isinstance(value, list):
        return [shape(keys[0], value[0])] if keys and value else []
    return type(value) if isinstance(value, (dict, list)) else "a value"


def test_a_run_loses_no_step_with_a_server_that_is_killed(model, servers, prompts, tmp_path):  # noqa: F811
    first, second = servers
    engine = engine_at(first, second, folder=tmp_path, check_every=1)
    module = grpo(model, engine=engine, correction=ImportanceCorrection())
    lengths = []
    generate = engine.generate

    def watched(*arguments, **options):
        if len(lengths) == 2:
            first.kill()
        lengths.append(generate(*arguments, **options))
        return lengths[-1]

    engine.generate = watched
    run = trainer(tmp_path, max_steps=4)
    run.fit(module, PromptDataModule(str(prompts), batch_size=4))
    assert run.global_step == module.rollout_step == len(lengths) == 4
    assert all(rollout.completion_mask[..., 0].all() for rollout in lengths)
