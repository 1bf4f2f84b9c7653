"""Measures of bias and utility, before against after."""

from lit_debias.evaluation.run import evaluate

__all__ = ["evaluate"]
