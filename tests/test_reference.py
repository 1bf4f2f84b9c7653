"""docs/reference.md and docs/models.md are what docs/generate.py writes, and hold what is looked up there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(generate):
    for page, text in generate.pages():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is out of date: make docs"


def test_the_table_of_models_by_hand(generate):
    report = {
        "versions": {"transformers": "5.0"},
        "tolerances": {"nats": 0.001, "relative_gradient": 0.001},
        "verdicts": {"refused": 1},
        "architectures": [{"name": "gpt, wide", "verdict": "refused", "way": "", "reason": "write a|b, not <c>"}],
    }
    page = generate.models(report)
    assert page.endswith("|---|---|---|---|\n| gpt, wide | refused |  | write a\\|b, not &lt;c> |\n")
    assert "1 refused." in page
    assert "within 0.001 nats" in page


class Thing:
    """A thing.

    Args:
        size: How big.
    """

    colour: str = "red"
    """What it looks like,
    in one word."""

    def paint(self, colour: str) -> int:
        """Paint it.

        Args:
            colour: The new one.
        """

    def _hidden(self) -> None: ...


def test_an_interface_by_hand(generate):
    assert generate.interface(Thing) == (
        "### `Thing`\n\nA thing.\n\n"
        "- `colour`: What it looks like, in one word.\n"
        "- `paint(colour: str) -> int`: Paint it.\n"
    )


def test_hooks_and_fields_are_there():
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    for text in (
        "lit_debias_scored(",
        "`depends_on_batch`",
        "`reference_logprobs`",
        "lit-debias rewards check",
        "`GDPO`",
    ):
        assert text in page
