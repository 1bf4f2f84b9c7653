"""Bias by log-probabilities: SESGO's score, WinoQueer and implicit rewards, identification, morality, associations."""

from lit_debias.benchmark.probes.association import Association
from lit_debias.benchmark.probes.identification import Identification
from lit_debias.benchmark.probes.morality import Morality
from lit_debias.benchmark.probes.sesgo import Sesgo
from lit_debias.benchmark.probes.winoqueer import WinoQueer

__all__ = ["Association", "Identification", "Morality", "Sesgo", "WinoQueer"]
