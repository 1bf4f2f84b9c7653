"""What happens to a worker or a server of `python -m benchmarks.on_ray` and `on_ray_servers`."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Killed(Callback):
    """Kill the process of one rank before a step, unless a file says that it has been done."""

    def __init__(self, rank: int, step: int, file: str) -> None:
        self.rank, self.step, self.file = rank, step, Path(file)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look whether it is time."""
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step) and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class ServerKilled(Callback):
    """Write down each rollout of an engine, and kill a server of its first rank in the middle of one.

    Args:
        step: Optimiser step whose rollout it is.
        steps: Of the whole run; before the last one the killed server has to be back.
        whole: Kill the actor of Ray, and not the server itself.
        folder: Where a file for each rank goes.
    """

    def __init__(self, step: int, steps: int, whole: bool, folder: str) -> None:
        self.step, self.steps, self.whole, self.folder = step, steps, whole, Path(folder)
        self.killed = ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at each rollout from now on."""
        engine: Any = pl_module.engine
        generate = engine.generate

        def watched(*arguments: Any, **options: Any) -> Any:
            first = iter([True])

            def on_group(number: int, group: Any) -> None:
                if trainer.is_global_zero and trainer.global_step == self.step and next(first, False):
                    self._kill(engine)
                if given is not None:
                    given(number, group)

            given = options.get("on_group")
            if trainer.is_global_zero and trainer.global_step == self.steps - 1:
                self._wait(engine)
            rollout = generate(*arguments, **{**options, "on_group": on_group})
            whole = bool(rollout.completion_mask[..., 0].all())
            self._write(trainer, {"step": trainer.global_step, "groups": rollout.completion_ids.shape[0], "all": whole})
            return rollout

        engine.generate = watched

    def _write(self, trainer: Trainer, line: dict[str, Any]) -> None:
        with (self.folder / f"rollouts-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _kill(self, engine: Any) -> None:
        server = engine._pool.servers[0]
        self.killed = server.address
        port = server.address.rpartition(":")[2]
        for process in [actor_of(server.url)] if self.whole else processes(port):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        (self.folder / "server-killed").write_text(self.killed)

    def _wait(self, engine: Any) -> None:
        """Wait until the server that was killed answers somewhere else."""
        import anyio

        from lit_debias_vllm.on_ray import address_of

        for _ in range(300):
            with suppress(Exception):
                address = anyio.run(address_of, engine._pool.servers[0].url)
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                if address != self.killed:
                    (self.folder / "server-back").write_text(address)
                    return
            time.sleep(1)


def processes(port: str) -> list[int]:
    """Return the processes of a server: those of the process group of the one that was started with this port."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "--port" in words and words[words.index("--port") + 1] == port and "keeper.py" not in words[1]:
                found.append(int(folder.name))
    groups = set(found)
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _group(folder.name) in groups]


def _group(process: str) -> int:
    try:
        return os.getpgid(int(process))
    except ProcessLookupError:
        return -1


def actor_of(url: str) -> int:
    """Return the process of a server's actor."""
    import ray

    actor: Any = ray.get_actor(url.removeprefix("ray://"))
    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))
