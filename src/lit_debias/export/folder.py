"""Writes the folder of a trained adapter: weights, tokenizer, card, and what it was trained on; all or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from lit_debias.errors import UserError
from lit_debias.export.card import write_card
from lit_debias.export.record import CONFIG, NAME, Record, record_of
from lit_debias.models.adapters import TRAINED
from lit_debias.support.atomic import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_debias.policy.policy import Policy

OF_THIS_MACHINE = ("is_local", "local_files_only", "name_or_path")
"""Of ``tokenizer_config.json``: where transformers found the tokenizer."""


def write_adapter(policy: Policy, out: Path, training: Record | None = None, base: str | None = None) -> None:
    """Write what PEFT loads, with the tokenizer and a model card, into ``out``.

    No path of this machine is among it: the base has the name that it has on the hub, or none.

    Args:
        policy: With the adapter.
        out: The folder; what stands there is replaced once the new one is complete.
        training: How it was trained, for the card.
        base: The base's id on the hub, where its source does not say it.

    Raises:
        UserError: it cannot be written; what stood there is untouched.
    """
    assert policy.lm is not None, "call load() first"
    record = record_of(policy, training or {}, base)
    try:
        with new_folder(out) as work:
            policy.lm.save_pretrained(work, selected_adapters=[TRAINED], save_embedding_layers=False)
            save_tokenizer(policy.tokenizer, work)
            describe(work, record)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the adapter {out}: {error}; the checkpoints are untouched: make it possible to write there, "
            "then resume with --ckpt_path last, which writes the adapter"
        ) from error


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer with its chat template, without how this machine found it."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8"))
    kept = {name: value for name, value in config.items() if name not in OF_THIS_MACHINE}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False), "utf-8")


def describe(folder: Path, record: Record, name: str | None = None, like: Path | None = None) -> None:
    """Give an adapter's folder its record, its card, and the public name of its base; see :func:`write_card`."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    config["base_model_name_or_path"] = record["base"]["hub_name"]
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    (folder / NAME).write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8")
    write_card(folder, record, config, name, like=like)
