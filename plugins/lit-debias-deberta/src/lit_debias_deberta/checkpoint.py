"""A reward model on disk: a folder that :class:`transformers.AutoModel` reads, and the heads beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from lit_debias.plugins import PACKAGE_SCHEME, UserError, locate, new_folder, write_text
from lit_debias_deberta.calibration import Calibration
from lit_debias_deberta.network import DIMENSIONS, RewardNetwork, load_encoder
from lit_debias_deberta.pooling import PARTS, Pooling

MANIFEST = "reward_model.json"
HEADS = "heads.safetensors"
TEST = "test.json"


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
    """Validation figures at the end of training, without calibration; and those of the last test, with it."""
    versions: dict[str, str] = field(default_factory=dict)
    """Distribution -> version."""
    pooling: Pooling = "mean"
    """What the heads see; models from before there was a choice say nothing, and have the mean."""
    calibration: dict[str, Calibration] = field(default_factory=dict)
    """Head -> temperature and bias; a head without keeps its plain sigmoid."""

    def __post_init__(self) -> None:
        if self.pooling not in PARTS:
            raise ValueError(f"pooling '{self.pooling}' is unknown")


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
        calibration = {name: Calibration(**values) for name, values in content.pop("calibration", {}).items()}
        return Manifest(**content, calibration=calibration)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint '{folder}': {MANIFEST} is not readable ({error}); train it again") from error


def build_network(
    source: str, dimensions: Sequence[str] = DIMENSIONS, max_length: int = 256, dropout: float = 0.1
) -> RewardNetwork:
    """Return a network on the encoder ``source``; heads are new, or read where ``source`` is a reward model."""
    encoder, tokenizer = load_encoder(source)
    folder = Path(locate(source))
    saved = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    pooling = saved.pooling if saved else "parts"
    network = RewardNetwork(encoder, tokenizer, dimensions, max_length, dropout, pooling)
    if saved:
        _read_heads(network, folder, set(saved.dimensions))
        network.calibration |= {
            name: saved.calibration[name] for name in network.dimensions if name in saved.calibration
        }
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


def check_free(out: Path, mark: str = MANIFEST, what: str = "a reward model") -> None:
    """Raise :class:`UserError` where saving to ``out`` would remove a folder without the file ``mark``."""
    if out.exists() and not (out / mark).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out '{out}' holds something else than {what}; write another folder")


def save_network(network: RewardNetwork, manifest: Manifest, out: Path) -> None:
    """Write the folder ``out``, all or nothing; a reward model that is there is replaced.

    Pooling and calibration are the network's own, whatever the manifest says.

    Raises:
        UserError: ``out`` holds something else.
    """
    check_free(out)
    with new_folder(out) as work:
        network.encoder.save_pretrained(work)
        network.tokenizer.save_pretrained(work)
        save_file({key: value.contiguous() for key, value in network.heads.state_dict().items()}, work / HEADS)
        _write_manifest(replace(manifest, pooling=network.pooling, calibration=network.calibration), work)


def save_test(content: Mapping[str, Any], metrics: Mapping[str, float], folder: Path) -> None:
    """Write ``test.json`` beside a reward model, and its flat figures into the manifest in the place of older ones."""
    manifest = read_manifest(folder)
    validation = {name: value for name, value in manifest.metrics.items() if name.startswith("val/")}
    write_json(folder / TEST, content)
    _write_manifest(replace(manifest, metrics=validation | dict(metrics)), folder)


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    write_json(folder / MANIFEST, asdict(manifest))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON such that a reader finds the old file or the new one."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
