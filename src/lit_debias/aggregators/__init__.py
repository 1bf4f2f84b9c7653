"""From the scores of several rewards to one advantage per completion; ``docs/aggregators.md`` compares them."""

from lit_debias.aggregators.aggregator import Aggregator, weighted_mean
from lit_debias.aggregators.conjunctive import GeometricMean, WorstCase
from lit_debias.aggregators.learned import Lagrangian, MaxMin
from lit_debias.aggregators.weighted import GDPO, LinearSchedule, WeightedSum
from lit_debias.aggregators.wrappers import Gate, Gated, GroupMaxMin, LowerConfidenceBound

__all__ = [
    "GDPO",
    "Aggregator",
    "Gate",
    "Gated",
    "GeometricMean",
    "GroupMaxMin",
    "Lagrangian",
    "LinearSchedule",
    "LowerConfidenceBound",
    "MaxMin",
    "WeightedSum",
    "WorstCase",
    "weighted_mean",
]
