"""One self-contained HTML page about a run."""

from lit_debias.report.page import report

__all__ = ["report"]
