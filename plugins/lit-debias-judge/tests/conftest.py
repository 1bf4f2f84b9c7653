"""A server that answers as a judge, a key for it, and no pauses."""

import pytest
import stamina
from chat_server import serving
from judge_server import SECRET, Handler


@pytest.fixture(autouse=True)
def _a_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


@pytest.fixture(autouse=True)
def _no_pauses():
    with stamina.set_testing(True, attempts=99, cap=True):  # as many attempts as configured, no sleep between them
        yield


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Handler) as server:
        yield server
