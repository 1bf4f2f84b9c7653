"""The command line that the benchmarks share: which model, which step, where the figures go."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import torch

from benchmarks.settings import Settings
from benchmarks.shapes import SHAPES, save_model
from lit_debias.errors import UserError, did_you_mean
from lit_debias.models.sources import check_model
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias.rewards.reward import Reward
from lit_debias.support.precision import dtype_of

SIZES = ("prompts", "group-size", "prompt-tokens", "completion-tokens", "repeats")


def program(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes: device and result file."""
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(f"runs/bench/{name}.json"), help="JSON file to write")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser


def add_step(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`Settings`: the model and the size of a step."""
    default = Settings()
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default=default.model, help="folder, pkg://PACKAGE/FILE.gguf, or hub id")
    what.add_argument("--shape", choices=SHAPES, help="a random model of this shape instead of --model")
    parser.add_argument("--shape-folder", type=Path, help="folder that keeps models of shapes for the next call")
    parser.add_argument("--quantization", choices=["nf4", "none"], default=default.quantization)
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--attention", choices=["sdpa", "flex"], default=default.attention, help="of training")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=positive, default=getattr(default, name.replace("-", "_")))
    parser.add_argument("--quick", action="store_true", help="one tiny step: does it run?")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add how completions are sampled."""
    parser.add_argument("--decoder", choices=["auto", "native", "lean", "hugging_face"], default="auto")
    parser.add_argument("--lengths", choices=["fixed", "natural"], default="fixed")
    parser.add_argument("--torch-compile", action="store_true", help="compile the lean decoder")
    parser.add_argument("--cuda-graph", action="store_true", help="record a token's kernels once for a rollout")


def add_rewards(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--reward``."""
    parser.add_argument(
        "--reward",
        action="append",
        metavar="NAME[=JSON]",
        help=f"reward class of an installed plugin with its arguments; may be repeated (default: {default})",
    )


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def device_of(options: argparse.Namespace) -> str:
    """Return ``cpu`` or ``cuda``.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; write --device cpu")
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(options.device)


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what the options ask to measure.

    Raises:
        UserError: there is no such device, or ``--model`` names nothing.
    """
    given = {field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)}
    if isinstance(given.get("lengths"), list):  # a benchmark of several
        del given["lengths"]
    device = device_of(options)
    if "dtype" in given:
        given["dtype"] = str(dtype_of(given["dtype"], device)).removeprefix("torch.")
    settings = Settings(**{**given, "device": device})
    if settings.shape is None:
        check_model(settings.model)
    return settings.quick() if options.quick else settings


@contextmanager
def model_at_hand(settings: Settings, keep: Path | None) -> Iterator[Settings]:
    """Within the context, ``model`` names a folder; a model of a shape lives in ``keep``, or in a temporary folder."""
    if settings.shape is None:
        yield settings
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (keep or Path(temporary)) / settings.shape
        if not (folder / "tokenizer.json").is_file():  # written last
            save_model(settings.shape, folder, settings.device)
        yield replace(settings, model=str(folder))


def build_reward(text: str) -> tuple[str, Reward]:
    """Return name and instance of ``NAME`` or ``NAME={"argument": value}``.

    Raises:
        UserError: no plugin has such a reward, or the arguments do not fit.
    """
    name, _, values = text.partition("=")
    classes = {found.name: found.cls for found in components(get_plugin_manager()) if found.kind == "reward"}
    if name not in classes:
        raise UserError(f"--reward {name}: no such reward{did_you_mean(name, classes)}")
    try:
        return name, classes[name](**json.loads(values or "{}"))
    except (TypeError, ValueError) as error:
        raise UserError(f'--reward {text}: {error}; write NAME or NAME={{"argument": value}}') from error
