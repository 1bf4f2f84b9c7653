"""Write the reference from signatures and docstrings, and docs/models.md from figures: ``make docs``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, cleandoc, getsource, isfunction, signature
from pathlib import Path
from textwrap import dedent
from typing import Any

from docstring_parser import parse, parse_from_object
from lightning import Callback, LightningDataModule

from lit_debias import Aggregator, Reward, RewardBatch, data
from lit_debias.benchmark import (
    Benchmark,
    ClusterBootstrap,
    Continuation,
    Estimate,
    Figure,
    Item,
    Likelihood,
    Model,
    Question,
    Tally,
    TokenLikelihoods,
    answered,
    choose,
    correlation,
    draw,
    examine,
    locate,
    read_csv,
    read_json,
    read_jsonl,
    within,
)
from lit_debias.cli import main as cli
from lit_debias.cli.ray_servers import Servers
from lit_debias.evaluation.callback import EvaluationCallback
from lit_debias.grpo.correction import ImportanceCorrection
from lit_debias.plugins.manager import HookSpecs, components, get_plugin_manager
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.policy.vlm import VLMPolicy
from lit_debias.rewards import contract
from lit_debias.rewards.explanation import ExplainingReward, Explanation
from lit_debias.rollout.engine import RolloutEngine
from lit_debias.text_measures import MEASURES, TextMeasure, Texts
from lit_debias.training import callbacks
from lit_debias.training.anchor import ProseAnchor
from lit_debias.training.dpo import DPO
from lit_debias.training.grpo import GRPO
from lit_debias.training.sft import SFT

WRITTEN = "Written by `make docs` from the code; a test compares the two."
HEAD = f"""# Reference

{WRITTEN} Classes go by their short names in YAML. [Public names](api.md) are for Python.

| page | what it holds |
|---|---|
| [Commands](reference/commands.md) | the options of each command |
| [Training](reference/training.md) | GRPO, the baselines, the policy, data and callbacks |
| [Rewards](reference/rewards.md) | every installed reward of this project |
| [Aggregators and engines](reference/aggregators.md) | from scores to advantages; how completions are sampled |
| [Benchmarks](reference/benchmarks.md) | every installed benchmark of this project, and what a benchmark is made of |
| [Measures of texts](reference/text_measures.md) | what `--text_measures` takes, and what a measure is made of |
| [Plugin authors](reference/authors.md) | hooks, and what a reward, an aggregator or an engine offers |
"""
MODELS = """# Models

Which causal architectures of transformers {version} lit-debias computes as plain Hugging Face and PEFT do. Look up the
`model_type` of a model's config.json. Written by `make docs` from
[architectures.json](../benchmarks/results/architectures.json), which has every figure and log line: the result of
`python -m benchmarks.architectures`. Each architecture is a tiny random model in float32 with the default targets.

| compared with each sequence alone | within |
|---|---|
| log-probs while sampling, of the update, of the reference and of given texts | {nats} nats |
| LoRA's gradients | {gradient:.1%} |

| verdict | architectures | what it means |
|---|---|---|
"""
VERDICTS = {
    "right": "a prompt is computed once for its group, and rows are sampled together",
    "slower but right": "another way is taken, which the log names once",
    "refused": "loading ends in one line before anything is trained; where it names targets, others may do",
    "not built": "no tiny model of it can be made on a CPU",
}
SOME_LAYERS = "adapters on the layers that the log names"
ROOT = Path(__file__).parent.parent
OFFICIAL = {"lit-debias", *(folder.name for folder in (ROOT / "plugins").iterdir())}


def section(heading: str, target: Callable[..., Any]) -> str:
    """Return a heading, the prose of the docstring, and a table of the options."""
    return f"## {heading}\n\n{markdown(summary(target))}\n{table(target)}"


def markdown(text: str) -> str:
    """Return reStructuredText as our docstrings use it in Markdown."""
    return re.sub(r":\w+:`[.~]?(.*?)`", r"`\1`", text.replace("``", "`")).replace("::\n", ":\n")


def table(target: Callable[..., Any]) -> str:
    """Return the parameters of a class or function as a Markdown table; nothing where there are none."""
    described = parse(target.__doc__ or "").params
    meaning = {p.arg_name: markdown(" ".join((p.description or "").split())) for p in described}
    rows = [
        f"| `{p.name}` | {escaped(meaning.get(p.name, ''))} | `{escaped(p.annotation)}` | {default(p)} |"
        for p in signature(target).parameters.values()
        if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    ]
    head = "\n| option | meaning | type | default |\n|---|---|---|---|\n"
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
    return f"## `{cls.__name__}`\n\n{markdown(summary(cls))}\n\n" + "\n".join(lines) + "\n"


def declaration(function: Callable[..., Any]) -> str:
    """Return name, parameters and result of a function, as it was written."""
    node = ast.parse(dedent(getsource(function))).body[0]
    assert isinstance(node, ast.FunctionDef)
    arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
    return f"{node.name}({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


def summary(target: Callable[..., Any]) -> str:
    """Return the prose of a docstring."""
    return cleandoc(target.__doc__ or "").split("\nArgs:")[0].split("\nRaises:")[0].strip()


def commands() -> Iterator[str]:
    """Yield the page of commands."""
    yield f"```text\n{cli.overview()}\n```\n"
    for name, command in cli.COMMANDS.items():
        yield section(f"`lit-debias {name}`", command.load())
        if name == "ray":
            yield section("`servers` of `lit-debias ray`", Servers)


def training() -> Iterator[str]:
    """Yield the page of what is trained, on which data, and watched by what."""
    own = (*exported(data, LightningDataModule), *exported(callbacks, Callback), EvaluationCallback)
    for cls in (GRPO, ImportanceCorrection, SFT, DPO, ProseAnchor, QLoRAPolicy, VLMPolicy, *own):
        yield section(f"`{cls.__name__}`", cls)


def plugged(kind: str) -> Iterator[str]:
    """Yield what comes through the hooks: rewards, aggregators, engines or benchmarks of this project."""
    for found in components(get_plugin_manager()):
        if found.distribution in OFFICIAL and found.kind == kind:
            yield section(f"`{found.name}` ({found.distribution})", found.cls)


def authors() -> Iterator[str]:
    """Yield the page for plugin authors."""
    yield from map(
        interface, (HookSpecs, Reward, RewardBatch, ExplainingReward, Explanation, Aggregator, RolloutEngine)
    )
    yield section("`lit_debias.rewards.contract.examine`", contract.examine)


def benchmarks() -> Iterator[str]:
    """Yield what authors of benchmarks write and use."""
    yield from map(interface, (Benchmark, Item, Figure, Model, Likelihood, TokenLikelihoods, Continuation))
    yield from map(interface, (Question, Tally, Estimate, ClusterBootstrap))
    for function in (choose, answered, within, draw, correlation, examine, locate, read_csv, read_json, read_jsonl):
        yield section(f"`{function.__name__}`", function)


def text_measures() -> Iterator[str]:
    """Yield the measures of texts, and what a measure of one's own is made of."""
    for cls in MEASURES.values():
        yield section(f"`{cls.__name__}` (`{cls.name}`)", cls)
    yield from map(interface, (TextMeasure, Texts))


def models(report: Mapping[str, Any]) -> str:
    """Return the page of what became of every architecture in the sweep's report."""
    tolerances = report["tolerances"]
    version = report["versions"]["transformers"]
    head = MODELS.format(version=version, nats=tolerances["nats"], gradient=tolerances["relative_gradient"])
    counts = [f"| {verdict} | {report['verdicts'].get(verdict, 0)} | {said} |\n" for verdict, said in VERDICTS.items()]
    return head + "".join(counts) + "".join(of_verdict(verdict, report["architectures"]) for verdict in VERDICTS)


def of_verdict(verdict: str, architectures: Sequence[Mapping[str, str]]) -> str:
    """Return the architectures of one verdict, those for one reason in one row."""
    reasons: dict[str, list[str]] = {}
    for one in architectures:
        if one["verdict"] == verdict:
            reasons.setdefault(why(one), []).append(one["name"])
    rows = [
        f"| {', '.join(f'`{name}`' for name in names)} | {escaped(reason).replace('<', '&lt;')} |\n"
        for reason, names in reasons.items()
    ]
    return f"\n## {verdict.capitalize()}\n\n| model type, variant | how, or why |\n|---|---|\n" + "".join(rows)


def why(one: Mapping[str, str]) -> str:
    """Return the way or the reason that an architecture shares with others, without its own figures and layers."""
    if one["verdict"] == "right":
        return f"{one['way']}, {SOME_LAYERS}" if one["reason"].startswith("Adapters of") else one["way"]
    slower = re.search(r"Log-probs are computed by a slower way, ([^(]*) \((.*?)\)\.", one["reason"])
    text = f"{slower[1]}: {slower[2]}" if slower else one["reason"]
    return re.sub(r"[-\d.]+%", "N%", re.sub(r"\b(has|of) \d+ (?=positions|tokens)", r"\1 N ", text))


def page(title: str, *parts: Iterator[str]) -> str:
    """Return one page of the reference."""
    return "\n".join([f"# {title}\n\n{WRITTEN}\n", *(text for part in parts for text in part)])


def pages() -> Iterator[tuple[Path, str]]:
    """Yield the files of this folder that are written, with their text."""
    folder = ROOT / "docs"
    yield folder / "reference.md", HEAD
    yield folder / "reference/commands.md", page("Commands", commands())
    yield folder / "reference/training.md", page("Training", training())
    yield folder / "reference/rewards.md", page("Rewards", plugged("reward"))
    yield folder / "reference/aggregators.md", page("Aggregators and engines", plugged("aggregator"), plugged("engine"))
    yield folder / "reference/benchmarks.md", page("Benchmarks", plugged("benchmark"), benchmarks())
    yield folder / "reference/text_measures.md", page("Measures of texts", text_measures())
    yield folder / "reference/authors.md", page("For plugin authors", authors())
    result = ROOT / "benchmarks/results/architectures.json"
    yield folder / "models.md", models(json.loads(result.read_text(encoding="utf-8")))


if __name__ == "__main__":
    for file, text in pages():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(f"wrote {file}")
