"""The first stage of an evaluation: all that is asked is read, drawn and checked, before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lit_debias.benchmark.public import Bold
from lit_debias.conversations import files_in
from lit_debias.data.sources import files_of
from lit_debias.data.tables import Row
from lit_debias.evaluation.arms import Arm, make_arms
from lit_debias.evaluation.benchmarked import PublicBenchmarks
from lit_debias.evaluation.examiner import Examiner
from lit_debias.evaluation.fingerprint import check_judges, describe, fingerprint, sha256_of_rows
from lit_debias.evaluation.needs import Asked
from lit_debias.evaluation.prompts import BIAS_KINDS, available, choose_splits, draw, read_prompts
from lit_debias.evaluation.prose import prose_rows, read_prose
from lit_debias.evaluation.readable import check_readers
from lit_debias.evaluation.settings import EvaluationSettings
from lit_debias.evaluation.texts import TextFigures
from lit_debias.models.language_model import LanguageModel
from lit_debias.models.sentence_encoder import SentenceEncoder
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.policy.vlm import VLMPolicy
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.support.devices import best_device
from lit_debias.support.hashing import sha256_of_files
from lit_debias.support.precision import dtype_of
from lit_debias.text_measures.bold import BoldTexts

READ_TOGETHER = 4
"""Completions that the other language model reads in one forward pass; its logits over a large vocabulary are large."""


@dataclass(frozen=True)
class Plan:
    """Who is asked what, and by whom the answers are read; nothing of it is loaded yet."""

    settings: EvaluationSettings
    arms: Mapping[str, Sequence[Arm]]
    """Name of the arm -> its replicas."""
    examiner: Examiner
    all_rows: Sequence[Row]
    """The prompts that there are."""
    rows: Sequence[Row]
    """Those that are asked."""
    passages: Sequence[str]
    """Prose to be read."""
    benchmarks: PublicBenchmarks
    texts: TextFigures
    recorded: Mapping[str, Any]
    """What the figures depend on, the arm aside, as JSON: kept in the results and part of each arm's fingerprint."""

    @property
    def to_ask(self) -> list[Row]:
        """The prompts and the prose."""
        return [*self.rows, *prose_rows(self.passages)]

    @property
    def to_sample(self) -> list[Row]:
        """The prompts whose answers' texts are measured, in the order of their records."""
        return [row for row in self.rows if row["prompt_kind"] in BIAS_KINDS]

    @property
    def asked(self) -> Asked:
        """What decides which measures there can be."""
        readers = ("judges", "rewards", "perplexity_model", "similarity_model")
        return Asked(self.rows, [option for option in readers if getattr(self.settings, option)])

    def policy(self, arm: Arm) -> QLoRAPolicy:
        """Return the arm's policy, not loaded.

        Raises:
            UserError: its model or adapter is not there.
        """
        s = self.settings
        options: dict[str, Any] = {"adapter": arm.adapter, "chat_template_kwargs": s.chat_template_kwargs}
        if s.images is None:
            return QLoRAPolicy(s.model, s.quantization, s.dtype, **options)
        return VLMPolicy(s.model, s.quantization, s.dtype, picture_options=s.picture_options, **options)


def prepare(settings: EvaluationSettings) -> Plan:
    """Read and check everything.

    Raises:
        UserError: a path, split or name is wrong, or a judge is also a reward.
    """
    check_judges(settings.judges or {}, settings.rewards or {})
    check_readers(settings.model, settings.perplexity_model, settings.similarity_model)
    passages = read_prose(settings.prose)
    texts = TextFigures.of(
        settings.text_measures, settings.text_samples, settings.temperature, settings.seed, settings.bootstrap
    )
    benchmarks = _benchmarks(settings, texts)
    examiner = _examiner(settings)
    chosen = choose_splits(settings.data, settings.splits)
    all_rows = read_prompts(settings.data, chosen, settings.columns, settings.images)
    for suite in (examiner.judges, examiner.rewards):
        suite.check_columns(available(all_rows))
    plan = Plan(
        settings=settings,
        arms=make_arms(settings.system_prompt, settings.adapter, settings.adapters or {}),
        examiner=examiner,
        all_rows=all_rows,
        rows=draw(all_rows, settings.limit, settings.seed),
        passages=passages,
        benchmarks=benchmarks,
        texts=texts,
        recorded=recorded(settings, chosen, all_rows, passages),
    )
    for arm in chain.from_iterable(plan.arms.values()):
        plan.policy(arm)  # checks its folder
    return plan


def _benchmarks(settings: EvaluationSettings, texts: TextFigures) -> PublicBenchmarks:
    s = settings
    public = PublicBenchmarks.of(s.benchmarks, s.benchmark_data, s.benchmark_limit, s.seed, s.bootstrap)
    if texts.measures:
        several = [BoldTexts(texts.measures) if type(one) is Bold else one for one in public.benchmarks]
        public = replace(public, benchmarks=tuple(several))
    public.read()
    return public


def _examiner(settings: EvaluationSettings) -> Examiner:
    s = settings
    other, encoder = s.perplexity_model, s.similarity_model
    return Examiner(
        judges=RewardSuite(s.judges or {}),
        rewards=RewardSuite(s.rewards or {}),
        engine=LocalEngine(s.max_new_tokens, s.temperature or 1.0, s.top_k, s.top_p, s.min_p, s.stop),
        batch_size=s.batch_size,
        greedy=s.temperature == 0,
        seed=s.seed,
        other=LanguageModel(other, READ_TOGETHER, _dtype(s), "\n", s.chat_template_kwargs) if other else None,
        encoder=SentenceEncoder(encoder) if encoder else None,
    )


def _pictures(settings: EvaluationSettings, rows: Sequence[Row]) -> dict[str, Any]:
    """Return which pictures are shown, by their content, and how they are read."""
    files = dict.fromkeys(Path(file) for row in rows if row["messages"] for file in files_in(row["messages"]))
    return {
        "images": settings.images and settings.images.column,
        "pictures_sha256": sha256_of_files(list(files)),
        "picture_options": settings.picture_options or {},
    }


def _dtype(settings: EvaluationSettings) -> torch.dtype:
    return dtype_of(settings.dtype, best_device())


def recorded(
    settings: EvaluationSettings, splits: Sequence[str], rows: Sequence[Row], passages: Sequence[str]
) -> dict[str, Any]:
    """Return what the figures depend on, the arm aside, as JSON; data by their content.

    Args:
        settings: The options.
        splits: Which of the data are asked.
        rows: The prompts that there are in them.
        passages: The prose.
    """
    s = settings
    files = files_of(s.data, "prompts", splits)
    together = [name for name, reward in {**(s.judges or {}), **(s.rewards or {})}.items() if reward.depends_on_batch]
    return {
        "model": s.model,
        "quantization": s.quantization,
        "dtype": str(_dtype(s)).removeprefix("torch."),
        "data": s.data,
        "data_sha256": sha256_of_files(files) if files else sha256_of_rows(rows),
        "splits": list(splits),
        **({"columns": s.columns} if s.columns else {}),
        **({} if s.images is None else _pictures(s, rows)),
        "limit": s.limit,
        "seed": s.seed,
        "max_new_tokens": s.max_new_tokens,
        "temperature": s.temperature,
        **{name: getattr(s, name) for name in ("top_k", "top_p", "min_p", "stop")},
        "chat_template_kwargs": s.chat_template_kwargs or {},
        "batch_size": s.batch_size if s.temperature else None,  # decides which random numbers a prompt gets
        "judges": describe(s.judges or {}),
        "rewards": describe(s.rewards or {}),
        **({"scored_together": together} if together else {}),
        "perplexity_model": s.perplexity_model,
        "similarity_model": s.similarity_model,
        "prose": s.prose,
        "prose_sha256": fingerprint({"passages": passages}),
    }
