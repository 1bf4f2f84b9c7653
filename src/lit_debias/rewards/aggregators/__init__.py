"""From the scores of several rewards to one advantage per completion; ``docs/aggregators.md`` compares them."""

from lit_debias.rewards.aggregators.base import Aggregator, weighted_mean
from lit_debias.rewards.aggregators.conjunctive import GeometricMean, WorstCase
from lit_debias.rewards.aggregators.learned import Lagrangian, MaxMin
from lit_debias.rewards.aggregators.weighted import GDPO, LinearSchedule, WeightedSum
from lit_debias.rewards.aggregators.wrappers import Gate, Gated, GroupMaxMin, LowerConfidenceBound

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
