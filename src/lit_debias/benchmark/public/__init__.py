"""Public bias benchmarks: CrowS-Pairs, StereoSet, BBQ, CBBQ, Winogender and BOLD."""

from lit_debias.benchmark.public.bbq import BBQ
from lit_debias.benchmark.public.bold import Bold
from lit_debias.benchmark.public.cbbq import CBBQ
from lit_debias.benchmark.public.crows_pairs import CrowsPairs
from lit_debias.benchmark.public.stereoset import StereoSet
from lit_debias.benchmark.public.winogender import Winogender

__all__ = ["BBQ", "CBBQ", "Bold", "CrowsPairs", "StereoSet", "Winogender"]
