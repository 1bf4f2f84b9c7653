"""Which benchmarks an option names: installed ones by name, configured ones, and all that need no user data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import Parameter, signature

from lit_debias.benchmark.benchmark import AnyBenchmark, Benchmark
from lit_debias.errors import UserError, cause_of, did_you_mean
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias.plugins.official import missing_plugin

ALL_OFFLINE = "all-offline"
"""Stands for every installed benchmark that brings its own data."""
Chosen = str | Sequence[str | AnyBenchmark]
"""Names separated by commas, or a list of names and of benchmarks with options."""


def benchmark_classes() -> dict[str, type[AnyBenchmark]]:
    """Return name -> class of the installed benchmarks, in the order of names: that of the figures, or of the class.

    A class whose instances alone have a name, by their options, goes by the name of the class.
    """
    found = [component for component in components(get_plugin_manager()) if component.kind == "benchmark"]
    return {name: component.cls for name, component in sorted((c.names[-1], c) for c in found)}


def benchmarks_of(chosen: Chosen) -> list[AnyBenchmark]:
    """Return the benchmarks that an option names, each once.

    Raises:
        UserError: there is no such benchmark, it needs options, or none brings its own data where ``all-offline`` asks
            for those.
    """
    entries = [name.strip() for name in chosen.split(",")] if isinstance(chosen, str) else list(chosen)
    found = [one if isinstance(one, Benchmark) else make(one) for one in _once(entries) if one != ALL_OFFLINE]
    if ALL_OFFLINE in entries:
        there = {benchmark.name for benchmark in found}
        found += [benchmark for benchmark in offline() if benchmark.name not in there]
    return found


def _once(entries: Sequence[str | AnyBenchmark]) -> Iterator[str | AnyBenchmark]:
    """Yield entries without empty names and those that were there before."""
    seen: set[str] = {""}
    for entry in entries:
        if not isinstance(entry, str):
            yield entry
        elif entry not in seen:
            seen.add(entry)
            yield entry


def make(name: str) -> AnyBenchmark:
    """Return an installed benchmark without options.

    Args:
        name: Of its figures, or of its class.

    Raises:
        UserError: there is none, or it cannot be built without options.
    """
    cls = class_of(name)
    if needed := _needed(cls):
        options = ", ".join(f"{option}: ..." for option in needed)
        raise UserError(
            f"benchmarks: '{name}' needs options; write {{class_path: {cls.__name__}, init_args: {{{options}}}}}"
        )
    try:
        return cls()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"benchmarks: '{name}' cannot be built: {cause_of(error)}") from error


def class_of(name: str) -> type[AnyBenchmark]:
    """Return an installed class by the name of its figures, or its own.

    Raises:
        UserError: there is none.
    """
    classes = benchmark_classes()
    cls = classes.get(name) or {each.__name__: each for each in classes.values()}.get(name)
    if cls is None:
        advice = missing_plugin(name) or f"there is no '{name}'{did_you_mean(name, [*classes, ALL_OFFLINE])}"
        raise UserError(f"benchmarks: {advice}")
    return cls


def offline() -> list[AnyBenchmark]:
    """Return the installed benchmarks that bring their own data and need no options.

    Raises:
        UserError: there is none.
    """
    found = [make(name) for name, cls in benchmark_classes().items() if not (cls.needs_data or _needed(cls))]
    if not found:
        raise UserError(
            f"benchmarks: no installed benchmark brings its own data, so {ALL_OFFLINE} names none; write names: "
            f"{', '.join(benchmark_classes())}"
        )
    return found


def _needed(cls: type[AnyBenchmark]) -> list[str]:
    """Return the options that a class has no default for."""
    options = list(signature(cls.__init__).parameters.values())[1:]
    plain = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return [option.name for option in options if option.default is Parameter.empty and option.kind in plain]
