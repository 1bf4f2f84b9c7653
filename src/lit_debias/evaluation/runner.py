"""The second stage of an evaluation: every arm is asked, or read where it was asked before."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_debias.benchmark.measuring import Sample
from lit_debias.evaluation.arms import Arm
from lit_debias.evaluation.benchmarked import Asking
from lit_debias.evaluation.duration import how_long, how_long_texts
from lit_debias.evaluation.fingerprint import describe_adapter, differences, fingerprint, identify_model
from lit_debias.evaluation.measures import Estimates
from lit_debias.evaluation.prepare import Plan
from lit_debias.evaluation.readable import check_all
from lit_debias.evaluation.records import Record, load_arm, load_kept, save_arm
from lit_debias.evaluation.results import provenance
from lit_debias.evaluation.texts import Answers, Read
from lit_debias.policy.policy import Policy
from lit_debias.support.devices import best_device
from lit_debias.support.progress import bars

SHOWN = 3
"""Settings that are named where an arm is measured again."""


@dataclass
class Measured:
    """What came out, arm by arm."""

    records: dict[str, list[list[Record]]] = field(default_factory=lambda: defaultdict(list))
    """Name of the arm -> the records of each of its replicas."""
    figures: dict[str, list[Estimates]] = field(default_factory=lambda: defaultdict(list))
    """The same for benchmarks."""
    texts: dict[str, list[Read]] = field(default_factory=lambda: defaultdict(list))
    """The same for measures of texts."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Name of a replica -> what its records depend on."""
    notes: list[str] = field(default_factory=list)
    """Why an arm is missing, or a benchmark of one."""


def measure(plan: Plan, console: Console) -> Measured:
    """Ask every arm; the files of those that were asked the same before are read instead.

    Raises:
        UserError: a model cannot read what it is asked, or a judge leaves [0, 1].
    """
    runner = Runner(plan, console)
    for name, replicas in plan.arms.items():
        for arm in replicas:
            records = runner.run(arm)
            if records is not None:
                runner.measured.records[name].append(records)
                runner.measured.texts[name].append(runner.texts(arm, records))
                runner.measured.figures[name].append(runner.benchmark(arm))
    return runner.measured


class Runner:
    """Runs arms one after the other, and reads those that are there already.

    Args:
        plan: What they are asked.
        console: Where to say what happens.
    """

    def __init__(self, plan: Plan, console: Console) -> None:
        self.plan, self.examiner, self.console = plan, plan.examiner, console
        self.folder = Path(plan.settings.out) / "arms"
        self.rows = plan.to_ask
        self.measured = Measured()
        self._loaded: tuple[str | None, Policy] | None = None
        self._said_how_long = self._said_how_long_texts = False

    def run(self, arm: Arm) -> list[Record] | None:
        """Return the arm's records; None, with a note, where the model cannot take a system prompt."""
        settings = {**self.plan.recorded, "system_prompt": arm.system_prompt, "adapter": describe_adapter(arm.adapter)}
        readers = [model.source for model in (self.examiner.other, self.examiner.encoder) if model is not None]
        kept = {"reader_files": [identify_model(name) for name in readers], "columns": Record.columns()}
        key = fingerprint({**settings, **self._origin(), **kept})
        path = self.folder / f"{arm.name}.json"
        records = load_arm(path, key)
        if records is not None:
            self.console.print(f"{arm.name}: reused from {path}, nothing that it depends on has changed", markup=False)
        else:
            self._say_what_changed(arm, path, settings)
            policy = self._load(arm)
            if arm.system_prompt and (obstacle := policy.encoder.why_no_system(arm.system_prompt)):
                self.measured.notes.append(f"{obstacle}, so nobody could ask it for fairness: no such arm")
                return None
            records = self._examine(arm, policy)
            save_arm(path, key, settings, records)
        self.measured.fingerprints[arm.name] = key
        return records

    def _say_what_changed(self, arm: Arm, path: Path, settings: Mapping[str, Any]) -> None:
        kept = load_kept(path, "settings")
        if kept is None:
            return
        names = list(differences(kept, json.loads(json.dumps(settings)))) or ["the model's files, or what is measured"]
        self.console.print(
            f"{arm.name}: measured again; since {path} these have changed: {', '.join(names[:SHOWN])}"
            + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""),
            markup=False,
            soft_wrap=True,
        )

    def benchmark(self, arm: Arm) -> Estimates:
        """Return the arm's figures of benchmarks; a note says which could not be asked."""
        names = ("quantization", "dtype", "judges", "chat_template_kwargs")
        settings = {**{name: self.plan.recorded[name] for name in names}, **self._origin()}
        settings |= {"system_prompt": arm.system_prompt, "adapter": describe_adapter(arm.adapter)}

        with bars(self.console) as start:

            def ask(due: Sequence[Sample]) -> Asking:
                policy = self._load(arm)
                policy.system_prompt = arm.system_prompt
                self._say_how_long(policy, due)
                advance = start(f"{arm.name}, benchmarks", sum(len(sample.items) for sample in due))
                return policy, self.examiner.judges, advance

            path = self.folder / f"{arm.name}.benchmarks.json"
            found, notes = self.plan.benchmarks.figures(path, settings, ask)
        self.measured.notes += [f"{arm.name}: {note}" for note in notes]
        return found

    def texts(self, arm: Arm, records: Sequence[Record]) -> Read:
        """Return what the measures of texts find in the arm's answers."""

        def sample() -> Answers:
            policy, texts = self._load(arm), self.plan.texts
            policy.system_prompt = arm.system_prompt
            rows = self.plan.to_sample
            if not self._said_how_long_texts:
                self._said_how_long_texts = True
                arms = sum(map(len, self.plan.arms.values()))
                self.console.print(how_long_texts(self.examiner, policy, rows, texts.samples, arms), markup=False)
            with bars(self.console) as start:
                return self.examiner.sample(policy, rows, texts.samples, start(f"{arm.name}, texts", len(rows)))

        path = self.folder / f"{arm.name}.texts.json"
        return self.plan.texts.read(path, self.measured.fingerprints[arm.name], records, sample)

    def _say_how_long(self, policy: Policy, due: Sequence[Sample]) -> None:
        """Say it once, of the first arm that is asked."""
        if not self._said_how_long:
            self._said_how_long = True
            arms = sum(map(len, self.plan.arms.values()))
            for line in how_long(policy, due, self.examiner.judges, arms):
                self.console.print(line, markup=False)

    def _origin(self) -> dict[str, Any]:
        return {"model_files": identify_model(self.plan.settings.model), "versions": provenance()["versions"]}

    def _load(self, arm: Arm) -> Policy:
        if self._loaded is not None and self._loaded[0] == arm.adapter:
            return self._loaded[1]
        base = None
        if self._loaded is None:
            self.examiner.load(best_device())
        else:
            base = self._loaded[1].release()  # the base of all arms is one
        self._loaded = None  # frees what the other one kept beside it
        policy = self.plan.policy(arm).load(best_device(), base=base)
        self._loaded = arm.adapter, policy
        return policy

    def _examine(self, arm: Arm, policy: Policy) -> list[Record]:
        policy.system_prompt = arm.system_prompt
        check_all(policy, self.rows, self.examiner)
        with bars(self.console) as start:
            return self.examiner.examine(policy, self.rows, start(arm.name, len(self.rows)))
