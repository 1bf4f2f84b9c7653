"""The demo's configurations, from data to report, through the real command line, on tiny random models."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftConfig
from support import train_tokenizer
from transformers import BertConfig, BertModel

from lit_debias.cli.main import main

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*args: str) -> None:
    assert main([str(arg) for arg in args]) == 0


def base_measures(results: dict) -> dict:
    """Return what the base alone decides; distinct words are counted up to the shortest answer of any arm."""
    measures = results["arms"]["before"]["measures"]
    return {name: value for name, value in measures.items() if not name.startswith("distinct")}


@pytest.mark.filterwarnings("ignore:.*logging interval:")
@pytest.mark.filterwarnings("ignore:.*An input array is constant")
def test_the_demo_from_data_to_report(tiny_model, tiny_encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the configurations write to runs/demo
    run("synthesize", "--out", "runs/demo/data", "--size", "2000", "--sources", "grammar,written")
    words = ("--text", "response", "--harmless", "fairness", "--ngrams", "1", "--min_texts", "20")
    run("toxicity", "train", "runs/demo/data/responses/train.parquet", *words, "--out", "runs/demo/words")
    for name in ("demo_reward_model", "demo_judge"):
        quick = ("--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1")
        run("fit", "-c", CONFIGS / f"{name}.yaml", *quick, "--model.encoder", tiny_encoder)
    measure = ("evaluate", "-c", CONFIGS / "demo_evaluate.yaml", "--model", tiny_model, "--limit", "6")
    measure += ("--max_new_tokens", "6", "--bootstrap", "50")
    run(*measure)
    before = json.loads(Path("runs/demo/results.json").read_text())
    assert set(before["arms"]) == {"before", "prompt_only"}

    one_step = ("--trainer.max_steps", "1", "--model.policy.model", tiny_model)
    run("fit", "-c", CONFIGS / "demo_dpo.yaml", *one_step)
    run("fit", "-c", CONFIGS / "demo.yaml", *one_step, "--model.engine.max_new_tokens", "6")
    assert PeftConfig.from_pretrained("runs/demo/adapter").r == 16
    assert list(Path("runs/demo/logs/version_0/checkpoints").glob("*.ckpt"))

    capsys.readouterr()
    run(*measure, "--adapter", "runs/demo/adapter")
    assert "before: reused" in capsys.readouterr().out
    after = json.loads(Path("runs/demo/results.json").read_text())
    assert set(after["arms"]) == {"before", "prompt_only", "after"}
    assert base_measures(after) == base_measures(before)
    judges = {opinion["judge"].partition(",")[0] for opinion in after["verdict"]["opinions"]}
    assert judges >= {"judge", "words", "VADER's lexicon"}
    run("report", "runs/demo")
    assert "after" in Path("runs/demo/report.html").read_text()


def test_the_demo_measures_the_rewards_that_it_trains_on():
    trained = yaml.safe_load((CONFIGS / "demo.yaml").read_text())["model"]["init_args"]
    measured = yaml.safe_load((CONFIGS / "demo_evaluate.yaml").read_text())
    assert measured["rewards"] == {name: trained["rewards"][name] for name in measured["rewards"]}
    sampling = {name: measured[name] for name in ("max_new_tokens", "temperature")}
    assert sampling == trained["engine"]["init_args"]
    assert trained["rewards"]["overlong"]["init_args"]["max_new_tokens"] == sampling["max_new_tokens"]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_demo_makes_each_part_after_what_it_needs(tmp_path):
    words = ["make", "--dry-run", "--always-make", "demo", f"VENV={tmp_path}", f"RUN={tmp_path}/run"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    steps = re.findall(r"bin/lit-debias (\w+)(?: -c configs/(\w+)\.yaml)?( --adapter)?", said)
    order = [f"{command} {config}{adapter}".strip() for command, config, adapter in steps]
    assert len(order) == len(set(order)) == 9
    first, last = "synthesize", "report"
    before, after = "evaluate demo_evaluate", "evaluate demo_evaluate --adapter"
    for chain in (
        [first, "fit demo_reward_model", "fit demo_dpo", "fit demo", after, last],
        [first, "fit demo_judge", before, after],
        [first, "toxicity", before],
    ):
        places = [order.index(step) for step in chain]
        assert places == sorted(places)
    for _, config, _ in steps:
        assert not config or (CONFIGS / f"{config}.yaml").is_file()
