"""Lightning callbacks for GRPO and its baselines."""

from lit_debias.callbacks.adapter_export import AdapterExport
from lit_debias.callbacks.alarms import RewardHackingAlarm
from lit_debias.callbacks.completions import CompletionTable, PredictionFile
from lit_debias.callbacks.graceful_stop import GracefulStop
from lit_debias.callbacks.slow_steps import SlowSteps

__all__ = [
    "AdapterExport",
    "CompletionTable",
    "GracefulStop",
    "PredictionFile",
    "RewardHackingAlarm",
    "SlowSteps",
]
