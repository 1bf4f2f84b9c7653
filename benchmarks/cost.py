"""What a GRPO step should cost on one device: work counted from shapes, times few constants of the machine.

P prompts of S tokens, G completions of T tokens each; L = P (S + G (T - 1)) packed tokens, because a completion's last
token is not computed, in as few passes of whole groups as a budget of tokens allows. The model has n weights in its
linear layers, V x H in its head, layers of width H, I inside the MLP, A = heads x D for queries and K = kv_heads x D
for keys; adapters of rank 16 have r weights. w are the bytes of a number in the type of the computation.

A product of a vector and a weight is 2 FLOPs. A frozen base needs no gradient of its weights, so an update is 4 n a
token and not 6 n (Kaplan et al., arXiv 2001.08361, section 2.1, has 6 n). Bytes are those that must be read or
written where nothing stays in a cache. Seconds are a sum, not a maximum: nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.optimize import nnls

from benchmarks.settings import Settings
from lit_debias.packing.logprobs import CPU_LOGITS, GPU_LOGITS
from lit_debias.policy.policy import FORWARD_TOKENS

RANK = 16
MICRO_BATCH_TOKENS = 2048  # of GRPO, by default


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama family."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    queries: int
    """A, the width of all queries of a token."""
    keys: int
    """K, the width of all its keys."""
    vocabulary: int
    tied: bool
    """Whether embedding and head are one matrix."""

    @classmethod
    def of(cls, config: Any) -> Architecture:
        """Read the configuration of Hugging Face."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            queries=config.num_attention_heads * head_dim,
            keys=config.num_key_value_heads * head_dim,
            vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
        )

    @property
    def linear(self) -> int:
        """Weights n of the linear layers: q and o, k and v, gate, up and down."""
        return self.layers * self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the head, V H."""
        return self.vocabulary * self.hidden

    @property
    def adapter(self) -> int:
        """Weights r of the adapters: rank times inputs and outputs of each of the seven linear layers."""
        ends = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys) + 3 * (self.hidden + self.intermediate)
        return RANK * self.layers * ends

    @property
    def parameters(self) -> int:
        """Weights of the base, norms and biases left out."""
        return self.linear + self.head * (1 if self.tied else 2)


class Work(NamedTuple):
    """What a phase has to do."""

    flops: float
    bytes: float
    decoding_layers: float
    """Layers run to sample one token of every row: what a step of decoding costs however few its rows."""
    packed_layers: float
    """Layers run over a packed group, forward or backward: dispatch of their many small operations."""


class Machine(NamedTuple):
    """Constants of a machine, in the order of :class:`Work`; what is too small to be seen is 0."""

    seconds_per_flop: float
    seconds_per_byte: float
    seconds_per_decoding_layer: float
    seconds_per_packed_layer: float

    def seconds(self, work: Work) -> float:
        """Return the seconds that the work should take."""
        return sum(each * amount for each, amount in zip(self, work, strict=True))


class Memory(NamedTuple):
    """Constants of a process, for :func:`fit_memory`."""

    fixed_bytes: float
    """Interpreter, libraries and what an allocator keeps."""
    transient_factor: float
    """What the process takes for each byte of :func:`transient_bytes`."""

    def peak(self, model: Architecture, settings: Settings) -> float:
        """Return the largest resident set of a step, in bytes."""
        transient = self.transient_factor * transient_bytes(model, settings)
        return self.fixed_bytes + resident_bytes(model, settings) + transient


# ---------------------------------------------------------------- work


def phases(model: Architecture, settings: Settings) -> dict[str, Work]:
    """Return the work of each phase of one step; rewards and loading are none of it."""
    return {
        "rollout": rollout(model, settings),
        "reference": reference(model, settings),
        "update": update(model, settings),
    }


def rollout(model: Architecture, settings: Settings) -> Work:
    """Merge adapters, read P prompts once, then T - 1 times a token of each of N = P G rows.

    FLOPs: 2 n P S and 2 n N (T - 1) in the layers, 2 V H (P + N (T - 1)) in the head, and attention, 4 A for each
    pair of tokens and layer: S^2 for each prompt, S + t for row and step t.
    Bytes: each merged weight is read from the base, written, and laid out anew, 4 w; each step reads the weights,
    w (n + V H), and the cache: for each layer the P prompts' keys and values once and t of each row's own; sampling
    passes over the fp32 logits of each token, 32 V (written, maximum, difference, exponential, two sums).
    """
    prompts, rows, steps = settings.prompts, settings.completions, settings.completion_tokens - 1
    own = rows * steps * settings.completion_tokens / 2
    read = prompts * settings.prompt_tokens
    pairs = read * settings.prompt_tokens + rows * steps * settings.prompt_tokens + own
    return Work(
        flops=2 * model.linear * (read + rows * steps)
        + 2 * model.head * (prompts + rows * steps)
        + 4 * model.queries * model.layers * pairs,
        bytes=4 * width(settings) * model.linear
        + width(settings) * (model.linear + model.head) * (1 + steps)
        + cached_token(model, settings) * (steps * read + own)
        + 32 * model.vocabulary * settings.most_tokens,
        decoding_layers=model.layers * (1 + steps),
        packed_layers=0,
    )


def reference(model: Architecture, settings: Settings) -> Work:
    """Read the packed groups without adapter and without gradient.

    FLOPs: 2 n L, 2 V H for each completion token, attention as in :func:`attention_flops`.
    Bytes: the weights once a pass, every activation written and read, and passes over the logits, 32 V a completion
    token (bf16, fp32, maximum, difference, exponential, sum).
    """
    times = passes(settings, FORWARD_TOKENS)
    return Work(
        flops=2 * model.linear * packed_tokens(settings)
        + 2 * model.head * settings.most_tokens
        + attention_flops(model, settings),
        bytes=times * width(settings) * model.linear
        + 2 * settings.prompts * activation_bytes(model, settings)
        + 32 * model.vocabulary * settings.most_tokens,
        decoding_layers=0,
        packed_layers=model.layers * times,
    )


def update(model: Architecture, settings: Settings) -> Work:
    """Read the packed groups forward and backward, and make one step of AdamW.

    FLOPs: 4 n L for the base (forward, gradient of its inputs), 6 r L for the adapters (gradient of their weights
    too), 4 V H for each completion token (logits, gradient of the hidden state), and three times the attention of a
    forward pass (two products forward, four backward).
    Bytes: the weights twice a pass; every activation written and read, and its gradient too; passes over the logits, 56
    V a completion token (those of the reference, the entropy's product and sum, the weights in bf16); AdamW and
    clipping, 40 a weight of the adapters.
    """
    tokens, times = packed_tokens(settings), passes(settings, MICRO_BATCH_TOKENS)
    return Work(
        flops=(4 * model.linear + 6 * model.adapter) * tokens
        + 4 * model.head * settings.most_tokens
        + 3 * attention_flops(model, settings),
        bytes=2 * times * width(settings) * model.linear
        + 4 * settings.prompts * activation_bytes(model, settings)
        + 56 * model.vocabulary * settings.most_tokens
        + 40 * model.adapter,
        decoding_layers=0,
        packed_layers=3 * model.layers * times,
    )


def group_tokens(settings: Settings) -> int:
    """Return the packed tokens of one group, S + G (T - 1)."""
    return settings.prompt_tokens + settings.group_size * (settings.completion_tokens - 1)


def packed_tokens(settings: Settings) -> int:
    """Return L = P (S + G (T - 1))."""
    return settings.prompts * group_tokens(settings)


def passes(settings: Settings, budget: int) -> int:
    """Return in how many passes the groups are read, as many of them together as have at most ``budget`` tokens."""
    return -(-settings.prompts // groups_together(settings, budget))


def groups_together(settings: Settings, budget: int) -> int:
    """Return how many groups share a pass."""
    return min(settings.prompts, max(1, budget // group_tokens(settings)))


def attention_flops(model: Architecture, settings: Settings) -> int:
    """Return 4 A for each layer and pair of tokens: S^2 pairs of a prompt, (T - 1) (S + T - 1) of each completion."""
    return 4 * model.queries * model.layers * settings.prompts * group_pairs(settings)


def group_pairs(settings: Settings) -> int:
    """Return the pairs of tokens whose scores attention computes for one group, seen or not."""
    own = settings.completion_tokens - 1
    return settings.prompt_tokens**2 + settings.group_size * own * (settings.prompt_tokens + own)


def cached_token(model: Architecture, settings: Settings) -> int:
    """Return the bytes of a token in the cache of sampling: keys and values of every layer."""
    return 2 * model.keys * model.layers * width(settings)


# ---------------------------------------------------------------- memory


def resident_bytes(model: Architecture, settings: Settings) -> float:
    """Return what is there all the time, in bytes.

    The base in the type of the computation, kept so beside NF4 too (with double quantisation: 4.127 bits a weight,
    Dettmers et al., arXiv 2305.14314); embedding and head; the merged copy of linear layers and head that samples;
    adapters with their gradient and the two moments of AdamW, in fp32.
    """
    four_bits = 4.127 / 8 * model.linear if settings.quantization == "nf4" else 0
    merged = model.linear + model.head
    return four_bits + width(settings) * (model.parameters + merged) + 16 * model.adapter


def transient_bytes(model: Architecture, settings: Settings) -> float:
    """Return what comes and goes, in bytes: the larger of sampling and update.

    Sampling holds the cache, P prompts and N completions, and fp32 logits of N rows and their exponentials; the update
    holds the activations of the groups of one pass and 10 bytes for each logit of a slice of the vocabulary.
    """
    tokens = settings.prompts * settings.prompt_tokens + settings.most_tokens
    sampling = cached_token(model, settings) * tokens + 8 * model.vocabulary * settings.completions
    held = CPU_LOGITS if settings.device == "cpu" else GPU_LOGITS
    together = groups_together(settings, MICRO_BATCH_TOKENS)
    logits = min(held, model.vocabulary * together * settings.group_size * settings.completion_tokens)
    return max(sampling, together * activation_bytes(model, settings) + 10 * logits)


def activation_bytes(model: Architecture, settings: Settings) -> float:
    """Return what the backward pass of one group keeps, in bytes.

    For each of S + G (T - 1) tokens and each layer, numbers of w bytes: inputs and results of two norms, 4 H; queries
    and what attention returns, 2 A; gate and up, and what the gate lets through, 3 I; the adapters between their two
    factors, 112. Keys and values of the prompt, and for each completion of the prompt and its own, 2 K. For each head
    and pair of :func:`group_pairs` the weight in fp32, and rounded where w is less.
    """
    own = settings.completion_tokens - 1
    numbers = 4 * model.hidden + 2 * model.queries + 3 * model.intermediate + 7 * RANK
    seen = settings.prompt_tokens + settings.group_size * (settings.prompt_tokens + own)
    rounded = width(settings) if width(settings) < 4 else 0
    weights = (4 + rounded) * model.heads * group_pairs(settings)
    return model.layers * (width(settings) * (numbers * group_tokens(settings) + 2 * model.keys * seen) + weights)


def width(settings: Settings) -> int:
    """Return the bytes of a number in the dtype of the computation."""
    return int(getattr(torch, settings.dtype).itemsize)


# ---------------------------------------------------------------- constants


def fit_machine(work: Sequence[Work], seconds: Sequence[float]) -> Machine:
    """Return the constants, none below 0, with the least squares of relative errors."""
    rows = [[amount / second for amount in each] for each, second in zip(work, seconds, strict=True)]
    return Machine(*_non_negative(rows))


def fit_memory(cells: Sequence[tuple[Architecture, Settings]], peaks: Sequence[float]) -> Memory:
    """Return the constants, none below 0, with the least squares of relative errors of the peaks in bytes."""
    rows, left = [], []
    for (model, settings), peak in zip(cells, peaks, strict=True):
        rows.append([1 / peak, transient_bytes(model, settings) / peak])
        left.append(1 - resident_bytes(model, settings) / peak)
    return Memory(*_non_negative(rows, left))


def _non_negative(rows: Sequence[Sequence[float]], targets: Sequence[float] | None = None) -> list[float]:
    matrix = torch.tensor(rows, dtype=torch.float64)
    wanted = torch.ones(len(rows)) if targets is None else torch.tensor(targets)
    scale = matrix.norm(dim=0).clamp_min(1e-300)  # columns differ by a factor of 1e12
    found, _ = nnls((matrix / scale).numpy(), wanted.double().numpy())
    return [float(value) for value in torch.from_numpy(found) / scale]
