"""Lightning callbacks for GRPO and its baselines."""

from lit_debias.training.callbacks.adapter_export import AdapterExport
from lit_debias.training.callbacks.alarms import RewardHackingAlarm
from lit_debias.training.callbacks.completions import CompletionTable, PredictionFile
from lit_debias.training.callbacks.graceful_stop import GracefulStop
from lit_debias.training.callbacks.progress import ProgressLine

__all__ = [
    "AdapterExport",
    "CompletionTable",
    "GracefulStop",
    "PredictionFile",
    "ProgressLine",
    "RewardHackingAlarm",
]
