"""The classes that come with the core, registered through the same hooks as anybody's."""

from __future__ import annotations

from lit_debias.aggregators import (
    GDPO,
    Aggregator,
    Gated,
    GeometricMean,
    GroupMaxMin,
    Lagrangian,
    LowerConfidenceBound,
    MaxMin,
    WeightedSum,
    WorstCase,
)
from lit_debias.benchmark.benchmark import AnyBenchmark
from lit_debias.benchmark.probes import Association, Identification, Morality, Sesgo, WinoQueer
from lit_debias.benchmark.public import BBQ, CBBQ, Bold, CrowsPairs, StereoSet, Winogender
from lit_debias.benchmark.skew import Skew
from lit_debias.plugins.manager import hookimpl
from lit_debias.rewards.overlong import SoftOverlong
from lit_debias.rewards.reward import Reward
from lit_debias.rollout.engine import RolloutEngine
from lit_debias.rollout.local import LocalEngine
from lit_debias.text_measures.linear import LinearToxicity


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of the core."""
    return [SoftOverlong, LinearToxicity]


@hookimpl
def lit_debias_aggregators() -> list[type[Aggregator]]:
    """Return the aggregators of the core."""
    return [
        WeightedSum,
        GDPO,
        GeometricMean,
        WorstCase,
        MaxMin,
        GroupMaxMin,
        Gated,
        Lagrangian,
        LowerConfidenceBound,
    ]


@hookimpl
def lit_debias_engines() -> list[type[RolloutEngine]]:
    """Return the engines of the core."""
    return [LocalEngine]


@hookimpl
def lit_debias_benchmarks() -> list[type[AnyBenchmark]]:
    """Return the benchmarks of the core."""
    public: list[type[AnyBenchmark]] = [CrowsPairs, StereoSet, BBQ, CBBQ, Winogender, Bold]
    return [*public, Sesgo, WinoQueer, Identification, Morality, Association, Skew]
