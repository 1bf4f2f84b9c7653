"""One tiny model through the policy's public interface, against plain Hugging Face and PEFT, one sequence at a time."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.tiny_architectures import VOCABULARY, Architecture, save
from benchmarks.tiny_fields import UNBUILT
from lit_debias.errors import UserError
from lit_debias.export.folder import write_adapter
from lit_debias.packing.tokens import pack_rollout
from lit_debias.policy.policy import Policy
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch, Rollout

NATS, RELATIVE = 1e-3, 1e-3
"""How far log-probs and gradients in float32 may be from the plain ones."""
SLOW = ("prompt by prompt", "without a cache")
"""In the names of decoders that do not share the work of a batch."""
PROMPTS = ["The rider was late because the lift was.", "Why", "People from the north", "A nurse i"]  # a byte, a token
TEXTS = [["all cook in other ways.", "late."], ["? I", "do they differ so much?"]]
GROUP_SIZE, NEW_TOKENS = 3, 24


@dataclass
class Finding:
    """What became of one architecture."""

    name: str
    model_type: str
    verdict: str
    """``right``, ``slower but right``, ``refused``, ``not built``, ``WRONG`` or ``TRACEBACK``."""
    way: str = ""
    """How the policy computes it."""
    reason: str = ""
    """Why it is slower, refused, not built or wrong, or where the traceback came from."""
    figures: dict[str, float] = field(default_factory=dict)
    """Largest differences: log-probs in nats, gradients relative to the plain ones."""
    idle: list[str] = field(default_factory=list)
    """Adapted layers that get no gradient."""
    causal: bool = True
    """Whether later tokens leave the plain model's logits of earlier ones alone."""
    seconds: float = 0.0
    fast: bool = True
    """Whether the update computes a prompt once for its group, and sampling a batch at once."""

    @property
    def passed(self) -> bool:
        """Whether the promise is kept: right, or refused."""
        return self.verdict not in {"WRONG", "TRACEBACK"}

    def as_json(self) -> dict[str, Any]:
        """Return it as a dict, figures to three digits."""
        return {**asdict(self), "figures": {name: float(f"{value:.3g}") for name, value in self.figures.items()}}


def check(architecture: Architecture, folder: Path | None = None) -> Finding:
    """Return what becomes of an architecture; raises nothing that a model or the policy raises.

    Args:
        architecture: Which one.
        folder: Keeps the model and the adapter.
    """
    began = time.perf_counter()
    finding = Finding(architecture.name, architecture.model_type, "not built")
    if architecture.model_type in UNBUILT:
        finding.reason = UNBUILT[architecture.model_type]
        return finding
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = folder or Path(temporary)
        try:
            finding.causal = built(architecture, work / "model")
        except Exception as error:
            finding.reason = in_one_line(error)
        else:
            examine(work, architecture, finding)
        finding.reason = finding.reason.replace(str(work / "model"), "MODEL")
    finding.seconds = round(time.perf_counter() - began, 2)
    return finding


def built(architecture: Architecture, folder: Path) -> bool:
    """Write the model, load and call it; return whether it is causal.

    Raises:
        ValueError: its logits are not finite.
        Exception: whatever transformers raises.
    """
    save(architecture, folder)
    model = plain_model(folder)
    ids = torch.randint(1, VOCABULARY, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, *parts = (model(input_ids=ids[:, :tokens], use_cache=False).logits for tokens in (64, 63, 47, 18))
    if not whole.isfinite().all():
        raise ValueError("the logits of the plain model are not finite")
    return all(bool((whole[:, : part.shape[1]] - part).abs().max() < NATS) for part in parts)


def plain_model(folder: Path) -> PreTrainedModel:
    """Return the model as transformers loads it, in evaluation mode."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


# ---------------------------------------------------------------- verdict


def examine(work: Path, architecture: Architecture, finding: Finding) -> None:
    """Fill in verdict, way, reason and figures."""
    with log_lines() as lines:
        try:
            compare(work, architecture, finding)
        except UserError as error:
            finding.verdict, finding.reason = "refused", str(error)
            if "\n" in str(error):
                finding.verdict, finding.reason = "WRONG", f"a refusal of several lines: {in_one_line(error)}"
            return
        except Exception as error:
            finding.verdict, finding.reason = "TRACEBACK", f"{in_one_line(error)}; {place(error)}"
            return
    wrong = [f"{name} {value:.2g}" for name, value in finding.figures.items() if not value <= tolerance(name)]
    if finding.idle:
        wrong.append(f"{len(finding.idle)} adapted layers get no gradient, such as {finding.idle[0]}")
    if wrong:
        finding.verdict, finding.reason = "WRONG", ", ".join(wrong)
    else:
        finding.verdict = "right" if finding.fast else "slower but right"
        finding.reason = " ".join(lines)


def tolerance(figure: str) -> float:
    """Return the largest value of a figure that is right."""
    if "twice" in figure or figure == "exported adapter":
        return 0.0
    return RELATIVE if "gradient" in figure else NATS


def in_one_line(error: Exception) -> str:
    """Return the kind of an exception and the start of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def place(error: Exception) -> str:
    """Return the last line of this project that an exception came through, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "lit_debias" in frame.filename] or frames
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (own[-1], frames[-1]))


@contextlib.contextmanager
def log_lines() -> Iterator[list[str]]:
    """Within the context, collect what lit-debias logs, but for decoders that are not slower than others."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            usual = text.startswith("Rollouts use") and "; not " not in text
            if not usual and text not in lines:
                lines.append(text)

    loggers = [logging.getLogger(name) for name in ("lit_debias", "lightning.pytorch")]
    collector, levels = Collector(), [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(collector)
        logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(collector)
            logger.setLevel(level)


# ---------------------------------------------------------------- comparison


def compare(work: Path, architecture: Architecture, finding: Finding) -> None:
    """Sample, compute and differentiate by the policy and plainly; note all differences.

    Raises:
        UserError: the policy refuses the model.
    """
    torch.manual_seed(3)
    options = {"quantization": "none", "dtype": "float32", "rank": 4, "targets": architecture.targets}
    policy = QLoRAPolicy(str(work / "model"), **options)
    policy = policy.load("cpu")
    finding.way, finding.fast = policy.forms.way.name, policy.forms.way.packs
    perturb(policy)
    write_adapter(policy, work / "adapter")
    engine, live = LocalEngine(NEW_TOKENS), LocalEngine(NEW_TOKENS, weights="live")
    sampled, again = (engine.generate(policy, PromptBatch(PROMPTS), GROUP_SIZE, seed=11) for _ in range(2))
    finding.figures["sampled twice"] = unequal(sampled, again)
    finding.fast &= not any(slow in engine.decoders.name for slow in SLOW)
    sampled_live = live.generate(policy, PromptBatch(PROMPTS), 1, seed=12)
    given = policy.encode(PromptBatch(PROMPTS[:2]), TEXTS, end=True)
    base = plain_model(work / "model")
    references = [one_by_one(base, rollout) for rollout in (sampled, given)]
    tuned = PeftModel.from_pretrained(base, work / "adapter", is_trainable=True).eval()
    finding.figures["exported adapter"] = take_over(policy, tuned)
    finding.figures["sampling live"] = largest(sampled_live, sampled_live.logprobs, one_by_one(tuned, sampled_live))
    acting: set[str] = set()
    for name, rollout, reference in zip(("", "given texts, "), (sampled, given), references, strict=True):
        found, acts = differences(policy, tuned, rollout, reference)
        finding.figures |= {f"{name}{key}": value for key, value in found.items()}
        acting |= acts
    finding.figures.pop("given texts, sampling")
    adapted = {name for name in policy.trainable_parameters() if ".lora_B" in name}
    finding.idle = sorted(short(name) for name in adapted if plain_name(name) not in acting)


def perturb(policy: Policy) -> None:
    """Move a fresh adapter away from zero."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters().items():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    policy.forms.forget_merged()


@torch.no_grad()
def take_over(policy: Policy, tuned: PeftModel) -> float:
    """Give a model the policy's adapter, and return how far from it the one was that PEFT had loaded."""
    expected = {plain_name(name): parameter for name, parameter in policy.trainable_parameters().items()}
    found = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    if found.keys() != expected.keys():
        return float("inf")
    distance = max(float((found[name] - value).abs().max()) for name, value in expected.items())
    for name, value in expected.items():
        found[name].copy_(value)
    return distance


def unequal(one: Rollout, other: Rollout) -> float:
    """Return how many tokens of two rollouts differ, and infinity where their shapes do."""
    if one.completion_ids.shape != other.completion_ids.shape:
        return float("inf")
    return float((one.completion_ids != other.completion_ids).sum())


def differences(
    policy: Policy, tuned: PeftModel, rollout: Rollout, reference: Tensor
) -> tuple[dict[str, float], set[str]]:
    """Return the largest differences to the plain model, and the names of the parameters that get a gradient there."""
    mask = rollout.completion_mask
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(9)) * mask
    tuned.zero_grad()
    plain = one_by_one(tuned, rollout, weights)
    expected = {name: gradient(p) for name, p in tuned.named_parameters() if p.requires_grad}
    updates = [policy.logprobs(rollout) for _ in range(2)]
    of_reference = policy.logprobs(rollout, reference=True)
    trained, found = training_pass(policy, rollout, weights)
    trained_again, _ = training_pass(policy, rollout, weights)
    figures = {
        "sampling": largest(rollout, rollout.logprobs, plain),
        "update": largest(rollout, updates[0], plain),
        "reference": largest(rollout, of_reference, reference),
        "training": largest(rollout, trained, plain),
        "gradient": relative(found, expected),
        "update twice": largest(rollout, *updates),
        "training twice": largest(rollout, trained, trained_again),
    }
    return figures, {name for name, value in expected.items() if value.any()}


def largest(rollout: Rollout, values: Tensor, expected: Tensor) -> float:
    """Return the largest difference at a rollout's tokens."""
    return float((values - expected).abs()[rollout.completion_mask].max())


def one_by_one(model: Any, rollout: Rollout, weights: Tensor | None = None) -> Tensor:
    """Return log-probs [P, G, T] of a rollout, each sequence alone: no padding, no cache, no packing.

    With ``weights`` [P, G, T], the gradient of the weighted sum is added to that of the parameters.
    """
    result = torch.zeros(rollout.completion_mask.shape)
    for prompt, member in torch.cartesian_prod(*map(torch.arange, result.shape[:2])).tolist():
        before = rollout.prompt_ids[prompt][rollout.prompt_mask[prompt]]
        completion = rollout.completion_ids[prompt, member][rollout.completion_mask[prompt, member]]
        ids = torch.cat((before, completion))[None]
        if "'dynamic'" in str(model.config.to_dict().get("rope_parameters")):  # a short text makes it forget long ones
            model(input_ids=ids[:, :1], use_cache=False)
        with torch.set_grad_enabled(weights is not None):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(before) - 1 : -1].float()
            values = logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]
        result[prompt, member, : len(values)] = values.detach()
        if weights is not None:
            (values * weights[prompt, member, : len(values)]).sum().backward()
    return result


def training_pass(policy: Policy, rollout: Rollout, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return log-probs [P, G, T] as the update computes them, and the gradient of their weighted sum by plain name."""
    policy.zero_grad()
    packed = pack_rollout(rollout)
    values = packed.unpack(policy(packed).logprobs)
    (values * weights).sum().backward()
    return values.detach(), {plain_name(name): gradient(p) for name, p in policy.trainable_parameters().items()}


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest distance of a parameter's gradient to the expected one, by the norm of the latter.

    Norms below a hundredth of that of all parameters together count as that much. Infinity where names differ.
    """
    if found.keys() != expected.keys():
        return float("inf")
    floor = 0.01 * float(torch.stack([value.norm() for value in expected.values()]).norm())
    return max(
        float((found[name] - value).norm()) / max(float(value.norm()), floor, 1e-12) for name, value in expected.items()
    )


def gradient(parameter: Tensor) -> Tensor:
    """Return a copy of a parameter's gradient, zeros where there is none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def plain_name(name: str) -> str:
    """Return PEFT's name of one of the policy's parameters."""
    return name.removeprefix("lm.")


def short(name: str) -> str:
    """Return the base model's name of an adapted layer."""
    return plain_name(name).removeprefix("base_model.model.").partition(".lora_B")[0]
