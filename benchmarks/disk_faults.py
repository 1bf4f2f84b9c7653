"""Checkpoints that are damaged, and disks that are full."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.fault_bench import Bench, Finding
from benchmarks.fault_runs import Ended, checkpoints, disk_full_after
from lit_debias.training import checkpoints as checkpoint_io

REFUSED = "refused in one line, the one before offered, then bitwise"
STOPS = "exit code 2, one line, nothing damaged, then bitwise"

# ---------------------------------------------------------------- damaged files


def damaged(bench: Bench, name: str, *damages: Callable[[Path, random.Random], None]) -> Finding:
    """The two newest checkpoints are damaged: one is named, then ``last`` has to find the third."""
    config, paths = bench.interrupted_run(name)
    *broken, good = paths[:3]
    chance = random.Random(bench.seed)
    for path, damage in zip(broken, damages, strict=True):
        damage(path, chance)
    ended = bench.lab.fit(config, "--ckpt_path", str(broken[0])).end()
    refused = "refused in one line" if ended.in_one_line and str(broken[0]) in ended.errors[0] else ended.text[-300:]
    offered = "the one before offered" if f"--ckpt_path {good}" in ended.text else "the one before not offered"
    return Finding(name, REFUSED, seen := f"{refused}, {offered}, then {bench.resumes(config)}", seen == REFUSED)


def truncate(path: Path, chance: random.Random) -> None:
    """As a copy does that was broken off."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def flip(path: Path, chance: random.Random) -> None:
    """Turn one bit of one weight around, which torch loads without a word."""
    with zipfile.ZipFile(path) as archive:
        entry = chance.choice([entry for entry in archive.infolist() if "/data/" in entry.filename and entry.file_size])
    with path.open("r+b") as file:
        file.seek(entry.header_offset + 26)  # the lengths of name and extra field, which stand before the content
        lengths = [int.from_bytes(file.read(2), "little") for _ in range(2)]
        place = entry.header_offset + 30 + sum(lengths) + chance.randrange(entry.file_size)
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))
    torch.load(path, weights_only=True)


def all_damaged(bench: Bench) -> Finding:
    """A run must not begin anew without being told to."""
    config, paths = bench.interrupted_run("all_damaged")
    for path in paths:
        os.truncate(path, 1000)
    ended = bench.lab.resume(config).end()
    expected = "refused in one line"
    seen = (
        expected if ended.in_one_line and "no checkpoint of this run can be read" in ended.text else ended.text[-300:]
    )
    return Finding("all checkpoints truncated, --ckpt_path last", expected, seen, seen == expected)


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled_code(bench: Bench) -> Finding:
    """A checkpoint whose pickle runs code."""
    config, paths = bench.interrupted_run("pickled_code")
    marker = config.parent / "has_run"
    torch.save({**checkpoint_io.read(paths[0]), "more": Payload(marker)}, paths[0])
    ended = bench.lab.fit(config, "--ckpt_path", str(paths[0])).end()
    expected = "refused in one line, the code has not run"
    refused = "refused in one line" if ended.in_one_line else ended.text[-300:]
    seen = f"{refused}, the code has {'run' if marker.exists() else 'not run'}"
    return Finding("code in a checkpoint's pickle", expected, seen, seen == expected)


# ---------------------------------------------------------------- full disks


def verdict(bench: Bench, name: str, config: Path, ended: Ended, kept: bool = True) -> Finding:
    """Judge a run that was out of disk, and resume it now that there is room."""
    one_line = "exit code 2, one line" if ended.in_one_line else f"exit code {ended.code}: {ended.text[-600:]}"
    _, problems = checkpoint_io.newest_good(checkpoints(config.parent))
    lost = problems or [str(path) for path in config.parent.rglob("*.part")] or ([] if kept else ["the old adapter"])
    seen = f"{one_line}, {f'damaged: {lost}' if lost else 'nothing damaged'}, then {bench.resumes(config)}"
    return Finding(name, STOPS, seen, seen == STOPS)


def disk_error(bench: Bench) -> Finding:
    """The disk is full when the fourth checkpoint is brought to it; needs no disk of its own."""
    config = bench.lab.config(bench.lab.run_folder("disk_error"))
    ended = bench.lab.fit(config, before=lambda: disk_full_after(7)).end()
    return verdict(bench, "disk full while saving", config, ended)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], None] | None]:
    """Mount 4 MiB of memory as ``folder``; yield what fills it, or None where nothing may be mounted."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    filler = folder / "filler"

    def fill() -> None:
        try:
            with filler.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            pass

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disk(bench: Bench, name: str, part: str, **trainer: Any) -> Finding:
    """A disk of its own for ``part`` of the run's folder is full from the second step on."""
    folder = bench.lab.run_folder(name.replace(" ", "_"))
    with small_disk(folder / part) as fill:
        if fill is None:
            return Finding(name, STOPS, "skipped: only root may mount a disk", True)
        config = bench.lab.config(folder, **trainer)
        running = bench.lab.fit(config)
        running.wait_for(lambda: bool(checkpoints(folder)))
        while not running.ended(0.01):
            fill()
        ended = running.end()
        (folder / part / "filler").unlink()
        return verdict(bench, name, config, ended)


def full_disk_of_all(bench: Bench) -> Finding:
    """Checkpoints, logs and completions share it."""
    return full_disk(bench, "full disk", "")


def full_disk_of_logs(bench: Bench) -> Finding:
    """TensorBoard's files and completions are there, the checkpoints elsewhere."""
    root = bench.lab.folder / "full_disk_of_logs"
    keep = {
        "every_n_train_steps": 1,
        "save_last": True,
        "save_on_exception": True,
        "dirpath": str(root / "checkpoints"),
    }
    callbacks = [
        {"class_path": "AdapterExport"},
        {"class_path": "CompletionTable", "init_args": {"every_n_steps": 1, "show": False}},
        {"class_path": "ModelCheckpoint", "init_args": keep},
    ]
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(root / "small"), "name": "logs"}}
    return full_disk(bench, "full disk of logs", "small", callbacks=callbacks, logger=logger)


def full_disk_of_adapter(bench: Bench) -> Finding:
    """An older adapter is there, and the run is through when the new one cannot be written."""
    name = "full disk of the adapter"
    folder = bench.lab.run_folder("full_disk_of_adapter")
    with small_disk(folder / "small") as fill:
        if fill is None:
            return Finding(name, STOPS, "skipped: only root may mount a disk", True)
        adapter = folder / "small" / "adapter"
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_bytes(b"old")
        fill()
        keep = {"every_n_train_steps": 1, "save_last": True}
        callbacks = [
            {"class_path": "AdapterExport", "init_args": {"out": str(adapter)}},
            {"class_path": "ModelCheckpoint", "init_args": keep},
        ]
        config = bench.lab.config(folder, callbacks=callbacks)
        ended = bench.lab.fit(config).end()
        kept = (adapter / "adapter_model.safetensors").read_bytes() == b"old"
        (folder / "small" / "filler").unlink()
        return verdict(bench, name, config, ended, kept)


SHORT: dict[str, Callable[[Bench], Finding]] = {
    "damaged": lambda bench: damaged(bench, "checkpoints truncated, and one bit flipped", truncate, flip),
    "full_disk": full_disk_of_all,
}
FULL: dict[str, Callable[[Bench], Finding]] = {
    "truncated": lambda bench: damaged(bench, "checkpoints truncated", truncate, truncate),
    "flipped": lambda bench: damaged(bench, "one bit of checkpoints flipped", flip, flip),
    "disk_error": disk_error,
    "all_damaged": all_damaged,
    "pickled_code": pickled_code,
    "full_disk_of_logs": full_disk_of_logs,
    "full_disk_of_adapter": full_disk_of_adapter,
}
