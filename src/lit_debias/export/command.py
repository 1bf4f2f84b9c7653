"""``lit-debias export``: an adapter's folder, or the merged model, ready for others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch

from lit_debias.errors import UserError
from lit_debias.export import card
from lit_debias.export.folder import describe, save_tokenizer
from lit_debias.export.hub import check_reachable, upload
from lit_debias.export.merging import Merge, Onto, write_merged
from lit_debias.export.record import Record, base_of, check_adapter, complete, read_record
from lit_debias.models.adapter_config import WEIGHTS, read_adapter_config
from lit_debias.models.hub_names import checked_hub_name
from lit_debias.models.loading import load_tokenizer
from lit_debias.models.sources import check_model
from lit_debias.support.atomic import new_folder

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export(
    adapter: str,
    out: str,
    merge: bool = False,
    push: str | None = None,
    private: bool = False,
    model: str | None = None,
    base: str | None = None,
    quantization: Literal["nf4", "none"] | None = None,
    onto: Onto = "trained",
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
) -> None:
    """Write an adapter's folder for others, or base and adapter as one plain model; and upload it if asked to.

    Both have a tokenizer and a model card. A merged model is read back and compared with base + adapter in fp32.

    Args:
        adapter: Folder of the trained adapter.
        out: New folder for what is written.
        merge: Write base and adapter as one plain model, which transformers and vLLM load without PEFT.
        push: Upload the folder to this repository on the Hugging Face hub, OWNER/NAME; needs a token (hf auth login).
        private: Make a new repository on the hub a private one.
        model: Base that the adapter was trained on; by default what the adapter's folder says.
        base: Id of the base on the hub, OWNER/NAME, where the folder does not say it; others load the base by it.
        quantization: How the base was loaded in training, nf4 (4-bit) or none; by default what the folder says.
        onto: What an adapter trained on a 4-bit base is merged into. "trained" takes the numbers that the 4 bits stand
            for, so that the merged model is the policy that was trained and measured; "plain" takes the base's own
            weights, which gives other answers.
        dtype: Type of the merged weights, which are summed in fp32 and rounded once.

    Raises:
        UserError: a path, name or option is wrong, the merged model is not base + adapter, or the hub refuses it.
    """
    folder, target = Path(adapter), Path(out)
    check_adapter(folder)
    read_adapter_config(adapter, 0.0)
    if target.exists():
        raise UserError(f"--out '{out}' exists; write a new folder, or remove it first")
    hub = None if push is None else check_reachable(push)
    source = base_of(folder, model)
    record = complete(read_record(folder), source, quantization, base and checked_hub_name(base, "--base"))
    with new_folder(target) as work:
        if merge:
            check_model(source)
            if record["quantization"] is None:
                raise UserError(
                    f"adapter '{adapter}' does not say how its base was loaded in training; write --quantization nf4 "
                    "or --quantization none"
                )
            if card.reads_pictures(record):
                raise UserError(
                    f"adapter '{adapter}' is of a model that reads pictures, which is not merged here; leave --merge "
                    "out, or merge it with PEFT"
                )
            print(f"merging '{adapter}' into '{source}' ...")
            _write_merged(Merge(source, adapter, record["quantization"], onto), work, dtype, record, push)
        else:
            _copy(folder, work, source, record, push)
    print(f"written: {target}, with {target / card.NAME}")
    if hub is not None and push is not None:
        print(f"uploaded: {upload(hub, target, push, private)}")


def _write_merged(merge: Merge, work: Path, dtype: str, record: Record, name: str | None) -> None:
    found = write_merged(merge, work, DTYPES[dtype])
    save_tokenizer(load_tokenizer(merge.model), work)
    print(f"read back, against base + adapter in fp32: {found['merged']}")
    said = f"{merge.said}; summed in fp32, rounded to {dtype}; against base + adapter in fp32: {found['merged']}"
    if "trained" in found:
        print(f"against the policy that was trained, on the 4-bit base: {found['trained']}")
        said += f"; against the policy as it was trained and measured: {found['trained']}"
    card.write_card(work, record, check_adapter(Path(merge.adapter)), name, said, like=Path(merge.adapter))


def _copy(folder: Path, work: Path, source: str, record: Record, name: str | None) -> None:
    for file in (WEIGHTS, "adapter_config.json"):
        shutil.copyfile(folder / file, work / file)
    tokenizer = str(folder) if (folder / "tokenizer_config.json").is_file() else source
    save_tokenizer(load_tokenizer(tokenizer), work)
    describe(work, record, name, like=folder)
