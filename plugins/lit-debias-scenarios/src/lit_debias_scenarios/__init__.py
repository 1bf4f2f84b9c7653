"""Benchmarks for lit-debias that put a model into scenarios: it decides, recommends, and answers CEB's tasks."""

from lit_debias.benchmark import Benchmark
from lit_debias.plugins import hookimpl
from lit_debias_scenarios.agents import Agents
from lit_debias_scenarios.ceb import Ceb
from lit_debias_scenarios.ceb_writing import CebWriting
from lit_debias_scenarios.recommendation import Recommendation

__all__ = ["Agents", "Ceb", "CebWriting", "Recommendation", "lit_debias_benchmarks"]


@hookimpl
def lit_debias_benchmarks() -> list[type[Benchmark]]:  # type: ignore[type-arg]  # of whatever items
    """Return the benchmarks of this distribution."""
    return [Agents, Ceb, CebWriting, Recommendation]
