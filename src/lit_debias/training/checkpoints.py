"""Checkpoints that survive: written whole or not at all, checked before they are trusted, found again."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import socket
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_debias.errors import ResumableError, UserError
from lit_debias.support import distributed
from lit_debias.support.atomic import new_file
from lit_debias.support.hashing import BLOCK, sha256
from lit_debias.training.machines import launch, restarted

VERSION = "pytorch-lightning_version"
"""What every checkpoint of Lightning holds."""
RECORD = "lit_debias"
"""Key of what a run says of itself in its checkpoints."""
REQUEUED = "hpc_ckpt_*.ckpt"
"""What Lightning saves in the trainer's ``default_root_dir`` when SLURM is about to take the machines away."""
SEAL = b"\nsha256 "
"""Stands after torch's zip file, before 64 hexadecimal digits; who reads the zip file does not see it."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written so that no crash can harm one, and read without running pickled code.

    ``lit-debias fit`` uses it unless the trainer's ``plugins`` name another one; in Python, write
    ``Trainer(plugins=[SafeCheckpointIO()])``. Paths of remote file systems (``s3://``) are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``path`` whole or not at all; what stood there stays until the new file is on the disk.

        Raises:
            UserError: the file cannot be written (full disk, permissions); names what to resume from.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        content.write(SEAL + sha256([content.getbuffer()]).encode())
        try:
            with new_file(path, path.with_name(f".{path.name}.part")) as file:
                content.seek(0)
                shutil.copyfileobj(content, file)
        except OSError as error:
            raise UserError(
                f"cannot save the checkpoint {path}: {error.strerror}; what was saved before is untouched: "
                f"make it possible to write there, then {_advice(path.parent.glob('*.ckpt'))}"
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read ``path`` onto the CPU, as :func:`read` does, whatever Lightning says of ``weights_only``.

        The first rank reads for all: it has written the file, and other machines may not see its disk.

        Raises:
            UserError: there is no such file, or it is damaged; names the newest good one beside it.
        """
        if "://" in str(path):
            remote: dict[str, Any] = super().load_checkpoint(path, weights_only=True)
            return remote
        return distributed.of_first(lambda: self._read(Path(path)))

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return read(path)
        except UserError as error:
            others = [other for other in path.parent.glob("*.ckpt") if other != path]
            raise UserError(f"{error}; {_advice(others)}") from error


def read(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content on the CPU; nothing that it holds is run.

    Its bytes are compared with the SHA-256 at its end: torch itself compares nothing, and a flipped bit in a weight
    would be loaded without a word. Checkpoints of Lightning's own writing are compared with the CRC-32 of their parts.

    Raises:
        UserError: there is no such file, it is damaged, no checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    problem = damage(path)
    if problem:
        raise UserError(f"the checkpoint {path} is damaged or incomplete ({problem})")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        code = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        cause = f"it asks for {code[1]}, and no code is run" if code else " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint {path} cannot be read as weights and plain values ({cause})") from error
    if not isinstance(content, dict) or VERSION not in content:
        raise UserError(f"{path} is no checkpoint of a run (it has no '{VERSION}')")
    return content


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's bytes, None where they are as they were written."""
    left = max(0, path.stat().st_size - len(SEAL) - 64)
    with path.open("rb") as file:
        digest = sha256(_pieces(file, left))
        end = file.read()
    if end.startswith(SEAL):
        return None if end == SEAL + digest.encode() else "its SHA-256 is not the one at its end"
    if end[-22:-18] != b"PK\x05\x06":  # the last record of a zip file
        return "its end is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged directory of a zip file leads to whatever it happens to say
        return f"{type(error).__name__}: {error}"
    return broken and f"its part '{broken}' is not what was written"


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the next ``size`` bytes of a file, a block at a time."""
    while piece := file.read(min(size, BLOCK)):
        size -= len(piece)
        yield piece


@contextlib.contextmanager
def kept_where_it_stops(module: LightningModule) -> Iterator[None]:
    """Keep a checkpoint of a fit that stops within the context and could go on; every rank must stop.

    Raises:
        UserError: what stopped it, and how to resume.
    """
    try:
        yield
    except ResumableError as error:
        if module.trainer.state.fn != "fit":
            raise
        path = Path(module.trainer.default_root_dir) / error.checkpoint
        module.trainer.save_checkpoint(path)
        raise UserError(f"{error}; resume with --ckpt_path {path}") from error


def newest(paths: Iterable[Path]) -> list[Path]:
    """Return the files that exist, the one that was written last first."""
    times = {path: path.stat().st_mtime_ns for path in paths if path.is_file()}
    return sorted(times, key=lambda path: times[path], reverse=True)


def newest_good(paths: Iterable[Path]) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that can be read, None where there is none, and what is wrong with newer ones."""
    problems = []
    for path in newest(paths):
        try:
            read(path)
        except UserError as error:
            problems.append(str(error))
        else:
            return path, problems
    return None, problems


def resolve_restart(trainer: Trainer) -> Path | None:
    """Return the newest checkpoint of this very run where its launcher has started it again, None otherwise.

    A path that was given says where the run began: going back to it at each restart would never end. Collective.
    """
    name = launch() if restarted() else None
    if name is None:
        return None
    paths = newest(checkpoints_of(trainer))
    found = distributed.of_first(lambda: next((path for path in paths if _launch_of(path) == name), None))
    if found is not None and trainer.is_global_zero:
        print(f"lit-debias: this run was started again; resuming from {found}", file=sys.stderr)
    return found


def _launch_of(path: Path) -> str | None:
    """Return which launch has written a checkpoint, None where it does not say or cannot be read."""
    try:
        name: str | None = read(path).get(RECORD, {}).get("launch")
    except UserError:
        return None  # an older one may be whole
    return name


def _check_first_has_it(found: Path | None) -> None:
    """Refuse to start anew where another machine's disk holds what an earlier run has saved."""
    (_, first), *others = distributed.gather_objects((socket.gethostname(), found))
    for number, (machine, path) in enumerate(others, 1):
        if first is None and path is not None:
            raise UserError(
                f"process {number} (on {machine}) has the checkpoint {path}, and process 0, which resumes, has none; "
                "copy the checkpoints to the first machine, or delete them to start again"
            )


def _advice(paths: Iterable[Path]) -> str:
    good, _ = newest_good(paths)
    return f"resume with --ckpt_path {good}" if good else "start again: there is no good checkpoint beside it"


def checkpoints_of(trainer: Trainer) -> list[Path]:
    """Return every checkpoint of this run and of earlier ones with the same folders, in no order.

    Loggers give each run a folder of its own (``version_3``), and a resumed run is one more: all of them are searched.
    """
    logger = trainer.logger
    root = Path(trainer.default_root_dir)
    if logger is not None:
        root = Path(logger.save_dir or root, str(logger.name))
    folders = [*root.glob("*/checkpoints"), root / "checkpoints"]
    requeued = Path(trainer.default_root_dir).glob(REQUEUED)
    folders += [Path(c.dirpath) for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
    return [*requeued, *(path for folder in dict.fromkeys(folders) for path in folder.glob("*.ckpt"))]


def resolve_last(trainer: Trainer) -> Path | None:
    """Return what ``--ckpt_path last`` stands for: the newest good checkpoint, None where nothing has been saved.

    It is the first rank's, as only that one saves. Collective, where processes have met.

    Raises:
        UserError: there are checkpoints, and all of them are damaged; or the first rank has none, and another one has.
    """
    found, problems = newest_good(checkpoints_of(trainer))
    _check_first_has_it(found)
    found, problems = distributed.of_first(lambda: (found, problems))
    if found is None and problems:
        raise UserError(f"no checkpoint of this run can be read: {problems[0]}; leave --ckpt_path out to start again")
    if trainer.is_global_zero:
        for problem in problems:
            print(f"lit-debias: skipped: {problem}", file=sys.stderr)
        what = f"resuming from {found}" if found else "nothing has been saved yet, so a new run starts"
        print(f"lit-debias: {what}", file=sys.stderr)
    return found
