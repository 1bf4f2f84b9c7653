"""A text classifier as a reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from lit_debias.plugins import Reward, RewardBatch, UserError, load_tokenizer, loading, locate, resolve
from lit_debias_classifier.labels import LabelValues

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")


class TextClassifier(Reward):
    """What a text classifier finds in a completion: toxicity, regard, or any other labels.

    Where a text has one label (softmax), the score is the expected value: the sum over all labels of
    ``probability * value``. Where it may have several (sigmoid; ``problem_type`` of the model's configuration is
    ``multi_label_classification``, or there is one label), a label's value is what its presence is worth, and its
    absence is worth the rest: the mean over the named labels of ``p * value + (1 - p) * (1 - value)``.

    The classifier reads the completion alone; one that is empty gets no opinion. Weights come from safetensors, and no
    code of the model's repository is run.

    Args:
        model: A classifier: a local folder, ``pkg://PACKAGE/PATH``, or a hub id.
        values: Label of the model -> its value in [0, 1], such as ``{toxic: 0, neutral: 1}``; every label where a text
            has one, else those that count.
        revision: Commit, tag or branch on the hub; a commit pins the weights.
        max_length: Tokens of a completion; the rest is cut, as is what the model cannot read.
        batch_size: Completions in one forward pass, alike in length.

    Raises:
        UserError: an argument is out of range, ``model`` names nothing, is no classifier, has no safetensors or other
            labels; for a hub id, whose configuration is not at hand, in ``setup``.
    """

    speed_options = ("batch_size",)

    def __init__(
        self,
        model: str,
        values: dict[str, float],
        revision: str | None = None,
        max_length: int = 512,
        batch_size: int = 32,
    ) -> None:
        if not values or not all(0 <= value <= 1 for value in values.values()):
            raise UserError(f"TextClassifier: values={values}; write labels with numbers from 0 to 1: {{toxic: 0}}")
        if min(max_length, batch_size) < 1:
            raise UserError(f"TextClassifier: max_length={max_length}, batch_size={batch_size}; write at least 1")
        self.model, self.values, self.revision = model, values, revision
        self.max_length, self.batch_size = max_length, batch_size
        self._labels: LabelValues | None = None
        self._network: PreTrainedModel | None = None
        located = Path(locate(model))
        if located.is_file():
            raise UserError(f"TextClassifier: model '{model}' is a file; write a folder with safetensors, or a hub id")
        if located.is_dir():
            self._check_folder(located)

    def _check_folder(self, folder: Path) -> None:
        if self.revision is not None:
            raise UserError(f"TextClassifier: revision is for the hub, and model '{self.model}' is here; leave it out")
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"TextClassifier: model '{self.model}' has no *.safetensors; save it in that format first")
        self._labels = self._read_labels()

    def _read_labels(self) -> LabelValues:
        from transformers import AutoConfig

        with loading(self.model):
            config = AutoConfig.from_pretrained(locate(self.model), revision=self._revision, trust_remote_code=False)
        return LabelValues.of(self.model, config, self.values)

    @property
    def _revision(self) -> str:
        return self.revision or "main"

    def setup(self, device: torch.device) -> None:
        """Load the classifier onto ``device``, in bf16 on a GPU and in fp32 elsewhere; does nothing when it is there.

        Raises:
            UserError: it cannot be loaded, or its labels are others.
        """
        if self._network is not None:
            return
        from transformers import AutoModelForSequenceClassification

        self._labels = self._labels or self._read_labels()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.model, revision=self._revision)
        with loading(self.model):
            network = AutoModelForSequenceClassification.from_pretrained(
                resolve(self.model), revision=self._revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        if network.config.pad_token_id is None:  # a decoder looks for the last token that is no padding
            network.config.pad_token_id = self._tokenizer.pad_token_id
        self._network = network.eval().to(device)

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in [0, 1]; equal completions are read once."""
        return self._of_each(batch, lambda labels, logits: labels.scores(logits).tolist())

    def probabilities(self, batch: RewardBatch) -> list[dict[str, float] | None]:
        """Return label -> probability of each of N completions, all labels of the model; None for an empty one."""
        return self._of_each(batch, lambda labels, logits: labels.probabilities(logits))

    def _of_each(self, batch: RewardBatch, look: Callable[[LabelValues, Tensor], list[T]]) -> list[T | None]:
        """Return what ``look`` makes of the logits [n, L] of n completions, for each of N."""
        assert self._labels is not None, "call setup() first"
        # by length, then by text: the order of the rows cannot change what is read together
        texts = sorted({text for text in batch.completions if text.strip()}, key=lambda text: (len(text), text))
        known: dict[str, T] = {}
        for start in range(0, len(texts), self.batch_size):
            part = texts[start : start + self.batch_size]
            known |= zip(part, look(self._labels, self._read(part)), strict=True)
        return [known.get(text) for text in batch.completions]

    @torch.inference_mode()
    def _read(self, texts: list[str]) -> Tensor:
        """Return logits [N, L] of N texts."""
        assert self._network is not None, "call setup() first"
        readable = getattr(self._network.config, "max_position_embeddings", self.max_length)
        longest = min(self.max_length, self._tokenizer.model_max_length, readable)
        encoded = self._tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        logits: Tensor = self._network(**encoded.to(self._network.device)).logits
        return logits
