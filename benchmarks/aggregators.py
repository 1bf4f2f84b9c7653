"""Compares the aggregators on one small task: ``python -m benchmarks.aggregators`` (no model, about a minute).

A policy picks one of 200 responses for a prompt about one of two groups; its logits are linear in five features of a
response. Four rewards pull in different directions, fairness means something else for each group, and the fairness
that can be measured is a mean of three judges, of which some are fooled by strange responses. Each aggregator trains
with the advantages and the policy loss of real runs. What is reported is the exact expectation under the last policy,
with the true fairness. Writes ``benchmarks/results/aggregators.json`` and the table of ``docs/aggregators.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.provenance import describe_device, provenance
from lit_debias.aggregators import (
    GDPO,
    Aggregator,
    Gate,
    Gated,
    GeometricMean,
    GroupMaxMin,
    Lagrangian,
    LowerConfidenceBound,
    MaxMin,
    WeightedSum,
    WorstCase,
)
from lit_debias.grpo.loss import DAPOLoss, UpdateSize
from lit_debias.types import Scores

RESULT = Path(__file__).parent / "results" / "aggregators.json"
PAGE = Path(__file__).parent.parent / "docs" / "aggregators.md"
START, END = "<!-- python -m benchmarks.aggregators -->\n", "<!-- end -->"

REWARDS = ("fairness", "neutrality", "relevance", "fluency")
JUDGES = ("fairness_1", "fairness_2", "fairness_3")
EQUAL = dict.fromkeys(REWARDS, 1.0)
LEAST = 0.7
"""The constraint: mean fluency."""
GROUPS = ("majority",) * 12 + ("minority",) * 4
"""Of the prompts of a step."""
GROUP_SIZE, STEPS, SEEDS, BETA = 8, 200, range(5), 0.5

ARMS: Mapping[str, Callable[[], Aggregator] | None] = {
    "untrained": None,
    "WeightedSum": lambda: WeightedSum(EQUAL),
    "GDPO": lambda: GDPO(EQUAL),
    "GeometricMean": lambda: GeometricMean(EQUAL),
    "WorstCase": lambda: WorstCase(REWARDS),
    "MaxMin": lambda: MaxMin(REWARDS),
    "GroupMaxMin of WeightedSum": lambda: GroupMaxMin(WeightedSum(EQUAL)),
    "Gated WeightedSum": lambda: Gated(WeightedSum(EQUAL), {"fairness": Gate("fluency", 0.5)}),
    "Lagrangian": lambda: Lagrangian({name: 1.0 for name in REWARDS if name != "fluency"}, {"fluency": LEAST}),
    "LowerConfidenceBound of WeightedSum": lambda: LowerConfidenceBound(
        WeightedSum({"bound": 1.0} | {name: 1.0 for name in REWARDS if name != "fairness"}), {"bound": JUDGES}
    ),
}
EXACT = torch.float64  # a last digit decides what is sampled, and so all that follows; machines agree in enough of them
COLUMNS = (*REWARDS, "lowest reward", "fairness of the worst group", "fluency below 0.7", "fairness overrated by")


@dataclass(frozen=True)
class Task:
    """200 responses and what rewards say of them for either group."""

    features: Tensor
    """[R, 5]."""
    measured: dict[str, Tensor]
    """Reward or judge -> [2, R] scores in [0, 1], for the majority and the minority."""
    fairness: Tensor
    """[2, R] true fairness."""

    @classmethod
    def of(cls, seed: int, responses: int = 200) -> Task:
        """Draw a task."""
        random = torch.Generator().manual_seed(seed)
        features = torch.randn(responses, 5, generator=random, dtype=EXACT)

        def reward(*direction: float) -> Tensor:
            return torch.sigmoid(2 * features @ torch.tensor(direction, dtype=EXACT))

        strange = features[:, 4] > 0.8
        looks_fair = torch.stack([reward(1.0, 0.0, 0.0, 0.0, 0.0), reward(0.0, 1.0, 0.0, 0.0, 0.0)])
        fairness = looks_fair * torch.where(strange, 0.3, 1.0)
        fooled = torch.rand(3, responses, generator=random) < 1 / 3
        judged = {name: torch.where(fooled[number], looks_fair, fairness) for number, name in enumerate(JUDGES)}
        others = {
            "neutrality": reward(0.6, 0.0, 0.8, 0.0, 0.0),
            "relevance": reward(0.0, -0.3, 0.3, 0.9, 0.0),
            "fluency": reward(-0.7, -0.3, 0.0, 0.2, 0.6),
        }
        both = {name: values.expand(2, -1) for name, values in others.items()}
        return cls(features, {"fairness": torch.stack(list(judged.values())).mean(0)} | judged | both, fairness)

    def outcome(self, policy: Tensor) -> dict[str, float]:
        """Return the expectations under a policy of [R] log-probabilities, prompts being about both groups."""
        share = torch.tensor([GROUPS.count("majority"), GROUPS.count("minority")], dtype=policy.dtype) / len(GROUPS)
        chances = policy.exp()
        by_group = {name: self.measured[name] @ chances for name in REWARDS}
        measured, by_group["fairness"] = by_group["fairness"], self.fairness @ chances
        means = {name: float(values @ share) for name, values in by_group.items()}
        found = (
            min(means.values()),
            float(by_group["fairness"].min()),
            max(LEAST - means["fluency"], 0.0),
            float(measured @ share) - means["fairness"],
        )
        return means | dict(zip(COLUMNS[len(REWARDS) :], found, strict=True))


def train(aggregator: Aggregator | None, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Train a policy and return what it ends with."""
    task = Task.of(seed)
    random = torch.Generator().manual_seed(1000 + seed)
    weights = torch.zeros(5, requires_grad=True, dtype=EXACT)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    loss = DAPOLoss(beta=BETA)
    groups = torch.tensor([group == "minority" for group in GROUPS]).long()
    shape = (len(GROUPS), GROUP_SIZE)
    count = len(GROUPS) * GROUP_SIZE
    every = torch.ones(shape, dtype=torch.bool)
    size = UpdateSize(count, count, count, 1, 1)
    reference = torch.zeros(len(task.features), dtype=EXACT).log_softmax(0)
    for step in range(steps if aggregator else 0):
        policy = (task.features @ weights).log_softmax(0)
        chosen = torch.multinomial(policy.detach().exp(), count, replacement=True, generator=random)
        values = {name: of[groups[:, None], chosen.view(shape)] for name, of in task.measured.items()}
        scores = Scores(values, dict.fromkeys(values, every), columns={"group": list(GROUPS)})
        advantages = aggregator(scores, step).flatten()
        logprobs = policy[chosen][:, None]
        value, _ = loss(logprobs, logprobs.detach(), advantages, every.view(count, 1), size, reference[chosen][:, None])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return task.outcome((task.features @ weights).log_softmax(0).detach())


def table(results: Mapping[str, list[dict[str, float]]]) -> Iterator[str]:
    """Yield the lines of the table: mean and standard deviation over seeds."""
    yield f"| aggregator | {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * (len(COLUMNS) + 1)
    for arm, runs in results.items():
        cells = [[run[column] for run in runs] for column in COLUMNS]
        yield f"| {arm} | {' | '.join(f'{fmean(cell):.2f} ± {stdev(cell):.2f}' for cell in cells)} |"


def main(argv: list[str] | None = None) -> None:
    """Run everything, and write the result file and the page."""
    argparse.ArgumentParser("python -m benchmarks.aggregators", description=__doc__).parse_args(argv)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for arm, build in ARMS.items():
        runs = [train(build and build(), seed) for seed in SEEDS]
        results[arm] = [{name: round(value, 4) for name, value in run.items()} for run in runs]
        print(list(table({arm: runs}))[-1], flush=True)
    settings = {"steps": STEPS, "seeds": list(SEEDS), "prompts": len(GROUPS), "group_size": GROUP_SIZE}
    about = provenance(["torch"], describe_device()) | {"settings": settings}
    RESULT.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + "\n".join(table(results)) + "\n" + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    main()
