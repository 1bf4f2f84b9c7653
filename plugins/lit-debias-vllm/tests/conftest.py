"""A tiny policy whose adapter does something, and a server with its base."""

from __future__ import annotations

import pytest
import stamina
import torch
from support import loaded, perturb, save_tiny_model
from vllm_server import serving

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def policy(tiny_model):
    torch.manual_seed(1)
    policy = loaded(tiny_model)
    perturb(policy)
    return policy


@pytest.fixture
def server(tiny_model):
    with serving(tiny_model) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_pauses():
    with stamina.set_testing(True, attempts=2, cap=True):  # no sleep between attempts
        yield
