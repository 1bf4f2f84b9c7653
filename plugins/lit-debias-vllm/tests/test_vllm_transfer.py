"""Weights by HTTP, to a server that sees no folder of the trainer, and which way they take."""

from __future__ import annotations

import ast
import base64
import sys
from pathlib import Path

import pytest
import torch
from support import loaded, perturb
from vllm_server import serving

import lit_debias_vllm_server
from lit_debias.plugins import PromptBatch, UserError
from lit_debias_vllm import VLLMEngine, measuring, transfer
from lit_debias_vllm_server import Receiver

PROMPTS = PromptBatch(["people from the north are", "the rider"])
WAYS = ("adapter", "merged")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Return the temporary folder of the server's machine."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(lit_debias_vllm_server.tempfile, "tempdir", str(tmp_path / "elsewhere"))
    lit_debias_vllm_server.folder.cache_clear()
    yield tmp_path / "elsewhere"
    lit_debias_vllm_server.folder.cache_clear()


def engine_at(server, tmp_path, **options) -> VLLMEngine:
    defaults = {"max_new_tokens": 4, "patience": 0.01, "folder": str(tmp_path / "weights"), "sync": "adapter"}
    return VLLMEngine([server.url], **{**defaults, **options})


def received(elsewhere) -> list[str]:
    return sorted(version.name for version in elsewhere.glob("*/*"))


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_sees_no_folder_gets_every_version_by_http(
    policy, tiny_model, tmp_path, elsewhere, way, monkeypatch
):
    monkeypatch.setattr(transfer, "PART", 5000)
    with serving(tiny_model, receiver=Receiver(), sees=False) as server:
        engine = engine_at(server, tmp_path, sync=way)
        for _ in range(3):
            rollout = engine.generate(policy, PROMPTS, 2, seed=3)
            torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout), atol=1e-4, rtol=1e-4)
            perturb(policy)
        sent = [body for body in server.asked("/collective_rpc") if body["method"] == "lit_debias_receive"]
    assert max(body["kwargs"]["offset"] for body in sent) > 0
    assert len(received(elsewhere)) == (2 if way == "adapter" else 1)  # an adapter goes once the next one is loaded


@pytest.mark.parametrize(
    ("options", "carrier"),
    [
        ({"receiver": Receiver(), "sees": True}, "folder"),
        ({"receiver": Receiver(), "sees": False}, "http"),
        ({}, "folder"),
    ],
)
def test_a_server_says_whether_it_sees_the_folder(policy, tiny_model, tmp_path, options, carrier):
    with serving(tiny_model, **options) as server:
        engine = engine_at(server, tmp_path)
        engine.prepare(policy)
        assert engine._pool.servers[0].carrier == carrier
    [own] = (tmp_path / "weights").iterdir()
    assert [file.name for file in own.iterdir()] == [f"{engine._version.name}-adapter"]  # nothing of the question


def test_what_cannot_be_sent_is_one_line_that_names_both_ways(policy, tiny_model, tmp_path):
    with serving(tiny_model, sees=False) as server:
        with pytest.raises(UserError, match=r"must see that folder .*option folder.*--worker-extension-cls lit_d"):
            engine_at(server, tmp_path).prepare(policy)
        with pytest.raises(UserError, match=r"receives no weights by HTTP; start it with --worker-extension-cls"):
            engine_at(server, tmp_path, transfer="http").prepare(policy)


class Damaging(Receiver):
    """Changes one byte of what it gets."""

    def lit_debias_receive(self, version, sender, file, offset, content):
        damaged = bytearray(base64.b64decode(content))
        damaged[-1] ^= 1
        return super().lit_debias_receive(version, sender, file, offset, base64.b64encode(damaged).decode())


class Losing(Receiver):
    """Loses the second part of each file, and says that it has it."""

    def lit_debias_receive(self, version, sender, file, offset, content):
        if offset == 1000:
            return {"size": 0}
        return super().lit_debias_receive(version, sender, file, offset, content)


class Cutting(Receiver):
    """Loses all that comes after the first part."""

    def lit_debias_receive(self, version, sender, file, offset, content):
        return {"size": 0} if offset else super().lit_debias_receive(version, sender, file, offset, content)


@pytest.mark.parametrize(
    ("receiver", "message"),
    [
        (Damaging(), "adapter_config.json, adapter_model.safetensors did not arrive as sent|README.md"),
        (Losing(), "bytes are here, and the next part begins at 2000"),
        (Cutting(), "adapter_model.safetensors did not arrive as sent"),
    ],
)
def test_what_is_damaged_on_the_way_is_not_loaded(
    policy, tiny_model, tmp_path, elsewhere, receiver, message, monkeypatch
):
    monkeypatch.setattr(transfer, "PART", 1000)
    with serving(tiny_model, receiver=receiver, sees=False) as server:
        with pytest.raises(UserError, match=rf"no server answers .*weights do not arrive there: .*({message})"):
            engine_at(server, tmp_path).prepare(policy)
        assert not server.adapters
    assert not [name for name in received(elsewhere) if not name.startswith(".")]


def test_two_senders_of_one_version_do_not_disturb_each_other(elsewhere):
    receiver, content = Receiver(), base64.b64encode(b"weights").decode()
    for sender in ("a", "b"):
        assert receiver.lit_debias_receive("v1", sender, "f", 0, content) == {"size": 7}
    digest = lit_debias_vllm_server.sha256(b"weights").hexdigest()
    paths = {receiver.lit_debias_finish("v1", sender, {"f": digest}, [])["path"] for sender in ("a", "b")}
    assert [Path(path, "f").read_bytes() for path in paths] == [b"weights"]
    assert receiver.lit_debias_has("v1") == {"path": paths.pop()}
    assert received(elsewhere) == ["v1"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", ".hidden", "a/b", ""])
def test_no_name_leads_out_of_the_folder(name):
    for names in ((name, "s", "f"), ("v", name, "f"), ("v", "s", name)):
        with pytest.raises(ValueError, match="is no plain name"):
            Receiver().lit_debias_receive(*names, 0, "")


def test_one_worker_of_a_machine_writes(elsewhere):
    second = Receiver()
    second.local_rank = 1
    assert second.lit_debias_receive("v", "s", "f", 0, "") is None
    assert second.lit_debias_finish("v", "s", {}, []) is None
    assert second.lit_debias_has("v") is None
    assert not received(elsewhere)


def test_files_of_killed_servers_are_removed(elsewhere):
    (elsewhere / f"{lit_debias_vllm_server.PREFIX}4194305-x").mkdir()  # above Linux's largest
    own = lit_debias_vllm_server.folder()
    assert [*elsewhere.iterdir()] == [own]


def test_the_servers_part_needs_python_alone():
    tree = ast.parse(Path(lit_debias_vllm_server.__file__).read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert names
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


# ---------------------------------------------------------------- which way


@pytest.mark.parametrize(("seconds", "way"), [((0.4, 0.1), "merged"), ((0.14, 0.1), "adapter")])
def test_the_way_is_measured_once(policy, server, tmp_path, seconds, way, monkeypatch, caplog):
    adapter, base = seconds
    times = iter([0.0, adapter, 1.0, 1.0 + 2 * adapter, 2.0, 2.0 + base, 3.0, 3.0 + 2 * base])
    monkeypatch.setattr(measuring, "clock", lambda: next(times))
    said = []
    monkeypatch.setattr("lit_debias_vllm.engine.rank_zero_info", said.append)
    engine = engine_at(server, tmp_path, sync="auto")
    for _ in range(2):
        rollout = engine.generate(policy, PROMPTS, 2, seed=3)
        torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout), atol=1e-4, rtol=1e-4)
        perturb(policy)
        server.restart()
    assert engine._pool.servers[0].way == way
    assert f"(adapters sample {64 / adapter:.0f} tokens/s there, merged weights 640)" in said[0]
    if way == "merged":
        assert not server.adapters  # on top of merged weights they would end the server


def test_a_server_with_merged_weights_gets_no_adapter_to_measure(tiny_model, server, tmp_path):
    policy = loaded(tiny_model)
    engine_at(server, tmp_path, sync="merged").prepare(policy)
    engine = engine_at(server, tmp_path, sync="auto")
    engine.prepare(policy)
    assert engine._pool.servers[0].way == "merged"
    assert not [body for body in server.asked("/v1/load_lora_adapter") if body["lora_name"]]


# ---------------------------------------------------------------- enough


class Enough:
    """What dynamic sampling gives an engine: it needs no more than one group."""

    enough = False

    def __init__(self) -> None:
        self.told: list[int] = []

    def __call__(self, number, rollout) -> None:
        self.told.append(number)
        self.enough = True


def test_requests_that_nobody_waits_for_are_cancelled(policy, server, tmp_path):
    engine = engine_at(server, tmp_path, timeout=30.0)
    engine.prepare(policy)
    server.before[4] = server.hang  # 2 of the check, and a group: the server says nothing from then on
    on_group = Enough()
    rollout = engine.generate(policy, PROMPTS, 2, seed=3, on_group=on_group)
    server.patience.set()
    assert len(on_group.told) == 1
    [other] = {0, 1} - {*on_group.told}
    assert rollout.lengths[other].tolist() == [1, 1]
    assert rollout.truncated[other].all()
    assert server.status == "hanging"
