"""Public bias benchmarks: CrowS-Pairs, StereoSet, BBQ, CBBQ, Winogender and BOLD."""

from lit_debias.evaluation.public.benchmark import Figure
from lit_debias.evaluation.public.run import BENCHMARKS, Sample, about, check, measure, samples

__all__ = ["BENCHMARKS", "Figure", "Sample", "about", "check", "measure", "samples"]
