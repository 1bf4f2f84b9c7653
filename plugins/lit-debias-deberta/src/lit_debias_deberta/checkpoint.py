"""A reward model on disk: a folder that :class:`transformers.AutoModel` reads, and the heads beside it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from lit_debias.errors import UserError
from lit_debias.models import PACKAGE_SCHEME, locate
from lit_debias_deberta.network import DIMENSIONS, RewardNetwork, load_encoder

MANIFEST = "reward_model.json"
HEADS = "heads.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What ``reward_model.json`` says about the model beside it."""

    dimensions: list[str]
    """Names of the heads."""
    max_length: int
    """Tokens of a pair of prompt and response in training."""
    base_model: str = ""
    """The encoder that training started from."""
    data: str = ""
    """The data that it was trained on."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation figures at the end of training."""
    versions: dict[str, str] = field(default_factory=dict)
    """Distribution -> version."""


def find(checkpoint: str) -> Path:
    """Return the folder that ``checkpoint`` names.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(locate(checkpoint)) if checkpoint.startswith(PACKAGE_SCHEME) else Path(checkpoint).expanduser()
    if not checkpoint or not folder.is_dir():
        raise UserError(
            f"checkpoint '{checkpoint}': no such folder; write the one that a reward model was trained to "
            "(model.init_args.out), or train one: lit-debias fit -c configs/reward_model.yaml"
        )
    return folder


def read_manifest(folder: Path) -> Manifest:
    """Read what is in a reward model's folder, without its weights.

    Raises:
        UserError: the folder holds no reward model, or a part of it is missing or unreadable.
    """
    for name in (MANIFEST, HEADS):
        if not (folder / name).is_file():
            raise UserError(
                f"checkpoint '{folder}': no {name} there; write the folder that a reward model was trained to"
            )
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Manifest(**content)
    except (ValueError, TypeError) as error:
        raise UserError(f"checkpoint '{folder}': {MANIFEST} is not readable ({error}); train it again") from error


def build_network(
    source: str, dimensions: Sequence[str] = DIMENSIONS, max_length: int = 256, dropout: float = 0.1
) -> RewardNetwork:
    """Return a network on the encoder ``source``; heads are new, or read where ``source`` is a reward model."""
    encoder, tokenizer = load_encoder(source)
    network = RewardNetwork(encoder, tokenizer, dimensions, max_length, dropout)
    folder = Path(locate(source))
    if (folder / MANIFEST).is_file():
        _read_heads(network, folder, set(read_manifest(folder).dimensions))
    return network


def load_network(folder: Path) -> RewardNetwork:
    """Return a saved network in evaluation mode."""
    manifest = read_manifest(folder)
    return build_network(str(folder), manifest.dimensions, manifest.max_length).eval()


def _read_heads(network: RewardNetwork, folder: Path, saved: set[str]) -> None:
    weights = load_file(folder / HEADS)
    for name in saved.intersection(network.dimensions):
        prefix = f"{name}."
        mine = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        network.heads[name].load_state_dict(mine)


def check_free(out: Path) -> None:
    """Raise :class:`UserError` where saving to ``out`` would remove something that is no reward model."""
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out '{out}' holds something else than a reward model; write another folder")


def save_network(network: RewardNetwork, manifest: Manifest, out: Path) -> None:
    """Write the folder ``out``, all or nothing; a reward model that is there is replaced.

    Raises:
        UserError: ``out`` holds something else.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        network.encoder.save_pretrained(work)
        network.tokenizer.save_pretrained(work)
        save_file({key: value.contiguous() for key, value in network.heads.state_dict().items()}, work / HEADS)
        (work / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        work.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
