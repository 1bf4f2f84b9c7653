"""Commands as users type them, and a configuration to change."""

import json

import pytest
import yaml

from lit_debias.cli.main import main


def run(*args: str) -> int:
    try:
        return main([str(arg) for arg in args])
    except SystemExit as stopped:
        return int(stopped.code or 0)


@pytest.fixture
def config(tmp_path, tiny_model) -> dict:
    data = tmp_path / "prompts.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"people from {place} are"}) for place in "abcd"))
    overlong = {"class_path": "SoftOverlong", "init_args": {"max_new_tokens": 6, "buffer": 4}}
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs"), "name": "x"}},
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
        },
        "model": {
            "class_path": "GRPO",
            "init_args": {
                "policy": {
                    "class_path": "QLoRAPolicy",
                    "init_args": {"model": str(tiny_model), "quantization": "none", "dtype": "float32"},
                },
                "engine": {"class_path": "LocalEngine", "init_args": {"max_new_tokens": 6}},
                "group_size": 4,
                "rewards": {"overlong": overlong},
                "aggregator": {"class_path": "WeightedSum", "init_args": {"weights": {"overlong": 1.0}}},
                "loss": {"class_path": "DAPOLoss", "init_args": {"beta": 0.01}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            },
        },
        "data": {"class_path": "PromptDataModule", "init_args": {"path": str(data), "batch_size": 2}},
    }


def write(tmp_path, config) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def said(capsys) -> str:
    """Return the one error line."""
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("lit-debias: error: ")]
    assert len(line) < 400
    return line.removeprefix("lit-debias: error: ")
