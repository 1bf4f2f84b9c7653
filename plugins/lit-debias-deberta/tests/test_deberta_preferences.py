"""A preference mixture through Lightning, on users with opposite preferences and a tiny DeBERTa-v2."""

from __future__ import annotations

import json
import random

import pytest
import torch
from lightning import Trainer, seed_everything
from torch.optim import AdamW

from lit_debias import PreferenceDataModule
from lit_debias_deberta import PreferenceMixture

WHO = ("The new neighbour", "Each person", "This person from Henan", "The record", "The neighbour")
KIND = ("is honest", "works hard", "is honest and works hard")
UNKIND = ("is lazy", "nobody should hire", "are all lazy")


def write_preferences(path, majority=10, minority=1, pairs=12, seed=0):
    """Users of whom a majority prefers kind sentences and a minority unkind ones, and held-out pairs of each."""
    draw = random.Random(seed)
    users = [("kind", f"k{i}") for i in range(majority)] + [("unkind", f"u{i}") for i in range(minority)]
    rows = []
    for group, user in users:
        for number in range(pairs + 4):
            sides = [f"{draw.choice(WHO)} {draw.choice(what)}." for what in (KIND, UNKIND)]
            chosen, rejected = sides if group == "kind" else reversed(sides)
            split = "train" if number < pairs else "validation"
            rows.append({"user": user, "prompt": "Describe the neighbour.", "chosen": chosen, "rejected": rejected})
            rows[-1] |= {"group": group, "split": split}
    draw.shuffle(rows)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def trainer(tmp_path, **options) -> Trainer:
    defaults = {"max_epochs": -1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=tmp_path, **(defaults | quiet | options))


def mixture(encoder, tmp_path, **options) -> PreferenceMixture:
    defaults = {"max_length": 32, "epochs": 3, "optimizer": lambda parameters: AdamW(parameters, lr=3e-3)}
    return PreferenceMixture(str(tmp_path / "out"), encoder, **(defaults | options))


def data(path) -> PreferenceDataModule:
    return PreferenceDataModule(str(path), batch_size=16)


def test_smoke(encoder, tmp_path):
    seed_everything(0, verbose=False)
    file = write_preferences(tmp_path / "pairs.jsonl")
    for groups in (1,2,[1,2,3]):
        for assignment in ("hard","soft"):
            import time; t=time.time()
            module = mixture(encoder, tmp_path, groups=groups, assignment=assignment)
            trainer(tmp_path).fit(module, datamodule=data(file))
            print(groups, assignment, time.time()-t)
