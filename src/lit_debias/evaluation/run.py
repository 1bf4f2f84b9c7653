"""``lit-debias evaluate``: prepare, measure, publish."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from lit_debias.evaluation.prepare import prepare
from lit_debias.evaluation.publish import publish
from lit_debias.evaluation.runner import measure
from lit_debias.evaluation.settings import EvaluationSettings
from lit_debias.support.options import options_of


@options_of(EvaluationSettings)
def evaluate(settings: EvaluationSettings) -> dict[str, Any]:
    """Measure bias and utility of a base model, of the base asked for fairness, and of adapters.

    Prompts and their counterfactual twins are answered by sampling, with the same random numbers in every arm. (The
    most probable text of a small model loops, and has the lowest perplexity there is: Holtzman et al., arXiv
    1904.09751.) Bias is measured on open and leading prompts, utility on control prompts too; forced-choice
    prompts are decided by log-probability. What de-biasing may cost is also measured by another language model
    that reads the completions, by how close they are to neutral responses, and by the perplexity on prose that has
    nothing to do with bias. An arm that was measured before with the same settings, data and
    weights is read from OUT/arms instead of being run again.

    An arm may be several adapters, one per training seed. Its figures are means over these replicas, with intervals
    over prompts and seeds; each replica is kept in a file of its own, such as arms/sft.1.json and arms/sft.2.json.

    Returns:
        What OUT/results.json holds.

    Raises:
        UserError: a path, split or number is wrong, or a judge is also a reward.
    """
    console = Console()
    plan = prepare(settings)
    return publish(plan, measure(plan, console), console)
