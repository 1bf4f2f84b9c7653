"""Public benchmarks in an evaluation: which ones, on what sample, the file that keeps a replica's figures, changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lit_debias.errors import UserError
from lit_debias.evaluation import public
from lit_debias.evaluation.fingerprint import describe, fingerprint
from lit_debias.evaluation.measures import Estimates
from lit_debias.evaluation.records import load_kept, write_json
from lit_debias.evaluation.results import stream
from lit_debias.evaluation.statistics import Estimate, compare, pool_measures
from lit_debias.policy.policy import Policy
from lit_debias.rewards.suite import RewardSuite


@dataclass(frozen=True)
class PublicBenchmarks:
    """What every arm is asked besides the prompts of the data; nothing where ``names`` is empty."""

    names: tuple[str, ...]
    folder: str
    limit: int | None
    seed: int
    bootstrap: int

    @classmethod
    def of(cls, names: str, folder: str | None, limit: int | None, seed: int, bootstrap: int) -> PublicBenchmarks:
        """Return the benchmarks that a comma-separated list names, checked before a model is loaded.

        Raises:
            UserError: a name or a file is not there, or ``folder`` is missing.
        """
        several = tuple(name.strip() for name in names.split(",") if name.strip())
        if several and not folder:
            raise UserError("benchmarks: where are their files? write benchmark_data: FOLDER, or hub")
        public.check(several, folder or "")
        return cls(several, folder or "", limit, seed, bootstrap)

    def read(self) -> None:
        """Read and draw what will be asked, so that a malformed file is found before a model is loaded.

        Raises:
            UserError: a file is malformed, or cannot be had from the hub.
        """
        len(self._samples)  # kept

    @property
    def total(self) -> int:
        """Items that one arm is asked."""
        return sum(len(sample.items) for sample in self._samples)

    @property
    def notes(self) -> list[str]:
        """What a reader should know of samples that are not the whole benchmark."""
        return [sample.note for sample in self._samples if sample.note]

    @cached_property
    def sizes(self) -> dict[str, str]:
        """Benchmark -> ``n of N``, the items that are asked."""
        return {sample.name: sample.size for sample in self._samples}

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the figures depend on, as JSON; files by their content."""
        files = [describe(str(Path(self.folder) / name)) for name in self.names]
        return {**asdict(self), "names": list(self.names), "files": files}

    def figures(
        self,
        path: Path,
        settings: Mapping[str, Any],
        ask: Callable[[], tuple[Policy, RewardSuite, Callable[[int], None]]],
    ) -> Estimates:
        """Return a replica's figures: those of the file at ``path`` where it has the same settings, or new ones.

        Args:
            path: Where the figures are kept.
            settings: What they depend on besides :meth:`about`.
            ask: Returns the loaded policy, the judges, and what is told of progress; called only if needed.
        """
        key = fingerprint({**settings, **self.about})
        kept: dict[str, dict[str, Any]] | None = load_kept(path, "estimates", key)
        if kept is None:
            policy, judges, advance = ask()
            found = public.measure(
                policy, self.names, self.folder, self.limit, self.seed, self.bootstrap, judges, advance
            )
            kept = {name: to_kept(estimate) for name, estimate in found.items()}
            write_json(path, {"fingerprint": key, "estimates": kept})
        return {name: from_kept(estimate) for name, estimate in kept.items()}

    @cached_property
    def _samples(self) -> list[public.Sample]:
        return public.samples(self.names, self.folder, self.limit, self.seed)


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
            about = public.about(name)
            better = f"toward {about.ideal:g}" if about.better == "toward" else about.better
            results["measures"][name] = {
                "label": about.label,
                "better": better,
                "section": "benchmarks",
                "meaning": about.meaning,
            }
            sample = benchmarks.sizes[name.partition("/")[0]]
            results["arms"][arm]["measures"][name] = {**known(estimate.as_dict()), "sample": sample}
            if arm != "before" and name in pooled["before"]:
                results["comparisons"][arm][name] = change(estimate, pooled["before"][name], about)


def change(estimate: Estimate, baseline: Estimate, about: public.Figure) -> dict[str, Any]:
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
