"""Write docs/reference.md from signatures and docstrings, and docs/models.md from figures: ``make docs``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, cleandoc, getsource, isfunction, signature
from pathlib import Path
from textwrap import dedent
from typing import Any

from docstring_parser import parse, parse_from_object
from lightning import Callback, LightningDataModule

from lit_debias import Aggregator, Reward, RewardBatch, data
from lit_debias.cli import main as cli
from lit_debias.evaluation.callback import EvaluationCallback
from lit_debias.plugins.manager import HookSpecs, components, get_plugin_manager
from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.rewards import contract
from lit_debias.rollout.engine import RolloutEngine
from lit_debias.training import callbacks
from lit_debias.training.dpo import DPO
from lit_debias.training.grpo import GRPO
from lit_debias.training.sft import SFT

HEAD = """# Reference

Written by `make docs` from the code; a test compares the two. Classes go by these short names in YAML.
"""
MODELS = """# Models

Which causal architectures of transformers {version} lit-debias computes as plain Hugging Face and PEFT do. Written by
`make docs` from [architectures.json](../benchmarks/results/architectures.json), the result of
`python -m benchmarks.architectures`; look up the `model_type` of a model's config.json. Each row is a tiny random model
in float32 with the default targets: log-probs while sampling, of the update, of the reference and of given texts are
within {nats} nats of those of each sequence alone, LoRA's gradients within {gradient:.1%}.

- **right**: a prompt is computed once for its group, and rows are sampled together.
- **slower but right**: another way is taken, which the log names once.
- **refused**: loading ends in this line, before anything is trained. Where it names targets, others may do.
- **not built**: no tiny model of it can be made on a CPU.

{counts}.

| model type, variant | verdict | way | why |
|---|---|---|---|
"""
ROOT = Path(__file__).parent.parent
OFFICIAL = {"lit-debias", *(folder.name for folder in (ROOT / "plugins").iterdir())}


def section(heading: str, target: Callable[..., Any]) -> str:
    """Return a heading, the prose of the docstring, and a table of the options."""
    return f"### {heading}\n\n{markdown(summary(target))}\n{table(target)}"


def markdown(text: str) -> str:
    """Return reStructuredText as our docstrings use it in Markdown."""
    return re.sub(r":\w+:`[.~]?(.*?)`", r"`\1`", text.replace("``", "`")).replace("::\n", ":\n")


def table(target: Callable[..., Any]) -> str:
    """Return the parameters of a class or function as a Markdown table; nothing where there are none."""
    described = parse(target.__doc__ or "").params
    meaning = {p.arg_name: markdown(" ".join((p.description or "").split())) for p in described}
    rows = [
        f"| `{p.name}` | `{escaped(p.annotation)}` | {default(p)} | {escaped(meaning.get(p.name, ''))} |"
        for p in signature(target).parameters.values()
        if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    ]
    head = "\n| option | type | default | meaning |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n" if rows else ""


def escaped(text: Any) -> str:
    """Return text for a cell of a table."""
    return str(text).replace("|", "\\|")


def default(parameter: Parameter) -> str:
    """Return how a parameter is preset."""
    if parameter.default is Parameter.empty:
        return "required"
    value = getattr(parameter.default, "__name__", None) or repr(parameter.default)
    return f"`{value}`"


def exported(package: Any, base: type) -> list[type]:
    """Return the classes of one kind that a package exports."""
    objects = [getattr(package, name) for name in package.__all__]
    return [item for item in objects if isinstance(item, type) and issubclass(item, base)]


def interface(cls: type) -> str:
    """Return what a class offers to those who derive from it or get one: its attributes and methods."""
    attributes = [p for p in parse_from_object(cls).params if p.args[0] == "attribute"]
    lines = [f"- `{p.arg_name}`: {markdown(' '.join((p.description or '').split()))}" for p in attributes]
    for name, item in vars(cls).items():
        if (isfunction(item) or isinstance(item, property)) and (not name.startswith("_") or name == "__call__"):
            prose = " ".join(cleandoc(item.__doc__ or "").split("\n\nArgs:")[0].split())
            lines.append(f"- `{declaration(item) if isfunction(item) else name}`: {markdown(prose)}")
    return f"### `{cls.__name__}`\n\n{markdown(summary(cls))}\n\n" + "\n".join(lines) + "\n"


def declaration(function: Callable[..., Any]) -> str:
    """Return name, parameters and result of a function, as it was written."""
    node = ast.parse(dedent(getsource(function))).body[0]
    assert isinstance(node, ast.FunctionDef)
    arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
    return f"{node.name}({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


def summary(target: Callable[..., Any]) -> str:
    """Return the prose of a docstring."""
    return cleandoc(target.__doc__ or "").split("\nArgs:")[0].split("\nRaises:")[0].strip()


def parts() -> Iterator[str]:
    """Yield the page."""
    yield HEAD
    yield f"## Command line\n\n```text\n{cli.overview()}\n```\n"
    for name, command in cli.COMMANDS.items():
        yield section(f"`lit-debias {name}`", command.load())
    yield "## Training\n"
    own = (*exported(data, LightningDataModule), *exported(callbacks, Callback), EvaluationCallback)
    for cls in (GRPO, SFT, DPO, QLoRAPolicy, *own):
        yield section(f"`{cls.__name__}`", cls)
    found = [c for c in components(get_plugin_manager()) if c.distribution in OFFICIAL]
    for kind in ("reward", "aggregator", "engine"):
        yield f"## {kind.capitalize()}s\n"
        yield from (section(f"`{c.name}` ({c.distribution})", c.cls) for c in found if c.kind == kind)
    yield "## For plugin authors\n"
    yield from map(interface, (HookSpecs, Reward, RewardBatch, Aggregator, RolloutEngine))
    yield section("`lit_debias.rewards.contract.examine`", contract.examine)


def models(report: Mapping[str, Any]) -> str:
    """Return the page of what became of every architecture in the sweep's report."""
    rows = [
        f"| {one['name']} | {one['verdict']} | {one['way']} | {escaped(one['reason']).replace('<', '&lt;')} |\n"
        for one in report["architectures"]
    ]
    tolerances = report["tolerances"]
    head = MODELS.format(
        version=report["versions"]["transformers"],
        nats=tolerances["nats"],
        gradient=tolerances["relative_gradient"],
        counts=", ".join(f"{number} {verdict}" for verdict, number in report["verdicts"].items()),
    )
    return head + "".join(rows)


def pages() -> Iterator[tuple[Path, str]]:
    """Yield the files of this folder that are written, with their text."""
    folder = Path(__file__).parent
    yield folder / "reference.md", "\n".join(parts())
    result = ROOT / "benchmarks" / "results" / "architectures.json"
    yield folder / "models.md", models(json.loads(result.read_text(encoding="utf-8")))


if __name__ == "__main__":
    for page, text in pages():
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page}")
