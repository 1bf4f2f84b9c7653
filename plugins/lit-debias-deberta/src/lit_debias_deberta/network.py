"""The reward network: an encoder reads prompt and response together, and each dimension has a head."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_debias.plugins import UserError, counted, load_tokenizer
from lit_debias.plugins import load_encoder as load_pretrained
from lit_debias_deberta.calibration import Calibration
from lit_debias_deberta.pooling import PARTS, Pooling, pool

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

DIMENSIONS = ("fairness", "neutrality", "relevance", "quality")
"""What the labels of lit-debias's data grade, in the order of their columns."""


class RewardNetwork(nn.Module):
    """Scores pairs of prompt and response.

    Shapes: N pairs of L tokens, D dimensions, H features.

    Args:
        encoder: Any Hugging Face encoder, or a causal language model without its head.
        tokenizer: Its tokenizer; where it sets nothing between two texts, a blank line does.
        dimensions: D names, one head each.
        max_length: Tokens of a pair; the longer of its two texts is cut first, at its end.
        dropout: In the heads.
        pooling: What the heads see of the encoder's states; see :func:`~lit_debias_deberta.pooling.pool`.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dimensions: Sequence[str] = DIMENSIONS,
        max_length: int = 256,
        dropout: float = 0.1,
        pooling: Pooling = "parts",
    ) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.dimensions, self.max_length, self.pooling = list(dimensions), max_length, pooling
        size = int(encoder.config.hidden_size)
        self.heads = nn.ModuleDict({name: head(PARTS[pooling] * size, size, dropout) for name in self.dimensions})
        self.calibration = {name: Calibration() for name in self.dimensions}
        """Head -> how its logits become scores; as they are until validation has fitted something."""

    def read(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
    ) -> Tensor:
        """Return the logits [N, D] float32 of N >= 1 pairs; :meth:`scores` turns them into scores.

        Args:
            prompts: [N].
            responses: [N].
            batch_size: Pairs in one forward pass, alike in length so that little is padded; by default all.
            max_length: Tokens of a pair; by default the network's.
            batch_tokens: Tokens in one forward pass, with padding; by default without limit. A pair that is longer
                is read alone.
        """
        pairs = list(zip(prompts, responses, strict=True))
        encoding, sides = self.encode(pairs, max_length or self.max_length)
        tokens = encoding["attention_mask"].sum(1).tolist()
        # Training has no limit of tokens and sorts by characters: another order would give dropout's draws to others.
        lengths = tokens if batch_tokens else [len(prompt) + len(response) for prompt, response in pairs]
        # by length, then by text: the order of the pairs cannot change what is read together
        order = sorted(range(len(pairs)), key=lambda row: (lengths[row], pairs[row]))
        logits = []
        for rows in buckets(order, tokens, batch_size or len(pairs), batch_tokens or sum(tokens) * len(pairs)):
            longest = max(tokens[row] for row in rows)
            part = {name: values[rows, :longest] for name, values in encoding.items()}
            logits.append(self(part, sides[rows, :longest]))
        return torch.cat(logits)[torch.tensor(order, device=sides.device).argsort()]

    def scores(self, logits: Tensor) -> Tensor:
        """Return the calibrated scores [N, D] in [0, 1] of logits [N, D]."""
        columns = zip(self.dimensions, logits.T, strict=True)
        return torch.stack([self.calibration[name](column) for name, column in columns], dim=-1)

    def encode(self, pairs: Sequence[tuple[str, str]], max_length: int) -> tuple[BatchEncoding, Tensor]:
        """Return the N pairs as padded token ids and masks [N, L], and whose each token is [N, L] (-1, 0 or 1)."""
        prompts, responses = map(list, zip(*pairs, strict=True))
        if self.tokenizer.sep_token is None:
            prompts = [f"{prompt}\n\n" for prompt in prompts]
        encoding: BatchEncoding = self.tokenizer(
            prompts,
            responses,
            truncation="longest_first",
            max_length=max_length,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        texts = [encoding.sequence_ids(row) for row in range(len(pairs))]
        sides = torch.tensor([[-1 if text is None else text for text in row] for row in texts])
        return encoding.to(self.encoder.device), sides.to(self.encoder.device)

    def forward(self, encoding: Mapping[str, Tensor], sides: Tensor) -> Tensor:
        """Return the logits [N, D] float32 of encoded pairs."""
        states = self.encoder(**encoding).last_hidden_state.float()
        # the heads compute in fp32 whatever the precision: bf16 would give near responses equal scores
        with torch.autocast(states.device.type, enabled=False):
            embeddings = self.encoder.get_input_embeddings()(encoding["input_ids"])
            pooled = pool(states, embeddings, sides, encoding["attention_mask"], self.pooling)
            return torch.cat([self.heads[name](pooled) for name in self.dimensions], dim=-1).float()

    def alone(self, name: str, saved_as: str) -> RewardNetwork:
        """Return a network on the same encoder whose only head is this network's ``name``, called ``saved_as``."""
        network = RewardNetwork(self.encoder, self.tokenizer, [saved_as], self.max_length, pooling=self.pooling)
        network.heads[saved_as], network.calibration = self.heads[name], {saved_as: self.calibration[name]}
        return network

    def train_only_top(self, layers: int) -> None:
        """Freeze the encoder below its ``layers`` highest layers; 0 leaves only the heads to train.

        Raises:
            UserError: the encoder has fewer layers.
        """
        depth = int(self.encoder.config.num_hidden_layers)
        if not 0 <= layers <= depth:
            raise UserError(
                f"trainable_layers={layers}: the encoder has {counted(depth, 'layer')}; write 0 to {depth}, or null"
            )
        stacks = [m for m in self.encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        self.encoder.requires_grad_(False)
        for layer in list(stacks[0])[depth - layers :]:
            layer.requires_grad_(True)

    def add_lora(self, rank: int) -> None:
        """Train LoRA adapters of a rank in the place of the encoder's weights that would train, and the heads.

        Raises:
            UserError: no linear layer would train.
        """
        from peft import LoraConfig, get_peft_model

        linear = [
            name
            for name, module in self.encoder.named_modules()
            if isinstance(module, nn.Linear) and module.weight.requires_grad
        ]
        if not linear:
            raise UserError("lora_rank: no linear layer of the encoder trains; write more trainable_layers")
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft 0.21 reads it
            self.encoder = get_peft_model(self.encoder, config)

    def merge_lora(self) -> None:
        """Put trained adapters into the encoder's weights."""
        from peft import PeftModel

        if isinstance(self.encoder, PeftModel):
            self.encoder = self.encoder.merge_and_unload()


def buckets(order: Sequence[int], tokens: Sequence[int], most_rows: int, most_tokens: int) -> Iterator[list[int]]:
    """Yield ``order`` in parts of at most ``most_rows`` rows, and ``most_tokens`` tokens with padding.

    Args:
        order: [N] numbers of rows.
        tokens: [N] length of each row, by its number.
        most_rows: At least 1.
        most_tokens: A single row may have more.
    """
    part: list[int] = []
    longest = 0
    for row in order:
        longest = max(longest, tokens[row])
        if part and (len(part) == most_rows or (len(part) + 1) * longest > most_tokens):
            yield part
            part, longest = [], tokens[row]
        part.append(row)
    yield part


def head(features: int, hidden: int, dropout: float) -> nn.Sequential:
    """Return the network that turns pooled features [N, features] into logits [N, 1]."""
    return nn.Sequential(
        nn.Dropout(dropout), nn.Linear(features, hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden, 1)
    )


def load_encoder(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an encoder, or a causal language model without its head, in fp32 and evaluation mode, and its tokenizer.

    Raises:
        UserError: there is no such model, it cannot be reached, or its tokenizer cannot tell two texts apart.
    """
    encoder, tokenizer = load_pretrained(source), load_tokenizer(source)
    if not tokenizer.is_fast:
        raise UserError(f"encoder '{source}': its tokenizer is not a fast one; write an encoder with a tokenizer.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoder.config.use_cache = False  # of a causal language model: nothing is generated here
    pooler = getattr(encoder, "pooler", None)
    if pooler is not None:  # not used here; a parameter without a gradient stops data-parallel training
        pooler.requires_grad_(False)
    return encoder, tokenizer
