"""Small training runs, each in a process of its own, that are killed, told to stop, or starved of disk.

The processes are forked from one that has imported everything, and so cost no start; they run ``lit-debias fit`` and
are as separate as any: a killed one dies by SIGKILL, with whatever it had in flight.
"""

from __future__ import annotations

import faulthandler
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import bitsandbytes  # noqa: F401  (imported here, and not in each process)
import peft  # noqa: F401
import torch
import yaml
from lightning.pytorch.callbacks import model_checkpoint
from transformers.models.qwen2 import modeling_qwen2  # noqa: F401

from benchmarks.shapes import save_model
from lit_debias.cli import training as training_cli  # noqa: F401
from lit_debias.cli.main import main
from lit_debias.errors import UserError
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.support import atomic
from lit_debias.training import checkpoints as checkpoint_io

FORK = multiprocessing.get_context("fork")
PATIENCE = 300.0  # seconds after which a process hangs; machines may be busy
ERROR = "lit-debias: error: "
SAVING = {
    checkpoint_io.__file__: {"save_checkpoint"},
    atomic.__file__: {"new_file", "to_disk"},
    shutil.__file__: {"copyfileobj"},
    model_checkpoint.__file__: {"_save_none_monitor_checkpoint", "_save_last_checkpoint", "_remove_checkpoint"},
}
"""File -> functions that save; :func:`die_while_saving` counts their lines."""


class Vowels(Reward):
    """Share of vowels: something that differs between the completions of a random model."""

    def score(self, batch: RewardBatch) -> list[float | None]:
        return [sum(c in "aeiou0123" for c in text) / max(1, len(text)) for text in batch.completions]


@dataclass(frozen=True)
class Ended:
    """How a process ended; ``code`` is negative where a signal ended it."""

    code: int | None
    text: str
    """What it had printed."""

    @property
    def errors(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.startswith(ERROR)]

    @property
    def in_one_line(self) -> bool:
        """Whether it ended as a user's mistake does: exit code 2, one line, no traceback."""
        return self.code == 2 and len(self.errors) == 1 and "Traceback" not in self.text


class Running:
    """A function in a process of its own."""

    def __init__(self, log: Path, function: Callable[[], Any]) -> None:
        self.log = log
        self.process = FORK.Process(target=_redirected, args=(log, function))
        self.process.start()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ended(self, seconds: float) -> bool:
        """Wait; return whether it has ended."""
        self.process.join(seconds)
        return self.process.exitcode is not None

    def end(self) -> Ended:
        """Wait for the end; one that hangs is killed, and its code is None."""
        code = self.process.exitcode if self.ended(PATIENCE) else None
        if code is None:
            self.process.kill()
            self.process.join()
        return Ended(code, self.log.read_text(errors="replace"))

    def wait_for(self, happened: Callable[[], bool]) -> bool:
        """Wait until something has happened, looked at every 10 ms; return False where the process ended before."""
        while not happened():
            if self.ended(0.01):
                return False
        return True


def _redirected(log: Path, function: Callable[[], Any]) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.dump_traceback_later(0.8 * PATIENCE)  # says where a process hangs
    sys.exit(function())


class Lab:
    """A tiny model with prompts, and a folder for each run on them.

    Args:
        folder: Gets model, prompts and runs.
        steps: Optimiser steps of a run.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.printed = folder / "printed"
        self.printed.mkdir()
        self.numbers = count()
        self.prompts = folder / "prompts.jsonl"
        rows = [{"prompt": f"w{number} w{number + 1} are"} for number in range(1, 13)]
        self.prompts.write_text("\n".join(json.dumps(row) for row in rows))
        made = Running(self.printed / "model.log", lambda: save_model("tiny", folder / "model", "cpu") and None).end()
        assert made.code == 0, made.text
        with redirect_stdout(io.StringIO()), suppress(SystemExit):  # what jsonargparse learns of classes is kept
            main(["fit", "-c", str(self.config(self.run_folder("parsed"))), "--print_config"])

    def run_folder(self, name: str) -> Path:
        """Return a folder for a new run."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        return folder

    def config(self, folder: Path, **trainer: Any) -> Path:
        """Write a run's configuration; ``trainer`` replaces some of the trainer's settings."""
        keep = {"every_n_train_steps": 1, "save_last": True}
        written = {
            "trainer": {
                "accelerator": "cpu",
                "max_steps": self.steps,
                "max_epochs": -1,
                "default_root_dir": str(folder),
                "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": "logs"}},
                "callbacks": [
                    {"class_path": "AdapterExport"},
                    {"class_path": "CompletionTable", "init_args": {"every_n_steps": 1, "show": False}},
                    {"class_path": "ModelCheckpoint", "init_args": keep},
                ],
                **dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False),
                "log_every_n_steps": 1,
                "limit_val_batches": 0,
                **trainer,
            },
            "model": {
                "class_path": "GRPO",
                "init_args": {
                    "policy": {
                        "class_path": "QLoRAPolicy",
                        "init_args": {
                            "model": str(self.folder / "model"),
                            "quantization": "none",
                            "dtype": "float32",
                            "rank": 8,
                            "dropout": 0.1,
                        },
                    },
                    "engine": {"class_path": "LocalEngine", "init_args": {"max_new_tokens": 8}},
                    "group_size": 4,
                    "inner_epochs": 2,
                    "rewards": {"vowels": {"class_path": f"{__name__}.Vowels"}},
                    "loss": {"class_path": "DAPOLoss", "init_args": {"beta": 0.02}},
                    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                },
            },
            "data": {
                "class_path": "PromptDataModule",
                "init_args": {"path": str(self.prompts), "batch_size": 4, "val_splits": "train"},
            },
        }
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(written))
        return file

    def fit(self, config: Path, *options: str, before: Callable[[], Any] | None = None) -> Running:
        """Start ``lit-debias fit`` on a configuration; ``before`` is called in its process."""

        def function() -> int:
            if before is not None:
                before()
            return main(["fit", "-c", str(config), *options])

        return Running(self.printed / f"{next(self.numbers)}.log", function)

    def resume(self, config: Path, *options: str, before: Callable[[], Any] | None = None) -> Running:
        """Start it with ``--ckpt_path last``."""
        return self.fit(config, "--ckpt_path", "last", *options, before=before)


# ---------------------------------------------------------------- what stands in a run's folder


def checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, newest first."""
    return checkpoint_io.newest(folder.rglob("*.ckpt"))


def final_state(folder: Path) -> dict[str, Any]:
    """Return what a run ended with: its newest checkpoint, and the bytes of the adapter that it left last."""
    path, problems = checkpoint_io.newest_good(checkpoints(folder))
    if path is None or problems:
        raise UserError(f"no good newest checkpoint in {folder}: {problems}")
    kept = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "grpo")
    content = checkpoint_io.read(path)
    adapters = checkpoint_io.newest(folder.rglob("adapter/adapter_model.safetensors"))[:1]
    return {name: content[name] for name in kept} | {"adapters": [file.read_bytes() for file in adapters]}


def same(first: Any, second: Any) -> bool:
    """Return whether two nested values are equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, Mapping):
        return (
            isinstance(second, Mapping)
            and first.keys() == second.keys()
            and all(same(value, second[key]) for key, value in first.items())
        )
    if isinstance(first, Sequence) and not isinstance(first, str | bytes):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


# ---------------------------------------------------------------- what is done to a process from within


def die_while_saving(number: int) -> None:
    """Kill this process at the ``number``-th line, from now on, that saves a checkpoint; print where that is.

    Files are written by such lines in pieces of 64 KiB at most, so half a file is among the moments.
    """
    left = number

    def line(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left == 0:
            os.write(2, f"killed in {frame.f_code.co_name}, line {frame.f_lineno}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, _event: str, _argument: Any) -> Any:
        saves = frame.f_code.co_name in SAVING.get(frame.f_code.co_filename, ())
        return line if saves else None

    sys.settrace(call)


def disk_full_after(syncs: int) -> None:
    """Let every ``fsync`` of this process but the first ``syncs`` say that the disk is full."""
    fsync, left = os.fsync, syncs

    def failing(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, os.strerror(28))
        fsync(handle)

    os.fsync = failing


def rank_of_two(rank: int, port: int) -> None:
    """Make this process one of two, as ``srun`` and ``torchrun`` start them."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
