"""The reference and docs/models.md are what docs/generate.py writes, and hold what is looked up there."""

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


def test_the_tables_of_models_by_hand(generate):
    slower = (
        "Log-probs are computed by a slower way, a row for each completion (its logits miss by {}%). Rollouts wait."
    )
    adapters = "Adapters of 'MODEL' sit on 9 of its layers: q_proj"
    architectures = [
        ("gpt, wide", "refused", "", "write a|b, not <c>"),
        ("small", "refused", "", "it has 8 positions"),
        ("smaller", "refused", "", "it has 4 positions"),
        ("mamba", "slower but right", "rows", f"{adapters} {slower.format(12.5)}"),
        ("rwkv", "slower but right", "rows", slower.format(3)),
        ("llama", "right", "packed groups", ""),
        ("moe", "right", "packed groups", adapters),
    ]
    report = {
        "versions": {"transformers": "5.0"},
        "tolerances": {"nats": 0.001, "relative_gradient": 0.001},
        "verdicts": {"refused": 3, "slower but right": 2, "right": 2},
        "architectures": [dict(zip(("name", "verdict", "way", "reason"), one, strict=True)) for one in architectures],
    }
    page = generate.models(report)
    head, right, slower, refused, missing = page.split("\n## ")
    assert "| refused | 3 |" in head
    assert "| not built | 0 |" in head
    assert right.splitlines()[4:] == [
        "| `llama` | packed groups |",
        "| `moe` | packed groups, adapters on the layers that the log names |",
    ]
    assert slower.splitlines()[4:] == ["| `mamba`, `rwkv` | a row for each completion: its logits miss by N% |"]
    assert refused.splitlines()[4:] == [
        "| `gpt, wide` | write a\\|b, not &lt;c> |",
        "| `small`, `smaller` | it has N positions |",
    ]
    assert missing.splitlines()[4:] == []


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
        "## `Thing`\n\nA thing.\n\n"
        "- `colour`: What it looks like, in one word.\n"
        "- `paint(colour: str) -> int`: Paint it.\n"
    )


def test_hooks_and_fields_are_there():
    for name, text in (
        ("authors", "lit_debias_scored("),
        ("authors", "`depends_on_batch`"),
        ("authors", "`reference_logprobs`"),
        ("commands", "lit-debias rewards check"),
        ("aggregators", "`GDPO`"),
        ("aggregators", "`LocalEngine`"),
        ("rewards", "`Fluency`"),
        ("training", "`QLoRAPolicy`"),
    ):
        assert text in (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8")
