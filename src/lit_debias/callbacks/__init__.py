"""Lightning callbacks for GRPO runs."""

from lit_debias.callbacks.adapter_export import AdapterExport
from lit_debias.callbacks.completions import CompletionTable, PredictionFile

__all__ = ["AdapterExport", "CompletionTable", "PredictionFile"]
