"""``lit_debias.json`` in an adapter's folder: what it was trained on and how, without a path or a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_debias.errors import UserError
from lit_debias.models.adapter_config import WEIGHTS
from lit_debias.models.hub_names import hub_name, public_name
from lit_debias.support.files import as_object, parse_json, read_text
from lit_debias.support.packages import PACKAGE_SCHEME
from lit_debias.support.sketch import sketch, strings_in

if TYPE_CHECKING:
    from lit_debias.policy.policy import Policy

NAME = "lit_debias.json"
CONFIG = "adapter_config.json"
Record = dict[str, Any]


def record_of(policy: Policy, training: Record, base: str | None = None) -> Record:
    """Return what the folder of a policy's adapter says of it.

    Args:
        policy: The policy; one that continues an adapter takes over what is known of how that was trained.
        training: How its adapter was trained.
        base: The base's id on the hub, where its source does not say it.
    """
    before = read_record(Path(adapter)).get("training", []) if (adapter := policy.recipe.adapter) else []
    return {
        "base": base_record(policy.source, base),
        "quantization": policy.recipe.quantization,
        "dtype": str(policy.forms.dtype).removeprefix("torch."),
        "system_prompt": policy.system_prompt,
        "chat_template_kwargs": dict(policy.chat_template_kwargs),
        **({"reads_pictures": True} if policy.recipe.reads_pictures else {}),
        "training": [*before, *([training] if training else [])],
    }


def base_record(source: str, base: str | None) -> Record:
    """Return the names of a base: ``source``, ``hub_name``, and ``file`` where no id of the hub leads to its weights.

    Args:
        source: As a policy takes it.
        base: Its id on the hub, where the source does not say it.
    """
    file = Path(source).name if source.endswith(".gguf") else None
    file = source if source.startswith(PACKAGE_SCHEME) else file
    return {"source": public_name(source), "hub_name": base or hub_name(source), "file": file}


def data_record(data: Any, responses: Sequence[str] = ()) -> Record:
    """Return what a data module trains on; empty where that is not known.

    Args:
        data: The data module.
        responses: Columns of the responses that are learned.

    Returns:
        ``name``, ``rows``, how it was ``made``, what was done to its rows (``changes``), and ``texts``: digests of some
        of its sentences, by which an evaluation tells whether a benchmark is among them.
    """
    rows = getattr(data, "rows", {}).get("train")
    if rows is None:
        return {}
    from lit_debias.data.columns import cells  # export alone needs no library of data

    columns = [name for name in (getattr(data, "prompt_column", "prompt"), *responses) if name in rows.column_names]
    return {
        "name": public_name(data.path),
        "rows": len(rows),
        "made": _how_made(Path(data.path) / "README.md"),
        "changes": list(getattr(data, "changes", ())),
        "texts": sketch(text for name in columns for cell in cells(rows, name) for text in strings_in(cell)),
    }


def _how_made(card: Path) -> str | None:
    """Return what the card of ``lit-debias synthesize`` says of generator, seed and size."""
    try:
        found = re.search(r"^Written by `lit-debias synthesize`, (.+)\.$", card.read_text("utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return f"lit-debias synthesize, {found[1]}" if found else None


def complete(record: Record, source: str, quantization: str | None, base: str | None) -> Record:
    """Return a record with all that it may lack, as that of an adapter which another tool trained.

    Args:
        record: As :func:`read_record` returns it.
        source: The base.
        quantization: How it was loaded in training, where the record does not say it, or says something else.
        base: Its id on the hub, likewise.
    """
    known, said = record.get("base", {}), base_record(source, base)
    return {
        "dtype": "bfloat16",
        "system_prompt": None,
        "chat_template_kwargs": {},
        "training": [],
        **record,
        "base": {
            "source": known.get("source") or said["source"],
            "hub_name": base or known.get("hub_name") or said["hub_name"],
            "file": known["file"] if "file" in known else said["file"],
        },
        "quantization": quantization or record.get("quantization"),
    }


def read_record(folder: Path) -> Record:
    """Return what an adapter's folder says of it; empty where another tool wrote the folder, or it says nonsense."""
    try:
        found = json.loads((folder / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_adapter(folder: Path) -> Record:
    """Return the configuration of an adapter's folder.

    Raises:
        UserError: there is no adapter, or its configuration cannot be read.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"adapter '{folder}': no {name} there; write the folder of a PEFT adapter")
    where = f"'{folder / CONFIG}'"
    return as_object(parse_json(read_text(folder / CONFIG, ""), where), where)


def base_of(folder: Path, model: str | None) -> str:
    """Return the source of the base that an adapter is put on: what is asked for, else what its folder says.

    Raises:
        UserError: nothing says it, or only by the name of a folder on another machine.
    """
    if model is not None:
        return model
    config, base = check_adapter(folder), read_record(folder).get("base", {})
    known = [base.get("source"), base.get("hub_name"), config.get("base_model_name_or_path")]
    for source in known:
        if source and ("/" in source or Path(source).exists()):
            return str(source)
    said = f" ('{known[0]}', a local model)" if known[0] else ""
    raise UserError(f"adapter '{folder}' does not say where its base is{said}; write --model FOLDER, or its hub id")
