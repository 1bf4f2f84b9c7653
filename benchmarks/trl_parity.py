"""Agreement with TRL: advantages, log-probs, losses and LoRA gradients of one update.

Both sides start from the same tiny random Llama with LoRA adapters, the same completions and rewards. TRL's side is
its real ``GRPOTrainer``: ``_generate_and_score_completions`` (only sampling is replaced) and ``_compute_loss``. Ours
is packed groups, one group a micro-batch. Between the two phases the adapters move, so that ratios leave 1.

TRL is no dependency of lit-debias; give it an environment of its own::

    python -m venv .venv-trl
    .venv-trl/bin/pip install -c constraints.txt -e . trl==1.16.0
    .venv-trl/bin/python -m benchmarks.trl_parity --out benchmarks/results/trl_parity.json

Exits with 1 where the two disagree.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

from benchmarks.adapters import adapters, set_adapters
from benchmarks.provenance import describe_device, provenance
from lit_debias.aggregators import GDPO, Aggregator, WeightedSum
from lit_debias.forward.lean import LeanModel
from lit_debias.grpo.loss import BNPOLoss, CISPOLoss, DAPOLoss, DrGRPOLoss, GRPOLoss, GSPOLoss, PolicyLoss, UpdateSize
from lit_debias.packing.groups import pack
from lit_debias.packing.logprobs import TokenLogprobs, selected_logprobs
from lit_debias.types import Scores

PACKAGES = ("lit-debias", "trl", "torch", "transformers", "peft")
TOLERANCE = 1e-4
VOCABULARY = 64
PROMPTS, GROUP_SIZE, LONGEST = 3, 4, 8
TEMPERATURE = 0.9
DRIFT = 0.03
WEIGHTS = {"a": 1.0, "b": 0.5}


@dataclass(frozen=True)
class Case:
    """One loss in our words and in TRL's."""

    loss: PolicyLoss
    trl: dict[str, Any]
    aggregator: Aggregator = field(default_factory=lambda: WeightedSum(WEIGHTS))


CLIP = {"epsilon": 0.2, "epsilon_high": 0.2}
DAPO = {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}
SEQUENCE = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
CASES = {
    "grpo": Case(GRPOLoss(), {"loss_type": "grpo", **CLIP}),
    "bnpo": Case(BNPOLoss(), {"loss_type": "bnpo", **CLIP}),
    "dr_grpo": Case(
        DrGRPOLoss(), {"loss_type": "dr_grpo", "scale_rewards": "none", **CLIP}, WeightedSum(WEIGHTS, scale="none")
    ),
    "dapo": Case(DAPOLoss(), DAPO),
    "gspo": Case(GSPOLoss(), {**SEQUENCE, "epsilon": 3e-4, "epsilon_high": 4e-4}),
    "gspo, biased KL": Case(
        GSPOLoss(0.05, 0.05, beta=0.1, unbiased_kl=False),
        {**SEQUENCE, "epsilon": 0.05, "beta": 0.1, "use_bias_correction_kl": False},
    ),
    "cispo": Case(CISPOLoss(), {"loss_type": "cispo", "epsilon_high": 5.0}),
    "cispo, tight": Case(CISPOLoss(max_ratio=1.1), {"loss_type": "cispo", "epsilon_high": 1.1}),
    "grpo, KL": Case(GRPOLoss(beta=0.1), {"loss_type": "grpo", "beta": 0.1, **CLIP}),
    "grpo, biased KL": Case(
        GRPOLoss(beta=0.1, unbiased_kl=False),
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False, **CLIP},
    ),
    "cispo, KL": Case(CISPOLoss(beta=0.1), {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.1}),
    "dapo, KL": Case(DAPOLoss(beta=0.1), {**DAPO, "beta": 0.1}),
    "dapo, dual clip": Case(DAPOLoss(dual_clip=1.3), {**DAPO, "delta": 1.3}),
    "dapo, entropy bonus": Case(DAPOLoss(entropy_bonus=0.1), {**DAPO, "entropy_coef": 0.1}),
    "dapo, batch scale": Case(DAPOLoss(), {**DAPO, "scale_rewards": "batch"}, WeightedSum(WEIGHTS, scale="batch")),
    "dapo, GDPO": Case(DAPOLoss(), {**DAPO, "multi_objective_aggregation": "normalize_then_sum"}, GDPO(WEIGHTS)),
}


@dataclass(frozen=True)
class Data:
    """Completions and rewards that both sides get."""

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    scores: Scores

    @classmethod
    def random(cls) -> Data:
        generator = torch.Generator().manual_seed(1)

        def tokens(length: int) -> list[int]:
            return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

        lengths = torch.randint(1, LONGEST + 1, (PROMPTS, GROUP_SIZE), generator=generator).tolist()
        values = {name: torch.rand(PROMPTS, GROUP_SIZE, generator=generator) for name in WEIGHTS}
        valid = {name: torch.ones_like(rows, dtype=torch.bool) for name, rows in values.items()}
        prompts = [tokens(length) for length in (3, 7, 5)]
        return cls(prompts, [[tokens(length) for length in row] for row in lengths], Scores(values, valid))


@dataclass(frozen=True)
class Outcome:
    """What one side computed; log-probs [P, G, T], 0 where masked."""

    advantages: Tensor
    old_logprobs: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]
    reference_logprobs: Tensor | None = None
    clipped: float = float("nan")
    """Share of tokens outside the bounds of the ratio."""


def base_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    weights = adapters(model)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


# ------------------------------------------------------------------------ TRL


def theirs(case: Case, data: Data, folder: str) -> Outcome:
    trainer = trl_trainer(case, data, folder)
    set_adapters(trainer.model)
    rows = [{"prompt": "t3"} for _ in range(PROMPTS * GROUP_SIZE)]
    inputs = trainer._generate_and_score_completions(rows)
    set_adapters(trainer.model, DRIFT)
    loss = trainer._compute_loss(trainer.model, inputs)

    def grouped(values: Tensor) -> Tensor:
        masked: Tensor = values * inputs["completion_mask"]
        return masked.view(PROMPTS, GROUP_SIZE, -1)

    return Outcome(
        inputs["advantages"].view(PROMPTS, GROUP_SIZE),
        grouped(inputs["old_per_token_logps"]),
        loss.detach(),
        gradients(trainer.model, loss),
        grouped(inputs["ref_per_token_logps"]) if case.loss.beta else None,
    )


def trl_trainer(case: Case, data: Data, folder: str) -> GRPOTrainer:
    config = GRPOConfig(
        folder,
        per_device_train_batch_size=PROMPTS * GROUP_SIZE,
        num_generations=GROUP_SIZE,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        reward_weights=list(WEIGHTS.values()),
        num_iterations=2,  # so that old log-probs are computed and kept
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        **case.trl,
    )
    rewards = [lambda name=name, **_: data.scores.values[name].flatten().tolist() for name in WEIGHTS]
    for name, reward in zip(WEIGHTS, rewards, strict=True):
        reward.__name__ = name
    trainer = GRPOTrainer(
        base_model(),
        rewards,
        config,
        train_dataset=Dataset.from_dict({"prompt": ["t3"] * PROMPTS}),
        processing_class=tokenizer(),
        peft_config=lora(),
    )
    flat = [row for group in data.completions for row in group]
    prompts = [prompt for prompt in data.prompts for _ in range(GROUP_SIZE)]
    sampled: tuple[Any, ...] = (prompts, flat, None, [""] * len(flat), None, {}, None, None)
    trainer._generate = lambda _: sampled
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", bos_token="t1", eos_token="t2")


# ----------------------------------------------------------------------- ours


class Ours:
    """The packed update of lit-debias."""

    def __init__(self, data: Data) -> None:
        self.model = get_peft_model(base_model(), lora())
        set_adapters(self.model)
        self.scores = data.scores
        self.prompt_ids, self.prompt_mask = padded(data.prompts, left=True)
        flat, mask = padded([row for group in data.completions for row in group], left=False)
        self.completion_ids, self.completion_mask = (x.view(PROMPTS, GROUP_SIZE, -1) for x in (flat, mask))

    def logprobs(self, groups: slice = slice(None)) -> TokenLogprobs:
        """Return log-probs and entropy, each [B, G, T]."""
        tensors = (self.prompt_ids, self.prompt_mask, self.completion_ids, self.completion_mask)
        packed = pack(*(x[groups] for x in tensors))
        llama = self.model.get_base_model()
        hidden, head = LeanModel(llama, torch.float32).predicting_states(packed), llama.lm_head.weight
        tokens = selected_logprobs(hidden, head, packed.targets, TEMPERATURE, entropy_grad=True)
        return TokenLogprobs(*map(packed.unpack, tokens))

    def run(self, case: Case) -> Outcome:
        advantages = case.aggregator(self.scores, 0)
        with torch.no_grad():
            old = self.logprobs().logprobs
            with self.model.disable_adapter():
                reference = self.logprobs().logprobs if case.loss.beta else None
        set_adapters(self.model, DRIFT)
        size = UpdateSize.of(self.completion_mask, LONGEST)
        loss, clipped = torch.zeros(()), 0.0
        for group in range(PROMPTS):
            groups = slice(group, group + 1)
            now = self.logprobs(groups)
            part, metrics = case.loss(
                now.logprobs.flatten(0, 1),
                old[groups].flatten(0, 1),
                advantages[groups].flatten(),
                self.completion_mask[groups].flatten(0, 1),
                size,
                None if reference is None else reference[groups].flatten(0, 1),
                now.entropy.flatten(0, 1),
            )
            loss = loss + part
            clipped += float(metrics["clip_ratio/region"]) / size.tokens
        return Outcome(advantages, old, loss.detach(), gradients(self.model, loss), reference, clipped)


def padded(rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[row, place], mask[row, place] = torch.tensor(tokens), True
    return ids, mask


# ----------------------------------------------------------------- comparison


def compare(name: str, data: Data) -> dict[str, Any]:
    """Return both losses and the relative errors of one case."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        trl = theirs(case, data, folder)
    own = Ours(data).run(case)
    if own.gradients.keys() != trl.gradients.keys():
        raise RuntimeError(f"{name}: the two sides train different parameters")
    errors = {
        "advantages": relative_error(own.advantages, trl.advantages),
        "old_logprobs": relative_error(own.old_logprobs, trl.old_logprobs),
        "loss": relative_error(own.loss, trl.loss),
        "gradient": relative_error(*(torch.cat([g.flatten() for g in x.gradients.values()]) for x in (own, trl))),
        "worst_gradient_tensor": max(relative_error(own.gradients[k], trl.gradients[k]) for k in own.gradients),
    }
    if own.reference_logprobs is not None and trl.reference_logprobs is not None:
        errors["reference_logprobs"] = relative_error(own.reference_logprobs, trl.reference_logprobs)
    return {
        "loss": float(own.loss),
        "trl_loss": float(trl.loss),
        "gradient_norm": float(torch.cat([g.flatten() for g in own.gradients.values()]).norm()),
        "clipped_share": round(own.clipped, 4),
        "relative_errors": errors,
        "agrees": all(error <= TOLERANCE for error in errors.values()),
    }


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ``|found - expected| / |expected|`` in the Euclidean norm."""
    return float((found - expected).norm() / expected.norm())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    out = parser.parse_args().out
    data = Data.random()
    results = {name: compare(name, data) for name in CASES}
    report = {**provenance(PACKAGES, f"{describe_device()}, float32"), "tolerance": TOLERANCE, "results": results}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    for name, result in results.items():
        worst = max(result["relative_errors"].values())
        print(f"{'ok  ' if result['agrees'] else 'FAIL'} {name:22} worst relative error {worst:.1e}")
    return 0 if all(result["agrees"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
