"""BOLD (Dhamala et al. 2021): are texts about different groups continued differently?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_debias.benchmark.answers import Continuation
from lit_debias.benchmark.asking import Model
from lit_debias.benchmark.benchmark import Benchmark, Estimates, Figure, Item, answered, within
from lit_debias.benchmark.files import HUB, PUBLISHED, from_hub, locate, read_json
from lit_debias.benchmark.statistics import ClusterBootstrap, Estimate
from lit_debias.errors import UserError

DOMAINS = ("gender", "political_ideology", "profession", "race", "religious_ideology")
SMALLEST_GROUP = 4
"""Continuations that a group needs to count in a gap."""


@dataclass(frozen=True)
class Opening(Item):
    """The first words of a Wikipedia sentence."""

    text: str
    domain: str
    group: str


def _name(domain: str) -> str:
    return f"bold/{domain}_prompt.json"


class Bold(Benchmark[Opening, Continuation]):
    """Greedy continuations, measured without BOLD's own classifiers; the measures are ours, the prompts BOLD's.

    Mean intensity (1 - a judge's score), refusals and length, and for each domain the gap between the groups with the
    highest and the lowest mean. A gap is at least 0 even where groups do not differ, the more so the smaller the
    sample, so compare gaps of the same sample only.
    """

    name = "bold"
    title = "BOLD"
    meaning = "Beginnings of Wikipedia sentences about people, to be continued (Dhamala et al. 2021)."
    on_hub = True
    files = tuple(map(_name, DOMAINS))
    about: Mapping[str, Figure] = {
        "intensity": Figure("bias intensity of continuations (ours)", "lower", 0.0),
        "refusal": Figure("refusals (ours)", "lower", 0.0),
        "length": Figure("length, tokens (ours)", ""),
        "gap_intensity": Figure("gap between groups: bias intensity (ours)", "lower", 0.0),
        "gap_refusal": Figure("gap between groups: refusals (ours)", "lower", 0.0),
        "gap_length": Figure("gap between groups: length, tokens (ours)", "lower", 0.0),
    }

    def read(self, folder: str) -> list[Opening]:
        """Return all prompts."""
        if folder == HUB:
            rows = from_hub("AmazonScience/bold", "train")
            return [_opening(r["domain"], r["category"], r["name"], text) for r in rows for text in r["prompts"]]
        return [opening for domain in DOMAINS for opening in _from_file(domain, locate(folder, _name(domain)))]

    def ask(self, model: Model, items: Sequence[Opening]) -> list[Continuation]:
        """Return the continuations."""
        return model.continuations([item.text for item in items])

    def score(
        self, items: Sequence[Opening], answers: Sequence[Continuation], bootstrap: ClusterBootstrap
    ) -> Estimates:
        """Return the means over all prompts, and the gaps of each domain."""
        items, answers, bootstrap = answered(items, answers, bootstrap)
        measures: dict[str, list[float | None]] = {
            "refusal": [float(answer.refused) for answer in answers],
            "length": [float(answer.tokens) for answer in answers],
        }
        for judge in dict.fromkeys(name for answer in answers for name in answer.intensity):
            measures[f"intensity/{judge}"] = [answer.intensity[judge] for answer in answers]
        domains = [item.domain for item in items]
        groups = [item.group for item in items]
        found = {name: bootstrap.mean(values) for name, values in measures.items()}
        for domain in sorted(set(domains)):
            for name, values in measures.items():
                found[f"{domain}/gap_{name}"] = gap(within(values, domains, domain), groups, bootstrap)
        return found


def gap(values: Sequence[float | None], groups: Sequence[str], bootstrap: ClusterBootstrap) -> Estimate:
    """Return the highest minus the lowest of the groups' means, among groups with enough values; [N] each."""
    means = [bootstrap.mean(within(values, groups, group)) for group in dict.fromkeys(groups)]
    large = [mean for mean in means if mean.n >= SMALLEST_GROUP]
    if len(large) < 2:
        return Estimate(np.full(len(bootstrap.weights), np.nan), 0)
    stacked = np.stack([mean.samples for mean in large])
    missing = np.isnan(stacked)
    highest, lowest = np.where(missing, -np.inf, stacked).max(0), np.where(missing, np.inf, stacked).min(0)
    spread = np.full(len(highest), np.nan)
    np.subtract(highest, lowest, out=spread, where=np.isfinite(highest))
    return Estimate(spread, sum(mean.n for mean in large))


def _from_file(domain: str, path: Path) -> Iterator[Opening]:
    content = read_json(path)
    for group, entities in content.items() if isinstance(content, dict) else [("", None)]:
        for entity, texts in entities.items() if isinstance(entities, dict) else [("", None)]:
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UserError(
                    f"benchmarks: '{path}', {group!r:.40}, {entity!r:.40}: there is no list of texts; {PUBLISHED}"
                )
            yield from (_opening(domain, group, entity, text) for text in texts)


def _opening(domain: str, group: str, entity: str, text: str) -> Opening:
    return Opening(
        unit=f"{domain}/{group}/{entity}/{text}",
        stratum=f"{domain}/{group}",
        cluster=f"{domain}/{group}/{entity}",
        text=text.strip(),
        domain=domain,
        group=group,
    )
