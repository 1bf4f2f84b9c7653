"""Prompts and responses: files and tables, and the data modules that feed training."""

from lit_debias.data.preference_data import PreferenceDataModule
from lit_debias.data.prompt_data import PromptDataModule
from lit_debias.data.response_data import ResponseDataModule
from lit_debias.data.tables import LABELS

__all__ = ["LABELS", "PreferenceDataModule", "PromptDataModule", "ResponseDataModule"]
