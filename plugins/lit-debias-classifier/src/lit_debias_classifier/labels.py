"""From the labels of a classifier to one score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_debias.plugins import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class LabelValues:
    """What the labels of a model are worth."""

    columns: list[int]
    """[V] the model's outputs that count."""
    values: list[float]
    """[V] in [0, 1]."""
    exclusive: bool
    """Whether a text has one label (softmax) or any number of them (sigmoid)."""
    names: list[str] = field(default_factory=list)
    """[L] the model's labels."""

    @classmethod
    def of(cls, model: str, config: PreTrainedConfig, values: Mapping[str, float]) -> LabelValues:
        """Match a user's labels with the model's.

        Raises:
            UserError: the model is no classifier, has no such label, or one of its exclusive labels has no value.
        """
        who = f"TextClassifier: model '{model}'"
        architectures = config.architectures or []
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            kind = ", ".join(architectures) or "unknown"
            raise UserError(f"{who} is no text classifier, its kind is {kind}; write one that was trained as such")
        if config.problem_type == "regression":
            raise UserError(f"{who} is a regression and gives no probabilities; write a classifier")
        numbers = {str(name): int(number) for number, name in (config.id2label or {}).items()}
        # as the pipeline of transformers decides it
        exclusive = config.problem_type != "multi_label_classification" and len(numbers) > 1
        wrong = [name for name in values if name not in numbers]
        missing = [name for name in numbers if name not in values] if exclusive else []
        if wrong or missing:
            fault = f"has no label '{wrong[0]}'" if wrong else f"has the label '{missing[0]}' too, which needs a value"
            raise UserError(f"{who} {fault}; its labels: {', '.join(numbers)}")
        return cls(
            [numbers[name] for name in values],
            list(values.values()),
            exclusive,
            sorted(numbers, key=numbers.__getitem__),
        )

    def probabilities(self, logits: Tensor) -> list[dict[str, float]]:
        """Return label -> probability for each row of logits [N, L], of all labels of the model."""
        rows = logits.float().softmax(-1) if self.exclusive else logits.float().sigmoid()
        return [dict(zip(self.names, row, strict=True)) for row in rows.tolist()]

    def scores(self, logits: Tensor) -> Tensor:
        """Return scores [N] in [0, 1] of logits [N, L]."""
        values = torch.tensor(self.values, dtype=torch.float32, device=logits.device)  # YAML's 0 and 1 are ints
        if self.exclusive:
            return (logits.float().softmax(-1)[:, self.columns] @ values).clamp(0, 1)
        present = logits.float().sigmoid()[:, self.columns]
        return (present * values + (1 - present) * (1 - values)).mean(-1)
