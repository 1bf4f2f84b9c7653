"""Which distribution of this project brings which class, for messages about one that is not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from lit_debias.plugins.manager import ALLOW_VARIABLE, DISABLE_VARIABLE

CLASSES = {
    "lit-debias-classifier": ("TextClassifier",),
    "lit-debias-consistency": ("CounterfactualConsistency",),
    "lit-debias-deberta": (
        *("DebertaFairness", "DebertaNeutrality", "DebertaPreference", "DebertaQuality", "DebertaRelevance"),
        *("PreferenceMixture", "RewardModel"),
    ),
    "lit-debias-fluency": ("Fluency", "Variety"),
    "lit-debias-informativeness": ("Informativeness",),
    "lit-debias-judge": ("LLMJudge", "StructuredJudge"),
    "lit-debias-rules": ("Rules",),
    "lit-debias-scenarios": ("Agents", "Ceb", "CebWriting", "Recommendation"),
    "lit-debias-vllm": ("ColocatedVLLMEngine", "VLLMEngine"),
}
"""Distribution -> classes that configuration files name."""


def missing_plugin(name: str) -> str | None:
    """Return what to do for a class of this project that is not at hand; None where it is none of them, or it is there.

    Args:
        name: Short name of a class, its dotted path, or the name of a module.
    """
    top, _, short = name.rpartition(".")
    package = (top or short).partition(".")[0]
    for distribution, classes in CLASSES.items():
        module = distribution.replace("-", "_")
        if short in classes if not top else package == module:
            return _advice(name, distribution, module)
    return None


def _advice(name: str, distribution: str, module: str) -> str | None:
    if sys.modules.get(module) is not None:
        return None
    if module in sys.modules or find_spec(module) is not None:
        return (
            f"'{name}' is of {distribution}, which {ALLOW_VARIABLE} or {DISABLE_VARIABLE} keeps out; take it in there"
        )
    return f"'{name}' comes with {distribution}, which is not installed: pip install {distribution}"
