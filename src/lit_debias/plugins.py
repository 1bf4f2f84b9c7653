"""How rewards, aggregators and engines of any distribution are found: hook specifications and the manager.

A plugin is a module, named by an entry point of the group ``lit_debias``, with functions marked
:data:`hookimpl`. Importing its classes is what makes their short names known to the command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import TYPE_CHECKING, Any

import pluggy

from lit_debias.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lit_debias.rewards.aggregators import Aggregator
    from lit_debias.rewards.base import Reward
    from lit_debias.rollout.base import RolloutEngine
    from lit_debias.types import Rollout, Scores

PROJECT = "lit_debias"
DISABLE_VARIABLE = "LIT_DEBIAS_DISABLED_PLUGINS"
ALLOW_VARIABLE = "LIT_DEBIAS_ALLOWED_PLUGINS"
BUILTINS = "lit_debias.builtins"

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
    def lit_debias_scored(self, rollout: Rollout, scores: Scores) -> None:
        """Look at a training rollout right after it was scored; must not change it."""


KINDS = {"reward": "lit_debias_rewards", "aggregator": "lit_debias_aggregators", "engine": "lit_debias_engines"}


@dataclass(frozen=True)
class Component:
    """One class that a plugin offers."""

    kind: str
    """``reward``, ``aggregator`` or ``engine``."""
    cls: type[Any]
    distribution: str
    """Name of the distribution that brought it."""
    version: str

    @property
    def name(self) -> str:
        """The short name that YAML uses."""
        return self.cls.__name__

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


def get_plugin_manager(entry_points: Iterable[tuple[EntryPoint, Distribution]] | None = None) -> PluginManager:
    """Return a new manager with every installed plugin that is allowed and not disabled.

    Where the environment variable ``LIT_DEBIAS_ALLOWED_PLUGINS`` names entry points, no other plugin is imported but
    the built-in one: their packages cannot be, so that a class path in a configuration file does not get round it.

    Args:
        entry_points: What to load; by default the entry points of all installed distributions.

    Raises:
        UserError: a plugin does not import, implements an unknown hook, or repeats the class name of another; or one
            that is allowed is not installed.
    """
    manager = PluginManager()
    found = list(installed_plugins() if entry_points is None else entry_points)
    disabled, allowed = _names(DISABLE_VARIABLE), _names(ALLOW_VARIABLE)
    installed = {entry_point.name for entry_point, _ in found}
    for name in sorted(allowed - installed):
        raise UserError(
            f"{ALLOW_VARIABLE} names '{name}', and no such plugin is installed{did_you_mean(name, installed)}"
        )
    welcome = [pair for pair in found if not allowed or pair[0].name in allowed or pair[0].value == BUILTINS]
    _bar({_package(entry_point) for entry_point, _ in found}, {_package(entry_point) for entry_point, _ in welcome})
    for entry_point, distribution in welcome:
        if entry_point.name not in disabled:
            _register(manager, entry_point, distribution)
    components(manager)  # duplicates are found here, not at the first look-up
    return manager


def _names(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",")} - {""}


def _package(entry_point: EntryPoint) -> str:
    return entry_point.module.partition(".")[0]


def _bar(packages: set[str], welcome: set[str]) -> None:
    """Let Python refuse to import packages that are not welcome; None in ``sys.modules`` is its own way to say so."""
    for package in packages - welcome:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]
    for package in welcome:
        if sys.modules.get(package, sys) is None:  # from a call before, with another list
            del sys.modules[package]


def installed_plugins() -> Iterator[tuple[EntryPoint, Distribution]]:
    """Yield the entry points of the group ``lit_debias`` with their distributions, each distribution once."""
    seen = set()
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name in seen:
            continue
        seen.add(name)
        for entry_point in distribution.entry_points:
            if entry_point.group == PROJECT:
                yield entry_point, distribution


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
                component = Component(kind, cls, distribution, version)
                other = found.setdefault((kind, cls.__name__), component)
                if other.cls is not cls:
                    raise UserError(
                        f"two {kind}s are called {cls.__name__}: {other.cls.__module__} of {other.distribution} and "
                        f"{cls.__module__} of {distribution}; uninstall one, or name its entry point in "
                        f"{DISABLE_VARIABLE}"
                    )
    return [found[key] for key in sorted(found)]


def _classes(implementation: pluggy.HookImpl, hook: str, distribution: str) -> list[type[Any]]:
    answer = implementation.function()
    if not isinstance(answer, (list, tuple)) or not all(isinstance(cls, type) for cls in answer):
        raise UserError(f"plugin of {distribution}: {hook}() must return a list of classes, got {answer!r:.80}")
    return list(answer)


def _register(manager: PluginManager, entry_point: EntryPoint, distribution: Distribution) -> None:
    who = f"plugin '{entry_point.name}' of {distribution.metadata['Name']} {distribution.version}"
    if other := manager.origins.get(entry_point.name):
        raise UserError(f"{who} has the name of a plugin of {other.metadata['Name']}; uninstall one of them")
    try:
        manager.origins[entry_point.name] = distribution
        manager.register(entry_point.load(), name=entry_point.name)
        manager.check_pending()
    except Exception as error:  # a plugin may raise anything while it is imported
        cause = " ".join(str(error).split())
        raise UserError(
            f"{who} does not load: {type(error).__name__}: {cause}; mend or uninstall it, "
            f"or set {DISABLE_VARIABLE}={entry_point.name}"
        ) from error
