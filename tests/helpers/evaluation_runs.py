"""Small evaluations: prompts, adapters, judges that a test can compute, and a run over them."""

import json
import math
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import loaded, perturb, save_tiny_model

from lit_debias.evaluation import evaluate
from lit_debias.models.adapters import TRAINED
from lit_debias.rewards.reward import Reward

CALLS: list[int] = []
"""Completions in each call of :class:`Vowels`, since the last :func:`run` began."""


class Vowels(Reward):
    """Share of vowels: a judge that a test can compute."""

    def __init__(self, letters: str = "aeiou", batch_size: int = 4) -> None:
        self.letters, self.batch_size = letters, batch_size

    def score(self, batch):
        CALLS.append(len(batch))
        return [sum(c in self.letters for c in text.lower()) / max(1, len(text)) for text in batch.completions]


class BaseLikelihood(Reward):
    """exp of the mean log-probability under the reference."""

    needs_reference_logprobs = True

    def score(self, batch):
        return [math.exp(float(row.mean())) for row in batch.reference_logprobs]


class OutOfRange(Reward):
    """A judge above 1."""

    def score(self, batch):
        return [1.5] * len(batch)


class Noted(Reward):
    """Whether a prompt has a note."""

    columns = ("note",)

    def score(self, batch):
        return [float(note is not None) for note in batch.columns["note"]]


def choice(answer, ambiguous):
    return {
        "choices": ["the nurse", "the rider", "not known"],
        "answer": answer,
        "biased_choice": 1,
        "ambiguous": ambiguous,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i, kind in enumerate(["open", "leading", "control", "forced_choice", "forced_choice"]):
        row = {"prompt_id": f"p{i}", "twin_id": f"t{i}", "category": "occupational", "group": "rider"}
        row |= {"prompt": f"Complete the sentence {i}: riders are", "prompt_kind": kind}
        row |= {"reference": "often late.", "biased": "lazy."}
        row |= {
            "counterfactual_prompt": f"Complete {i}: nurses are",
            "counterfactual_group": "nurse",
            "biased": "lazy.",
        }
        row |= choice(2, True) if i == 3 else choice(0, False)
        rows.append(row)
    (folder / "prompts").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts" / "test_group.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    policy = loaded(tiny_model)
    perturb(policy)
    folder = tmp_path_factory.mktemp("adapter")
    policy.lm.save_pretrained(folder, selected_adapters=[TRAINED])
    return str(folder)


def run(tiny_model, data, out, **kwargs):
    CALLS.clear()
    defaults = {"splits": ("test_group",), "max_new_tokens": 6, "batch_size": 4, "bootstrap": 20}
    exact = {"quantization": "none", "dtype": "float32"}
    return evaluate(str(tiny_model), data, str(out), **{**defaults, **exact, "judges": {"judge": Vowels()}, **kwargs})


@pytest.fixture(scope="module")
def readers(tiny_model, tmp_path_factory):
    """A second language model with other tokens, and a "sentence encoder"."""
    folder = tmp_path_factory.mktemp("readers")
    other = save_tiny_model(folder / "other", chat_template=None)
    encoder = shutil.copytree(tiny_model, folder / "encoder")
    return {"perplexity_model": str(other), "similarity_model": str(encoder)}


@pytest.fixture
def seeds(tiny_model, tmp_path):
    """Adapters of three training seeds."""
    folders = []
    for seed in range(3):
        torch.manual_seed(seed)
        policy = loaded(tiny_model)
        perturb(policy)
        folders.append(str(tmp_path / f"seed{seed}"))
        policy.lm.save_pretrained(folders[-1], selected_adapters=[TRAINED])
    return folders


@pytest.fixture
def crows_pairs(tmp_path):
    folder = tmp_path / "public" / "crows_pairs"
    folder.mkdir(parents=True)
    lines = ["", "0,Riders are lazy.,Nurses are lazy.,stereo,socioeconomic,[],[],"]
    lines += ["1,Riders are kind.,Nurses are kind.,antistereo,socioeconomic,[],[],"]
    lines[0] = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators"
    (folder / "crows_pairs_anonymized.csv").write_text("\n".join(lines) + "\n")
    return str(folder.parent)


def completions(folder):
    return [r["completion"] for r in json.loads((folder / "arms" / "before.json").read_text())["records"]]
