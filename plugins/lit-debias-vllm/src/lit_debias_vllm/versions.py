"""The policy's weights as files, a new version whenever the adapter has changed.

A version is named by its content: equal names mean equal weights, whoever wrote them, so that nothing which a server
keeps under a name (a loaded adapter, a cached prefix) can be of another version.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from lit_debias.plugins import Policy, UserError, cause_of
from lit_debias_vllm.server import ServerError, Way

PREFIX = "lit-debias-"
TRAINED = "default"
"""PEFT's name of the adapter that is trained."""


class Version:
    """The policy as it was at one moment; its files are written when a server first needs them.

    Args:
        policy: The policy.
        name: Names the content.
        folder: Where its files go.
    """

    def __init__(self, policy: Policy, name: str, folder: Path) -> None:
        self.policy, self.name, self.folder = policy, name, folder
        self._past = False

    @contextmanager
    def written(self, ways: Iterable[Way]) -> Iterator[None]:
        """Write the files of some ways; within the context no more are, as the policy may become another one."""
        for way in set(ways):
            self.adapter() if way == "adapter" else self.merged()
        self._past = True
        try:
            yield
        finally:
            self._past = False

    def adapter(self) -> Path:
        """Return the folder of the adapter as PEFT writes it."""
        return self._written("adapter", self._write_adapter)

    def merged(self) -> Path:
        """Return the folder of a plain model, base and adapter in one weight, in the policy's dtype."""
        return self._written("merged", self._write_merged)

    def _written(self, form: str, write: Any) -> Path:
        out = self.folder / f"{self.name}-{form}"
        if not out.exists():
            if self._past:
                raise ServerError(f"it takes {form} weights, which only the next rollout will bring")
            work = out.with_name(f".{out.name}")
            try:
                write(work)
                for file in work.iterdir():
                    file.chmod(0o644)  # a server may be another user's
                work.rename(out)
            except OSError as error:
                raise UserError(
                    f"VLLMEngine: cannot write {form} weights to {self.folder} ({cause_of(error)}); make room, or "
                    "write another folder, which servers see under the same path"
                ) from error
        return out

    def _write_adapter(self, out: Path) -> None:
        self.policy.lm.save_pretrained(str(out), selected_adapters=[TRAINED], save_embedding_layers=False)

    def _write_merged(self, out: Path) -> None:
        plain(self.policy).save_pretrained(str(out))

    def remove(self) -> None:
        """Delete its files."""
        for folder in self.folder.glob(f"{self.name}-*"):
            shutil.rmtree(folder, ignore_errors=True)


class Versions:
    """Knows when the policy has changed.

    Args:
        parent: Folder for the files; None is shared memory where there is some.
    """

    def __init__(self, parent: str | None) -> None:
        self.parent = Path(parent) if parent else default_folder()
        self._folder: Path | None = None
        self._now: Version | None = None

    def now(self, policy: Policy) -> Version:
        """Return the version that the policy is; files of the one before are gone where it has changed."""
        name = PREFIX + digest(policy)
        if self._now is None or self._now.name != name:
            if self._now is not None:
                self._now.remove()
            self._now = Version(policy, name, self._own_folder())
        return self._now

    def _own_folder(self) -> Path:
        if self._folder is None:
            try:
                self.parent.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.parent)
                self._folder = Path(tempfile.mkdtemp(prefix=f"{_owner(os.getpid())}-", dir=self.parent))
                self._folder.chmod(0o755)
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            except OSError as error:
                raise UserError(f"VLLMEngine: folder '{self.parent}' cannot be used: {cause_of(error)}") from error
        return self._folder


def digest(policy: Policy) -> str:
    """Return 16 hexadecimal digits that name the adapter: its weights and what they are multiplied by."""
    config = policy.lm.peft_config[TRAINED].to_dict()
    told = sha256(json.dumps(config, sort_keys=True, default=_stable).encode())
    for name, parameter in policy.trainable_parameters().items():
        told.update(name.encode())
        told.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return told.hexdigest()[:16]


def _stable(value: Any) -> str:
    return str(sorted(value) if isinstance(value, (set, frozenset)) else value)


def plain(policy: Policy) -> Any:
    """Return the policy as a plain Hugging Face model to be saved; it shares its weights with the sampling copy.

    Raises:
        UserError: its layers are not stored as they are merged.
    """
    if any(type(module).__name__ == "Conv1D" for module in policy.causal_lm.modules()):
        raise UserError(
            f"VLLMEngine: model '{policy.source}' keeps its weights transposed, and they cannot be sent merged; write "
            "sync: adapter"
        )
    model: Any = copy.copy(policy.forms.merged())
    model.config = copy.deepcopy(model.config)
    for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        vars(holder).pop(name, None)  # no weight of the copy is quantised
    return model


def default_folder() -> Path:
    """Return where files go that servers on this machine read once."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def remove_leftovers(parent: Path) -> None:
    """Delete what processes of this machine have left that were killed; shared memory is not freed otherwise."""
    for folder in _left_behind(parent):
        shutil.rmtree(folder, ignore_errors=True)


def _left_behind(parent: Path) -> Iterator[Path]:
    start = _owner("")
    for folder in parent.glob(f"{start}*"):
        number = folder.name.removeprefix(start).partition("-")[0]
        if number.isdigit() and not Path(f"/proc/{number}").exists() and Path("/proc/self").exists():
            yield folder


def _owner(process: int | str) -> str:
    return f"{PREFIX}{socket.gethostname()}-{process}"
