"""Benchmarks in an evaluation: which ones, on what sample, the file that keeps a replica's figures, changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lit_debias.benchmark.asking import CannotAskError
from lit_debias.benchmark.benchmark import AnyBenchmark, Figure
from lit_debias.benchmark.measuring import Sample, about, check, measure, samples
from lit_debias.benchmark.statistics import Estimate, compare, pool_measures
from lit_debias.evaluation.fingerprint import describe, fingerprint
from lit_debias.evaluation.measures import Estimates
from lit_debias.evaluation.records import load_kept, write_json
from lit_debias.evaluation.results import stream
from lit_debias.plugins.benchmarks import Chosen, benchmarks_of
from lit_debias.policy.policy import Policy
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.hashing import sha256
from lit_debias.support.progress import Advance

Asking = tuple[Policy, RewardSuite, Advance]
"""The loaded policy, the judges, and what is told of progress."""


@dataclass(frozen=True)
class PublicBenchmarks:
    """What every arm is asked besides the prompts of the data; nothing where there are none."""

    benchmarks: tuple[AnyBenchmark, ...]
    folder: str
    limit: int | None
    seed: int
    bootstrap: int

    @classmethod
    def of(cls, chosen: Chosen, folder: str | None, limit: int | None, seed: int, bootstrap: int) -> PublicBenchmarks:
        """Return the benchmarks that an option names, checked before a model is loaded.

        Raises:
            UserError: a name or a file is not there, or ``folder`` is missing.
        """
        several = tuple(benchmarks_of(chosen))
        check(several, folder or "")
        return cls(several, folder or "", limit, seed, bootstrap)

    def read(self) -> None:
        """Read and draw what will be asked, so that a malformed file is found before a model is loaded.

        Raises:
            UserError: a file is malformed, or cannot be had from the hub.
        """
        len(self.samples)  # kept

    @property
    def names(self) -> list[str]:
        """Of the benchmarks."""
        return [benchmark.name for benchmark in self.benchmarks]

    @property
    def notes(self) -> list[str]:
        """What a reader should know of samples that are not the whole benchmark."""
        return [sample.note for sample in self.samples if sample.note]

    @cached_property
    def sizes(self) -> dict[str, str]:
        """Benchmark -> ``n of N``, the items that are asked."""
        return {sample.name: sample.size for sample in self.samples}

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the figures depend on, as JSON; files and items by their content."""
        numbers = {"limit": self.limit, "seed": self.seed, "bootstrap": self.bootstrap}
        files = [describe(str(Path(self.folder) / one.name)) for one in self.benchmarks if one.needs_data]
        return {
            "names": self.names,
            "folder": self.folder,
            **numbers,
            "files": files,
            "identities": {name: describe(one) for name, one in zip(self.names, self.benchmarks, strict=True)},
            "items": {sample.name: sha256(map(repr, sample.items)) for sample in self.samples},
        }

    def figures(
        self, path: Path, settings: Mapping[str, Any], ask: Callable[[Sequence[Sample]], Asking]
    ) -> tuple[Estimates, list[str]]:
        """Return a replica's figures, and why benchmarks are missing.

        Those of the file at ``path`` that have the same settings are read, the others are measured, and kept one by
        one: what fails costs nothing that was measured before it.

        Args:
            path: Where the figures are kept.
            settings: What they depend on besides :meth:`about`.
            ask: Called with what is to be measured, if there is something.
        """
        kept: dict[str, Any] = load_kept(path, "benchmarks") or {}
        keys = {sample.name: self._key(sample, settings) for sample in self.samples}
        due = [one for one in self.samples if kept.get(one.name, {}).get("fingerprint") != keys[one.name]]
        asking = ask(due) if due else None
        for sample in due:
            assert asking is not None
            kept[sample.name] = {"fingerprint": keys[sample.name], **self._measured(sample, asking)}
            write_json(path, {"benchmarks": kept})
        of_names = [kept[name] for name in self.names]
        estimates = {name: from_kept(one) for kept_of in of_names for name, one in kept_of["estimates"].items()}
        return estimates, [one["note"] for one in of_names if one["note"]]

    def _measured(self, sample: Sample, asking: Asking) -> dict[str, Any]:
        try:
            found = measure(asking[0], sample, self.seed, self.bootstrap, *asking[1:])
        except CannotAskError as reason:
            return {"estimates": {}, "note": f"{sample.benchmark.title} was not measured: {reason}"}
        return {"estimates": {name: to_kept(estimate) for name, estimate in found.items()}, "note": None}

    def _key(self, sample: Sample, settings: Mapping[str, Any]) -> str:
        own = {name: self.about[name] for name in ("folder", "limit", "seed", "bootstrap")}
        by_name = {name: self.about[name][sample.name] for name in ("identities", "items")}
        files = describe(str(Path(self.folder) / sample.name)) if sample.benchmark.needs_data else None
        return fingerprint({**settings, **own, **by_name, "name": sample.name, "files": files})

    def figure(self, name: str) -> Figure:
        """Return what a figure of :meth:`figures` is."""
        benchmark, _, rest = name.partition("/")
        return about(self.benchmarks[self.names.index(benchmark)], rest)

    @cached_property
    def samples(self) -> list[Sample]:
        """What is asked of each."""
        return samples(self.benchmarks, self.folder, self.limit, self.seed)


def to_kept(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate as its file has it: the value in full, its bootstrap samples with 4 digits, in one string."""
    value, *replicates = estimate.samples.tolist()
    return {"value": value, "samples": " ".join(f"{sample:.4g}" for sample in replicates), "n": estimate.n}


def from_kept(kept: Mapping[str, Any]) -> Estimate:
    """Return what :func:`to_kept` was given, up to its rounding."""
    return Estimate(np.array([kept["value"], *map(float, kept["samples"].split())]), kept["n"])


def add_figures(
    results: dict[str, Any], figures: Mapping[str, Sequence[Estimates]], benchmarks: PublicBenchmarks
) -> None:
    """Put the figures of every arm, and their changes against "before", into the results, section "benchmarks".

    Args:
        results: Its ``measures``, ``arms`` and ``comparisons`` get more.
        figures: Name of the arm -> figures of each of its replicas.
        benchmarks: What was asked.
    """
    pooled = {arm: pool_measures(found, stream(arm, benchmarks.seed)) for arm, found in figures.items()}
    for arm, found in pooled.items():
        for name, estimate in found.items():
            put(results, arm, name, estimate, pooled["before"].get(name), benchmarks.figure(name), "benchmarks")
            results["arms"][arm]["measures"][name]["sample"] = benchmarks.sizes[name.partition("/")[0]]


def put(
    results: dict[str, Any],
    arm: str,
    name: str,
    estimate: Estimate,
    before: Estimate | None,
    about: Figure,
    section: str,
) -> None:
    """Put one figure of an arm into the results, with its change.

    Args:
        results: Its ``measures``, ``arms`` and ``comparisons`` get more.
        arm: Whose it is.
        name: Of the figure.
        estimate: The figure.
        before: The same of the arm "before"; None where it has none.
        about: What the figure is.
        section: Of tables.
    """
    better = f"toward {about.ideal:g}" if about.better == "toward" else about.better
    results["measures"][name] = {
        "label": about.label,
        "better": better,
        "section": section,
        "meaning": about.meaning,
    }
    results["arms"][arm]["measures"][name] = known(estimate.as_dict())
    if arm != "before" and before is not None:
        results["comparisons"][arm][name] = change(estimate, before, about)


def change(estimate: Estimate, baseline: Estimate, about: Figure) -> dict[str, Any]:
    """Return the paired change; where a figure should come near an ideal, ``nearer`` says whether it clearly did.

    ``nearer`` is None where the interval of the change of the distance to the ideal holds 0.
    """
    found = compare(estimate, baseline)
    if not (has_width(estimate) or has_width(baseline)):
        found |= dict.fromkeys(("low", "high", "relative_low", "relative_high")) | {"clear": False}
    if about.better != "toward" or about.ideal is None:
        return found
    before, after = (np.abs(each.samples - about.ideal) for each in (baseline, estimate))
    distance = compare(Estimate(after, estimate.n), Estimate(before, baseline.n))
    return {**found, "nearer": distance["difference"] < 0 if found["clear"] and distance["clear"] else None}


def has_width(estimate: Estimate) -> bool:
    """Return whether bootstrap samples differ; where none does, too little was drawn to know the interval."""
    low, high = estimate.interval
    return low < high


def known(found: dict[str, Any]) -> dict[str, Any]:
    """Return a figure or a change without its interval where that has no width."""
    return {**found, "low": None, "high": None} if found["low"] == found["high"] else found
