"""Shared fixtures: offline, a tiny real model, deterministic torch."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from support import save_tiny_model

from lit_debias.plugins.manager import get_plugin_manager

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=40)
hypothesis.settings.load_profile("suite")  # equal examples in every run
torch.set_num_threads(1)  # tiny tensors; workers of pytest-xdist share the cores


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama (2 layers, hidden 32, grouped queries) with a chat template."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # Lightning's command line leaves it for later tests


@pytest.fixture(autouse=True)
def _short_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put two short passages in the place of the project's, which take a quarter of a small evaluation."""
    monkeypatch.setattr("lit_debias.evaluation.prose.OWN", Path(__file__).parent / "helpers" / "prose.txt")


@pytest.fixture(autouse=True)
def _no_plugins_of_other_tests() -> Iterator[None]:
    yield
    get_plugin_manager.cache_clear()
