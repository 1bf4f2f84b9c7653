"""What ``lit-debias ray`` and engines use of Ray's actors, in this process."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class RayError(Exception):
    """As ``ray.exceptions.RayError``."""


class Ref:
    """What a call has brought."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.value, self.error = None, None
        try:
            self.value = function(*arguments)
        except RayError as error:
            self.error = error


class Actor:
    """An actor: ``actor.method.remote(...)`` calls the method of ``instance``."""

    def __init__(self, instance: Any) -> None:
        self.instance = instance

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: Ref(getattr(self.instance, name), *arguments))


class Ray(ModuleType):
    """``actors`` are those with a name; ``options`` what each was made with; ``killed`` those that were."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.actors: dict[str, Actor] = {}
        self.options: dict[str, dict[str, Any]] = {}
        self.killed: list[Actor] = []
        self.late = False  # nothing is done in time
        self.exceptions = SimpleNamespace(RayError=RayError)
        self.cluster = {"CPU": 2.0}
        self.make: Any = None  # makes what is behind an actor

    def cluster_resources(self) -> dict[str, float]:
        return self.cluster

    def remote(self, cls: type) -> Any:
        def options(name: str, **given: Any) -> Any:
            def create(*arguments: Any) -> Actor:
                self.options[name] = given
                self.actors[name] = Actor(self.make(*arguments))
                return self.actors[name]

            return SimpleNamespace(remote=create)

        return SimpleNamespace(options=options)

    def get_actor(self, name: str) -> Actor:
        if name not in self.actors:
            raise ValueError(f"Failed to look up actor with name '{name}'.")
        return self.actors[name]

    def get(self, ref: Any, timeout: float | None = None) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def wait(self, refs: list[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
        return ([], refs) if self.late else (refs, [])

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)


@pytest.fixture
def ray(monkeypatch):
    stand_in = Ray()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    return stand_in
