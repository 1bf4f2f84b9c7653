"""Checkpoint files: whole or not there, checked byte by byte, found again, and never run as code."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from command_line import config, run, write  # noqa: F401  (config is a fixture)
from grpo_runs import Vowels, adapter_of, assert_same, grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning import Callback
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lit_debias.cli.errors import user_error
from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.training import checkpoints as checkpoint_io
from lit_debias.training.callbacks import AdapterExport, GracefulStop
from lit_debias.training.checkpoints import SafeCheckpointIO, checkpoints_of, newest_good, read
from lit_debias.training.grpo import GRPO
from lit_debias.training.sft import SFT
from lit_debias.types import PromptBatch

OTHER = {"state_dict": {}, "pytorch-lightning_version": "2.6.0"}
CONTENT = {
    "weights": torch.arange(40.0),
    "nested": {"step": 3, "names": ["a", None]},
    "pytorch-lightning_version": "2.6.0",
}


def save(path: Path, content=CONTENT, at: int = 0) -> Path:
    SafeCheckpointIO().save_checkpoint(content, path)
    os.utime(path, ns=(at, at))
    return path


# ---------------------------------------------------------------- writing


def test_what_is_saved_is_read_again(tmp_path):
    found = SafeCheckpointIO().load_checkpoint(save(tmp_path / "new" / "a.ckpt"), weights_only=False)
    assert torch.equal(found["weights"], CONTENT["weights"])
    assert found["nested"] == CONTENT["nested"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.ckpt"]


def test_the_file_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    path, events = save(tmp_path / "a.ckpt"), []
    old = path.read_bytes()
    fsync, move = os.fsync, os.replace

    def synced(handle):
        events.append(("fsync", Path(f"/proc/self/fd/{handle}").resolve().name, path.read_bytes() == old))
        fsync(handle)

    def moved(source, target):
        events.append(("replace", source.name, path.read_bytes() == old))
        move(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    save(path, {"other": torch.ones(3)})
    assert events == [
        ("fsync", ".a.ckpt.part", True),
        ("replace", ".a.ckpt.part", True),
        ("fsync", tmp_path.name, False),
    ]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_what_to_resume_from(tmp_path, monkeypatch, name):
    older, path = save(tmp_path / "older.ckpt", at=1), save(tmp_path / "a.ckpt", at=2)
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, full)
    with pytest.raises(UserError, match=f"{path}: No space left on device.*resume with --ckpt_path {path}"):
        SafeCheckpointIO().save_checkpoint({"other": 1}, path)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path, older]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / ".a.ckpt.part").write_bytes(b"half" * 10_000)
    read(save(tmp_path / "a.ckpt"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


# ---------------------------------------------------------------- reading


def test_every_flipped_byte_is_refused(tmp_path):
    path = save(tmp_path / "a.ckpt")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(UserError, match=f"{path} is damaged or incomplete"):
            read(path)


def test_every_truncation_is_refused(tmp_path):
    whole = save(tmp_path / "a.ckpt").read_bytes()
    cut = tmp_path / "cut"
    sealed = len(whole) - len(checkpoint_io.SEAL) - 64  # cut there, it is a whole file of torch's
    for size in {*range(0, len(whole), 97), *range(len(whole) - 100, len(whole))} - {sealed}:
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match="is damaged or incomplete"):
            read(cut)


def test_a_file_of_lightnings_own_writing_is_checked_by_its_parts(tmp_path):
    TorchCheckpointIO().save_checkpoint(CONTENT, tmp_path / "a.ckpt")
    assert torch.equal(read(tmp_path / "a.ckpt")["weights"], CONTENT["weights"])
    whole = (tmp_path / "a.ckpt").read_bytes()
    place = whole.index(CONTENT["weights"].numpy().tobytes()) + 7
    (tmp_path / "a.ckpt").write_bytes(whole[:place] + b"x" + whole[place + 1 :])
    assert torch.load(tmp_path / "a.ckpt")["weights"][1] != 1  # without a word
    with pytest.raises(UserError, match="its part 'archive/data/0' is not what was written"):
        read(tmp_path / "a.ckpt")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"weights and plain values \(it asks for posix.mkdir, and no code is run\)"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"weights": torch.ones(2)}, [1, 2]])
def test_a_file_of_weights_is_no_checkpoint_of_a_run(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    save(tmp_path / "b.ckpt")
    with pytest.raises(UserError, match=r"a.ckpt is no checkpoint of a run \(it has no 'pytorch-.*b.ckpt"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


def test_the_newest_good_one_is_found_and_offered(tmp_path):
    old, good, broken = (save(tmp_path / f"{name}.ckpt", at=time) for time, name in enumerate("bca", 1))
    os.truncate(broken, 500)
    os.utime(broken, ns=(9, 9))
    found, problems = newest_good([old, broken, good, tmp_path / "none.ckpt"])
    assert found == good
    assert len(problems) == 1
    assert str(broken) in problems[0]
    with pytest.raises(UserError, match=f"{broken} is damaged.*resume with --ckpt_path {good}$"):
        SafeCheckpointIO().load_checkpoint(broken)
    with pytest.raises(UserError, match=f"there is no checkpoint .*x.ckpt; resume with --ckpt_path {good}$"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")


# ---------------------------------------------------------------- whose checkpoints


def test_checkpoints_of_earlier_versions_belong_to_a_run(tmp_path):
    mine = [tmp_path / f"logs/version_{n}/checkpoints/{name}.ckpt" for n, name in ((0, "last"), (1, "epoch=0-step=2"))]
    other = tmp_path / "other/version_0/checkpoints/last.ckpt"
    for path in [*mine, other]:
        save(path)
    found = checkpoints_of(trainer(tmp_path, logger=CSVLogger(tmp_path, "logs")))
    assert sorted(found) == mine
    own = trainer(tmp_path, enable_checkpointing=True, callbacks=[ModelCheckpoint(other.parent)])
    assert checkpoints_of(own) == [other]


@pytest.mark.filterwarnings("ignore:.*logging interval:", "ignore:The dirpath has changed")
def test_last_on_the_command_line(config, tmp_path, capsys):
    keep = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_top_k": -1}}
    config["trainer"]["callbacks"] = [keep]
    file = write(tmp_path, config)
    assert run("validate", "-c", file, "--ckpt_path", "last") == 2
    assert "nothing has been saved yet; write the path" in capsys.readouterr().err
    assert run("fit", "-c", file, "--ckpt_path", "last") == 0
    assert "nothing has been saved yet, so a new run starts" in capsys.readouterr().err
    first, second = sorted(tmp_path.glob("logs/x/*/checkpoints/*.ckpt"))
    os.truncate(second, 1000)
    assert run("fit", "-c", file, "--ckpt_path", "last") == 0
    told = capsys.readouterr().err
    assert f"skipped: the checkpoint {second} is damaged" in told
    assert f"resuming from {first}" in told
    assert run("fit", "-c", file, "--ckpt_path", second) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert str(second) in line
    assert "resume with --ckpt_path" in line


@pytest.mark.filterwarnings("ignore:.*logging interval:")
def test_a_checkpoint_does_not_change_the_configuration(config, tmp_path, capsys):
    path = save(tmp_path / "a.ckpt", {"hyper_parameters": {"_class_path": "os.system"}, **OTHER})
    assert run("fit", "-c", write(tmp_path, config), "--ckpt_path", path) == 2
    assert "the checkpoint holds weights alone" in capsys.readouterr().err


# ---------------------------------------------------------------- told to stop, and through


class Send(Callback):
    """Sends a signal between backward pass and optimiser step."""

    def __init__(self, number):
        self.number = number

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 2:
            signal.raise_signal(self.number)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_end_of_the_step(tiny_model, prompts, tmp_path, capfd, number):
    def fit(folder, callbacks=(), **options):
        module = grpo(tiny_model, inner_epochs=2)
        t = trainer(folder, max_steps=6, max_epochs=-1, plugins=[SafeCheckpointIO()], callbacks=[*callbacks])
        t.fit(module, PromptDataModule(str(prompts), batch_size=3), **options)
        return adapter_of(module)

    whole = fit(tmp_path / "whole")
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path / "stopped", [Send(number), GracefulStop()])
    assert stopped.value.code == 128 + number
    saved = tmp_path / "stopped/checkpoints/interrupted.ckpt"
    assert f"resume with --ckpt_path {saved}" in capfd.readouterr().err
    assert read(saved)["global_step"] == 4
    assert_same(whole, fit(tmp_path / "stopped", ckpt_path=str(saved)))


def test_lightnings_requeue_waits_too_and_training_goes_on(tiny_model, prompts, tmp_path, monkeypatch):
    steps = []

    class Handler:
        __module__ = "lightning.pytorch"

        def __call__(self, number, frame):
            steps.append((number, module.trainer.global_step))

    monkeypatch.setattr(signal, "valid_signals", lambda: {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT})
    old = signal.signal(signal.SIGUSR1, Handler())
    try:
        module = grpo(tiny_model, inner_epochs=2)
        t = trainer(tmp_path, max_steps=6, max_epochs=-1, callbacks=[Send(signal.SIGUSR1), GracefulStop()])
        t.fit(module, PromptDataModule(str(prompts), batch_size=3))
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert steps == [(signal.SIGUSR1, 4)]
    assert module.rollout_step == 3


def test_a_run_that_is_through_writes_the_adapter_when_it_is_resumed(tiny_model, prompts, tmp_path):
    data = PromptDataModule(str(prompts), batch_size=2)
    t = trainer(tmp_path, max_steps=2)
    t.fit(grpo(tiny_model), data)
    t.save_checkpoint(tmp_path / "a.ckpt")
    trainer(tmp_path, max_steps=2, callbacks=[AdapterExport()]).fit(
        grpo(tiny_model), data, ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True
    )
    first, second = (tmp_path / name / "adapter_model.safetensors" for name in ("adapter", "adapter-2"))
    assert first.read_bytes() == second.read_bytes()  # beside that of the run before


def test_a_checkpoint_becomes_a_module_again(tiny_model, prompts, tmp_path):
    t = trainer(tmp_path, max_steps=2)
    module = grpo(tiny_model)
    t.fit(module, PromptDataModule(str(prompts), batch_size=2))
    t.save_checkpoint(tmp_path / "a.ckpt")
    options = {"quantization": "none", "dtype": "float32"}
    policy = QLoRAPolicy(str(tiny_model), rank=4, **options)
    again = GRPO.load_from_checkpoint(tmp_path / "a.ckpt", policy=policy, rewards={"vowels": Vowels()})
    assert_same(adapter_of(again), adapter_of(module))
    ask = {"prompts": PromptBatch(["people from a are"]), "group_size": 2, "seed": 3}
    assert (
        again.engine.generate(again.policy, **ask)
        .texts[0][0]
        .startswith(
            module.engine.generate(module.policy, **ask).texts[0][0]  # of at most 6 tokens, the other of 128
        )
    )
    with pytest.raises(UserError, match=r"GRPO.load_from_checkpoint\(PATH, policy=QLoRAPolicy\(...\), rewards="):
        GRPO.load_from_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"SFT.load_from_checkpoint\(PATH, policy=QLoRAPolicy\(...\)\) as in the run"):
        SFT.load_from_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="the checkpoint does not fit the policy"):
        SFT.load_from_checkpoint(tmp_path / "a.ckpt", policy=QLoRAPolicy(str(tiny_model), rank=8, **options))


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(tiny_model, prompts, tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/old").write_text("old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    module = grpo(tiny_model)
    module.load_policy("cpu")
    monkeypatch.setattr(type(module.policy.lm), "save_pretrained", full)
    with pytest.raises(UserError, match=r"cannot write the adapter .*No space left.*--ckpt_path last"):
        module.save_adapter(tmp_path / "adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "prompts.jsonl"]
    assert (tmp_path / "adapter/old").read_text() == "old"


def test_any_full_disk_is_one_line(config, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "events.log")

    monkeypatch.setattr(CSVLogger, "save", full)
    assert run("fit", "-c", write(tmp_path, config)) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "cannot write events.log: No space left on device" in line


def test_an_error_in_its_own_context_is_followed_once():
    first, second = OSError(errno.ENOSPC, "No space left on device"), ValueError("wraps it")
    first.__context__, second.__context__ = second, first
    assert "No space left" in str(user_error(second))
    first.errno = errno.ENOENT
    assert user_error(second) is None
