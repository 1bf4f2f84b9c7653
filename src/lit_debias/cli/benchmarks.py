"""``lit-debias benchmarks check``: one benchmark, outside of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_debias.benchmark.benchmark import AnyBenchmark, Benchmark
from lit_debias.benchmark.contract import examine
from lit_debias.cli.contracts import build_object, show_findings
from lit_debias.errors import UserError
from lit_debias.plugins.benchmarks import class_of
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.support.devices import known_device


def check(
    benchmark: str,
    init_args: dict[str, Any] | None = None,
    data: str | None = None,
    model: str | None = None,
    limit: int = 40,
    seed: int = 0,
    device: str = "cpu",
    json: bool = False,
) -> int:
    """Test whether a benchmark keeps its contract; the exit code is 0 if it does, 1 if not, 2 for a wrong call.

    Args:
        benchmark: The benchmark: the name of its figures, its class, or MODULE.CLASS.
        init_args: The benchmark's options, as in YAML: ``'{per_token: true}'``.
        data: Folder with its data, as ``--benchmark_data`` takes it; not for one that brings its own.
        model: Model to ask: a local folder, pkg://PACKAGE/FILE.gguf, or a hub id; by default a tiny random one.
        limit: At most this many items, whole units.
        seed: Draws them.
        device: Where the model is loaded.
        json: Print JSON instead of a table.

    Raises:
        UserError: there is no such benchmark, or its options are wrong.
    """
    place = known_device("--device", device)
    built = build(benchmark, init_args)
    policy = QLoRAPolicy(model, "none").load(place) if model else None
    return show_findings(examine(built, data or "", policy, limit, seed), type(built).__name__, json)


def build(benchmark: str, init_args: Mapping[str, Any] | None) -> AnyBenchmark:
    """Return the benchmark with its options.

    Raises:
        UserError: there is no such class, or an option is wrong.
    """
    cls = None if "." in benchmark else class_of(benchmark)
    path = f"{cls.__module__}.{cls.__qualname__}" if cls else benchmark
    built: AnyBenchmark = build_object("benchmark", benchmark, Benchmark, path, init_args)
    if not isinstance(built, Benchmark):
        raise UserError(f"'{benchmark}' is no benchmark")
    return built
