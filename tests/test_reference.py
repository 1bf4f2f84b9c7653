"""docs/reference.md is what docs/generate.py writes, and holds what a plugin's author looks up."""

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


def test_the_page_is_up_to_date(generate):
    written = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert written == "\n".join(generate.parts()), "docs/reference.md is out of date: make docs"


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
