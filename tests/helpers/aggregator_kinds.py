"""Every aggregator of the core, ready to be asked."""

from __future__ import annotations

from lit_debias.aggregators import (
    GDPO,
    Gate,
    Gated,
    GeometricMean,
    GroupMaxMin,
    Lagrangian,
    LowerConfidenceBound,
    MaxMin,
    WeightedSum,
    WorstCase,
)

ABC = {"a": 1.0, "b": 0.5, "c": 1.0}


KINDS = {
    "geometric": lambda: GeometricMean(ABC, scale="batch"),
    "worst_case": lambda: WorstCase(["a", "b", "c"]),
    "max_min": lambda: MaxMin(["a", "b", "c"], smoothing=0.5),
    "lagrangian": lambda: Lagrangian({"a": 1.0, "b": 0.5}, {"c": 0.7}),
    "groups": lambda: GroupMaxMin(GDPO(ABC)),
    "gated": lambda: Gated(GDPO(ABC), {"a": Gate("b", 0.5)}),
    "bound": lambda: LowerConfidenceBound(WeightedSum({"ab": 1.0, "c": 1.0}), {"ab": ["a", "b"]}),
    "nested": lambda: GroupMaxMin(Gated(Lagrangian({"a": 1.0}, {"b": 0.6}), {"a": Gate("c", 0.2)})),
}
