"""Public benchmarks as part of an evaluation: which ones, on what sample, and the file that keeps an arm's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_debias.errors import UserError
from lit_debias.evaluation import public
from lit_debias.evaluation.fingerprint import describe, fingerprint
from lit_debias.evaluation.records import load_kept, write_json
from lit_debias.policy import QLoRAPolicy
from lit_debias.rewards.suite import RewardSuite

Figures = dict[str, dict[str, Any]]


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

    @property
    def total(self) -> int:
        """Items that one arm is asked."""
        return sum(len(sample.items) for sample in self._samples)

    @property
    def notes(self) -> list[str]:
        """What a reader should know of samples that are not the whole benchmark."""
        return [sample.note for sample in self._samples if sample.note]

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the figures depend on, as JSON; files by their content."""
        files = [describe(str(Path(self.folder) / name)) for name in self.names]
        return {**asdict(self), "names": list(self.names), "files": files}

    def figures(
        self,
        path: Path,
        settings: Mapping[str, Any],
        ask: Callable[[], tuple[QLoRAPolicy, RewardSuite, Callable[[int], None]]],
    ) -> Figures:
        """Return an arm's figures: those of the file at ``path`` where it has the same settings, or new ones.

        Args:
            path: Where the figures are kept.
            settings: What they depend on besides :meth:`about`.
            ask: Returns the loaded policy, the judges, and what is told of progress; called only if needed.
        """
        key = fingerprint({**settings, **self.about})
        found: Figures | None = load_kept(path, "figures", key)
        if found is None:
            policy, judges, advance = ask()
            found = public.measure(
                policy, self.names, self.folder, self.limit, self.seed, self.bootstrap, judges, advance
            )
            write_json(path, {"fingerprint": key, "figures": found})
        return found

    @cached_property
    def _samples(self) -> list[public.Sample]:
        return public.samples(self.names, self.folder, self.limit, self.seed)


def add_figures(results: dict[str, Any], figures: Mapping[str, Figures]) -> None:
    """Put the figures of every arm, by its name, into the results as measures of the section "benchmarks"."""
    for arm, found in figures.items():
        results["arms"][arm]["measures"].update(found)
        for name in found:
            about = public.about(name)
            better = f"toward {about.ideal:g}" if about.better == "toward" else about.better
            results["measures"][name] = {"label": about.label, "better": better, "section": "benchmarks"}
