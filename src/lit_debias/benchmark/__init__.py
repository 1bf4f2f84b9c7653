"""What authors of benchmarks use; docs/own_benchmark.md explains each name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_debias.support.lazy import importer

if TYPE_CHECKING:
    from lit_debias.benchmark.answers import Continuation, ImplicitReward, Likelihood, TokenLikelihoods
    from lit_debias.benchmark.asking import CannotAskError, Model
    from lit_debias.benchmark.benchmark import Benchmark, Estimates, Figure, Item, answered, draw, within
    from lit_debias.benchmark.choosing import Question, Tally, choose
    from lit_debias.benchmark.contract import examine
    from lit_debias.benchmark.files import (
        HUB,
        complete,
        find,
        from_hub,
        locate,
        number,
        one_of,
        read_csv,
        read_json,
        read_jsonl,
        text,
        whole,
        wrong,
    )
    from lit_debias.benchmark.statistics import ClusterBootstrap, Estimate, correlation

MODULES = {
    **dict.fromkeys(
        ("Continuation", "ImplicitReward", "Likelihood", "TokenLikelihoods"), "lit_debias.benchmark.answers"
    ),
    **dict.fromkeys(("CannotAskError", "Model"), "lit_debias.benchmark.asking"),
    **dict.fromkeys(
        ("Benchmark", "Estimates", "Figure", "Item", "answered", "draw", "within"), "lit_debias.benchmark.benchmark"
    ),
    **dict.fromkeys(("Question", "Tally", "choose"), "lit_debias.benchmark.choosing"),
    "examine": "lit_debias.benchmark.contract",
    **dict.fromkeys(
        (
            *(
                "HUB",
                "complete",
                "find",
                "from_hub",
                "locate",
                "number",
                "one_of",
                "read_csv",
                "read_json",
                "read_jsonl",
            ),
            *("text", "whole", "wrong"),
        ),
        "lit_debias.benchmark.files",
    ),
    **dict.fromkeys(("ClusterBootstrap", "Estimate", "correlation"), "lit_debias.benchmark.statistics"),
}
"""Public name -> the module that defines it."""

__getattr__ = importer(__name__, MODULES)
__all__ = [
    "HUB",
    "Benchmark",
    "CannotAskError",
    "ClusterBootstrap",
    "Continuation",
    "Estimate",
    "Estimates",
    "Figure",
    "ImplicitReward",
    "Item",
    "Likelihood",
    "Model",
    "Question",
    "Tally",
    "TokenLikelihoods",
    "answered",
    "choose",
    "complete",
    "correlation",
    "draw",
    "examine",
    "find",
    "from_hub",
    "locate",
    "number",
    "one_of",
    "read_csv",
    "read_json",
    "read_jsonl",
    "text",
    "whole",
    "within",
    "wrong",
]
