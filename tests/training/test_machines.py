"""Two machines train as one: nothing of them is shared but a network, and either may lose its power."""

import json
import re
import shutil
import socket
import uuid

import pytest
import torch
import yaml
from command_line import config, run, said, write  # noqa: F401  (a fixture)
from gguf_files import write_gguf
from grpo_runs import NeedsReference, grpo, prompts, trainer  # noqa: F401  (a fixture)
from lightning.pytorch.utilities import rank_zero_only
from machines import PORT, Machine, ended, networks, torchrun
from safetensors.torch import load_file
from support import loaded, perturb

from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.local import LocalEngine
from lit_debias.support import distributed
from lit_debias.training import adapter_module, checkpoints
from lit_debias.training.callbacks import PredictionFile
from lit_debias.training.machines import check_base, check_machines, lost

RUN = """
seed_everything: 1
trainer:
  accelerator: cpu
  max_steps: 4
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  limit_val_batches: 0
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {every_n_train_steps: 1, save_last: true, save_on_exception: true, dirpath: checkpoints}
    - class_path: AdapterExport
      init_args: {out: adapter}
model:
  class_path: GRPO
  init_args:
    policy:
      class_path: QLoRAPolicy
      init_args: {model: tiny.gguf, quantization: none, dtype: float32, rank: 4}
    engine: {class_path: LocalEngine, init_args: {max_new_tokens: 6}}
    group_size: 4
    rewards:
      vowels: {class_path: grpo_runs.Vowels}
    aggregator: {class_path: WeightedSum, init_args: {weights: {vowels: 1.0}}}
    loss: {class_path: DAPOLoss, init_args: {beta: 0.05}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05}}
data:
  class_path: PromptDataModule
  init_args: {path: prompts.jsonl, batch_size: 4}
"""
CUT = {"class_path": "machine_faults.PowerCut", "init_args": {"rank": 1, "step": 2}}


def furnished(folder, model, **trainer):
    """Fill a folder with all that a run needs, and no more."""
    (folder / "home").mkdir(parents=True)
    rows = [{"prompt": f"people from {place} are"} for place in "abcdefgh"]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copy(model, folder / "tiny.gguf")
    config = yaml.safe_load(RUN)
    config["trainer"] |= trainer
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    config["trainer"]["callbacks"].append(CUT)
    (folder / "cut.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_model, seed=3)
    return path


@pytest.fixture
def alone(tmp_path, model, monkeypatch):
    """What one process makes of the same run."""
    monkeypatch.chdir(furnished(tmp_path / "alone", model))
    monkeypatch.setenv("LIT_DEBIAS_CACHE", str(tmp_path / "alone" / "cache"))
    assert run("fit", "-c", "run.yaml") == 0
    adapter = load_file("adapter/adapter_model.safetensors")
    assert all(value.any() for value in adapter.values())  # trained: B starts at zero
    return adapter


def files(machine) -> set[str]:
    """Return what is in the folder of a machine but not in its home."""
    return {str(path.relative_to(machine.folder)) for path in machine.folder.iterdir() if path.name != "home"}


def assert_two_train_as_one(machines, address, port, alone) -> None:
    started = files(machines[1])

    def fit(config):
        command = ("fit", "-c", config, "--ckpt_path", "last")
        return ended([torchrun(machine, address, port, *command) for machine in machines])

    (code, first), (killed, _) = fit("cut.yaml")
    assert (bool(code), killed) == (True, -9)
    assert "nothing has been saved yet, so a new run starts" in first
    assert "the run stopped at optimiser step 2; --ckpt_path last resumes" in first
    assert "error: process 0 (on " in first
    assert "has lost the others" in first
    assert "Traceback" not in first.partition("has lost the others")[0]

    resumed = fit("run.yaml")
    assert [code for code, _ in resumed] == [0, 0], resumed
    assert f"resuming from {machines[0].folder / 'checkpoints' / 'last.ckpt'}" in resumed[0][1]
    together = load_file(machines[0].folder / "adapter" / "adapter_model.safetensors")
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5, msg=name)

    assert files(machines[1]) == started
    for machine in machines:
        [converted] = (machine.folder / "home" / ".cache" / "lit-debias").glob("tiny-*")
        assert (converted / "model.safetensors").is_file()


def pair(tmp_path, model, names) -> list[Machine]:
    options = {"devices": 1, "num_nodes": 2, "strategy": "ddp"}
    return [Machine(n, furnished(tmp_path / f"machine-{n}", model, **options), names[n]) for n in (0, 1)]


def joined() -> str | None:
    """Return why no networks can be made, None where they can."""
    try:
        with networks([f"ld{uuid.uuid4().hex[:8]}{end}" for end in "ab"]):
            return None
    except OSError as error:
        return str(error)


OBSTACLE = joined()


@pytest.mark.processes
@pytest.mark.skipif(bool(OBSTACLE), reason=f"no network namespaces: {OBSTACLE}")
def test_two_machines_train_as_one_and_outlive_a_power_cut(tmp_path, model, alone):
    names = [f"ld{uuid.uuid4().hex[:8]}{end}" for end in "ab"]
    with networks(names):
        assert_two_train_as_one(pair(tmp_path, model, names), "10.9.0.1", PORT, alone)


@pytest.mark.skipif(not OBSTACLE, reason="two networks are tested instead")
def test_two_agents_of_one_network_train_as_one(tmp_path, model, alone):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert_two_train_as_one(pair(tmp_path, model, [None, None]), "127.0.0.1", port, alone)


# ---------------------------------------------------------------- what ranks agree on


@pytest.fixture
def ranks(monkeypatch):
    """Stand for a process beside this one, which is the first: it passes to collective calls what is set here."""
    theirs: list = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, theirs.pop(0)])
    monkeypatch.setattr(distributed.dist, "broadcast_object_list", lambda box: None)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    return theirs


def test_what_differs_between_machines_is_said_with_both(ranks):
    mine = {"seed": 0, "the content of the train data": "abc"}
    ranks += [("node-7", dict(mine)), ("node-7", mine | {"the content of the train data": "xyz"}), ("node-7", {})]
    distributed.check_alike(mine)
    data, here = "the content of the train data", re.escape(socket.gethostname())
    wrong = rf"^{data} is xyz for process 1 \(on node-7\) and abc for process 0 \(on {here}\); give"
    with pytest.raises(UserError, match=wrong):
        distributed.check_alike(mine)
    with pytest.raises(UserError, match=r"^seed is None for process 1"):
        distributed.check_alike(mine)


def test_a_run_compares_configuration_data_and_rewards(tiny_model, prompts, tmp_path, monkeypatch):
    compared = []

    def capture(module, rewards):
        with monkeypatch.context() as two:
            two.setattr(distributed, "is_distributed", lambda: True)
            two.setattr(distributed, "check_alike", compared.append)
            check_machines(module, rewards)

    monkeypatch.setattr(adapter_module, "check_machines", capture)

    def given(**options):
        trainer(tmp_path, max_steps=1).fit(grpo(tiny_model, **options), PromptDataModule(str(prompts), batch_size=2))
        return compared.pop()

    def differences(first, second):
        return {name for name in first if first[name] != second[name]}

    plain = given()
    assert given() == plain
    assert differences(plain, given(seed=3)) == {"seed"}
    assert differences(plain, given(rewards={"vowels": NeedsReference()})) == {"the content of reward 'vowels'"}
    policy = QLoRAPolicy(str(tiny_model), quantization="none", dtype="bfloat16", rank=4)
    assert differences(plain, given(policy=policy)) == {"the policy's dtype"}
    whole = given(engine=LocalEngine(max_new_tokens=6))
    assert differences(whole, given(engine=LocalEngine(max_new_tokens=6, top_p=0.9))) == {"the engine's top_p"}
    assert whole["the engine"] == "LocalEngine"
    prompts.write_text(prompts.read_text().replace("people from a", "people from x"))
    assert differences(plain, given()) == {"the content of the train data"}


def test_bases_are_compared_by_their_weights(tiny_model, monkeypatch):
    compared, policy = [], loaded(tiny_model)
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "check_alike", lambda found: compared.append(*found.values()))
    check_base(policy)
    perturb(policy)  # the adapter alone, which is the first rank's anyway
    check_base(policy)
    frozen = next(weight for weight in policy.parameters() if not weight.requires_grad)
    with torch.no_grad():
        frozen.view(-1)[0] += 1
    check_base(policy)
    assert compared[0] == compared[1] != compared[2]


def test_first_rank_alone_resumes(ranks, tmp_path, monkeypatch):
    t = trainer(tmp_path)
    there = tmp_path / "checkpoints" / "last.ckpt"
    ranks += [("node-7", there)]
    with pytest.raises(UserError, match=rf"process 1 \(on node-7\) has the checkpoint {there}, and process 0"):
        checkpoints.resolve_last(t)
    ranks += [("node-7", None), None]
    assert checkpoints.resolve_last(t) is None


def test_answers_of_all_ranks_are_in_the_file_in_order(ranks, tmp_path):
    t, out = trainer(tmp_path), PredictionFile(str(tmp_path / "out.jsonl"))
    out.on_predict_start(t, None)
    for number in (0, 2):
        ranks += [[{"n": number + 1}]]
        out.on_predict_batch_end(t, None, [{"n": number}], None, 0)
    out.on_predict_end(t, None)
    assert [json.loads(line)["n"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [0, 1, 2, 3]


def test_a_lost_process_is_one_line(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    gone = RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.9.0.2]:53471. This is")
    for error in (gone, torch.distributed.DistNetworkError("the client socket has timed out after 60000ms")):
        assert lost(error).startswith(f"process 3 (on {socket.gethostname()}) has lost the others")
    assert lost(RuntimeError("shapes do not fit")) is None
    assert lost(ValueError("gloo")) is None


def test_machines_that_the_trainer_does_not_count_are_one_line(config, tmp_path, capsys, monkeypatch):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    config["trainer"] |= {"strategy": "ddp", "devices": 1}
    assert run("fit", "-c", write(tmp_path, config)) == 2
    assert "num_nodes" in said(capsys)


def test_ranks_compare_whether_they_found_a_checkpoint(tiny_model, prompts, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(distributed, "check_alike", lambda found: seen.append(found["the checkpoint to go on from"]))
    data = PromptDataModule(str(prompts), batch_size=2)
    first = trainer(tmp_path, max_steps=1)
    first.fit(grpo(tiny_model), data)
    first.save_checkpoint(tmp_path / "a.ckpt")
    module = grpo(tiny_model)
    module.resumes_from = str(tmp_path / "a.ckpt")
    trainer(tmp_path, max_steps=1).fit(module, data, ckpt_path=module.resumes_from, weights_only=True)
    assert seen == ["none", "there"]
