"""How rewards, aggregators, engines and benchmarks of any distribution are found: hook specifications and the manager.

A plugin is a module, named by an entry point of the group ``lit_debias``, with functions marked
:data:`hookimpl`. Importing its classes is what makes their short names known to the command line.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pluggy

from lit_debias.errors import UserError, cause_of, did_you_mean

if TYPE_CHECKING:
    from lit_debias.aggregators import Aggregator
    from lit_debias.benchmark.benchmark import AnyBenchmark
    from lit_debias.rewards.reward import Reward
    from lit_debias.rollout.engine import RolloutEngine
    from lit_debias.types import Rollout, Scores

PROJECT = "lit_debias"
DISABLE_VARIABLE = "LIT_DEBIAS_DISABLED_PLUGINS"
ALLOW_VARIABLE = "LIT_DEBIAS_ALLOWED_PLUGINS"
BUILTINS = "lit_debias.plugins.builtins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """The hooks that a plugin may implement."""

    @hookspec
    def lit_debias_rewards(self) -> list[type[Reward]]:
        """Return the reward classes that this plugin offers."""
        raise NotImplementedError

    @hookspec
    def lit_debias_aggregators(self) -> list[type[Aggregator]]:
        """Return the aggregator classes that this plugin offers."""
        raise NotImplementedError

    @hookspec
    def lit_debias_engines(self) -> list[type[RolloutEngine]]:
        """Return the rollout engine classes that this plugin offers."""
        raise NotImplementedError

    @hookspec
    def lit_debias_benchmarks(self) -> list[type[AnyBenchmark]]:
        """Return the benchmark classes that this plugin offers."""
        raise NotImplementedError

    @hookspec
    def lit_debias_scored(self, rollout: Rollout, scores: Scores) -> None:
        """Look at a training rollout right after it was scored; each plugin sees a copy of its own."""


KINDS = {
    "reward": "lit_debias_rewards",
    "aggregator": "lit_debias_aggregators",
    "engine": "lit_debias_engines",
    "benchmark": "lit_debias_benchmarks",
}


@dataclass(frozen=True)
class Component:
    """One class that a plugin offers."""

    kind: str
    """``reward``, ``aggregator``, ``engine`` or ``benchmark``."""
    cls: type[Any]
    distribution: str
    """Name of the distribution that brought it."""
    version: str

    @property
    def name(self) -> str:
        """The short name that YAML uses."""
        return self.cls.__name__

    @property
    def names(self) -> list[str]:
        """What no other class of its kind may be called: of a benchmark also the name of its figures."""
        own = getattr(self.cls, "name", None) if self.kind == "benchmark" else None
        return [self.name, own] if isinstance(own, str) else [self.name]

    @property
    def summary(self) -> str:
        """First line of the class's docstring."""
        return next(iter((self.cls.__doc__ or "").strip().splitlines()), "")


class PluginManager(pluggy.PluginManager):
    """pluggy's manager for the hooks above, which knows the distribution of each plugin."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(HookSpecs)
        self.origins: dict[str, Distribution] = {}
        """Name of the entry point -> distribution that brought it."""


@cache
def get_plugin_manager() -> PluginManager:
    """Return this process's manager, which :func:`load_plugins` makes at the first call.

    ``get_plugin_manager.cache_clear()`` forgets it: for tests, which install plugins.
    """
    return load_plugins(installed_plugins())


def load_plugins(entry_points: Iterable[tuple[EntryPoint, Distribution]]) -> PluginManager:
    """Return a new manager with every plugin that is allowed and not disabled.

    Where the environment variable ``LIT_DEBIAS_ALLOWED_PLUGINS`` names entry points, no other plugin is imported but
    the built-in one: their packages cannot be, so that a class path in a configuration file does not get round it.

    Args:
        entry_points: What to load, each with the distribution that brings it.

    Raises:
        UserError: a plugin does not import, implements an unknown hook, or repeats the class name of another; or one
            that is allowed is not installed.
    """
    manager = PluginManager()
    found = list(entry_points)
    disabled, allowed = _names(DISABLE_VARIABLE), _names(ALLOW_VARIABLE)
    installed = {entry_point.name for entry_point, _ in found}
    for name in sorted(allowed - installed):
        raise UserError(
            f"{ALLOW_VARIABLE} names '{name}', and no such plugin is installed{did_you_mean(name, installed)}"
        )
    welcome = [pair for pair in found if not allowed or pair[0].name in allowed or pair[0].value == BUILTINS]
    _forbid({_package(entry_point) for entry_point, _ in found}, {_package(entry_point) for entry_point, _ in welcome})
    for entry_point, distribution in welcome:
        if entry_point.name not in disabled:
            _register(manager, entry_point, distribution)
    components(manager)  # duplicates are found here, not at the first look-up
    return manager


def _names(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",")} - {""}


def _package(entry_point: EntryPoint) -> str:
    return entry_point.module.partition(".")[0]


def _forbid(packages: set[str], welcome: set[str]) -> None:
    """Let Python refuse to import packages that are not welcome; None in ``sys.modules`` is its own way to say so."""
    for package in packages - welcome:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]
    for package in welcome:
        if sys.modules.get(package, sys) is None:  # from a call before, with another list
            del sys.modules[package]


def installed_plugins() -> Iterator[tuple[EntryPoint, Distribution]]:
    """Yield the entry points of the group ``lit_debias`` with their distributions, each distribution once.

    A distribution that is on the path several times counts where it is first, as Python imports it.
    """
    for distribution, *_ in _installed().values():
        for entry_point in distribution.entry_points:
            if entry_point.group == PROJECT:
                yield entry_point, distribution


def shadowed_plugins() -> Iterator[tuple[Distribution, Distribution]]:
    """Yield each distribution with plugins, and each other version of it, which is later on the path and unused."""
    for first, *others in _installed().values():
        if any(entry_point.group == PROJECT for each in (first, *others) for entry_point in each.entry_points):
            yield from ((first, other) for other in others if other.version != first.version)


def _installed() -> dict[str, list[Distribution]]:
    """Return what is on the path by name, in one spelling (PEP 503); not what pip has left behind without a name."""
    found = defaultdict(list)
    for distribution in distributions():
        with suppress(Exception):  # metadata that are missing or broken, of whatever is installed beside us
            found[_name(distribution)].append(distribution)
    return found


def _name(distribution: Distribution) -> str:
    """Return a distribution's name in one spelling; ``metadata`` would parse the whole of each file."""
    texts = (distribution.read_text(file) for file in ("METADATA", "PKG-INFO", ""))
    [name] = re.findall(r"^Name:\s*(\S+)", next(filter(None, texts)), re.MULTILINE)[:1]
    return re.sub(r"[-_.]+", "-", name).lower()


def show_scored(manager: PluginManager, rollout: Rollout, scores: Scores) -> None:
    """Call every plugin's ``lit_debias_scored``, each with copies of its own.

    Raises:
        UserError: one of them failed.
    """
    from lit_debias.rewards.settings import kept_settings
    from lit_debias.types import own_copy

    hook = "lit_debias_scored"
    implementations = getattr(manager.hook, hook).get_hookimpls()
    for own in implementations:
        others = [other.plugin for other in implementations if other is not own]
        try:
            with kept_settings():
                manager.subset_hook_caller(hook, others)(rollout=own_copy(rollout), scores=own_copy(scores))
        except UserError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"plugin '{own.plugin_name}': {hook} failed in {place.filename}, line {place.lineno}: "
                f"{cause_of(error)}; mend it, or set {DISABLE_VARIABLE}={own.plugin_name}"
            ) from error


def components(manager: PluginManager) -> list[Component]:
    """Return all classes that the registered plugins offer, in order of kind and name.

    Raises:
        UserError: two classes of one kind share a name, or a hook returns something else than classes.
    """
    found: dict[tuple[str, str], Component] = {}
    for kind, hook in KINDS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            origin = manager.origins.get(implementation.plugin_name)
            distribution, version = (origin.metadata["Name"], origin.version) if origin else ("unknown", "unknown")
            for cls in _classes(implementation, hook, distribution):
                _add(Component(kind, cls, distribution, version), found)
    return [component for (_, name), component in sorted(found.items(), key=itemgetter(0)) if name == component.name]


def _add(component: Component, found: dict[tuple[str, str], Component]) -> None:
    """Put a component among those that were found, under each of its names."""
    for name in component.names:
        other = found.setdefault((component.kind, name), component)
        if other.cls is not component.cls:
            raise UserError(
                f"two {component.kind}s are called {name}: {other.cls.__module__} of {other.distribution} and "
                f"{component.cls.__module__} of {component.distribution}; uninstall one, or name its entry point in "
                f"{DISABLE_VARIABLE}"
            )


def _classes(implementation: pluggy.HookImpl, hook: str, distribution: str) -> list[type[Any]]:
    answer = implementation.function()
    if not isinstance(answer, (list, tuple)) or not all(isinstance(cls, type) for cls in answer):
        raise UserError(f"plugin of {distribution}: {hook}() must return a list of classes, got {answer!r:.80}")
    return list(answer)


def _register(manager: PluginManager, entry_point: EntryPoint, distribution: Distribution) -> None:
    who = f"plugin '{entry_point.name}' of {distribution.metadata['Name']} {distribution.version}"
    if other := manager.origins.get(entry_point.name):
        raise UserError(f"{who} has the name of a plugin of {other.metadata['Name']}; uninstall one of them")
    from lit_debias.rewards.settings import kept_settings

    try:
        manager.origins[entry_point.name] = distribution
        with kept_settings():  # a module may switch gradients off for its own sake
            module = entry_point.load()
        manager.register(module, name=entry_point.name)
        manager.check_pending()
    except (Exception, SystemExit) as error:  # a plugin may raise anything while it is imported
        raise UserError(
            f"{who} does not load: {cause_of(error)}; mend or uninstall it, "
            f"or set {DISABLE_VARIABLE}={entry_point.name}"
        ) from error
