"""Lightning callbacks for GRPO and its baselines."""

from lit_debias.training.callbacks.alarms import RewardHackingAlarm
from lit_debias.training.callbacks.completions import CompletionTable
from lit_debias.training.callbacks.graceful_stop import GracefulStop
from lit_debias.training.callbacks.progress import ProgressLine
from lit_debias.training.callbacks.slow_steps import SlowSteps
from lit_debias.training.outputs import AdapterExport, PredictionFile

__all__ = [
    "AdapterExport",
    "CompletionTable",
    "GracefulStop",
    "PredictionFile",
    "ProgressLine",
    "RewardHackingAlarm",
    "SlowSteps",
]
