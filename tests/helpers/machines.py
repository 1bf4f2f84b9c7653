"""Two machines made of one: each has a network, a home and a folder of its own, and one cable joins them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HELPERS = Path(__file__).parent
PORT = 29555
"""Of the first machine, where every network is one's own."""


@dataclass(frozen=True)
class Machine:
    """Where commands run as if on a machine of their own."""

    number: int
    folder: Path
    """Working folder; ``home`` within it is the home."""
    network: str | None
    """Name of its network namespace and of its end of the cable; None for that of this machine."""

    def start(self, command: Sequence[str], **variables: str) -> subprocess.Popen[str]:
        """Start a Python command; stdout and stderr come together."""
        inside = [] if self.network is None else ["ip", "netns", "exec", self.network]
        return subprocess.Popen(
            [*inside, sys.executable, *command],
            cwd=self.folder,
            env=self._environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("PL_GLOBAL_SEED", "LIT_DEBIAS_CACHE")}
        path = os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path, "HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return kept | own | {"GLOO_SOCKET_IFNAME": self.network or "lo"}


@contextmanager
def networks(names: Sequence[str]) -> Iterator[None]:
    """Join two network namespaces by a cable; 10.9.0.1 and 10.9.0.2 are known within them alone.

    Raises:
        OSError: this process has no right to make them, or no ``ip``.
    """
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1], "netns", names[1])
        for number, name in enumerate(names, 1):
            _ip("-n", name, "addr", "add", f"10.9.0.{number}/24", "dev", name)
            for device in (name, "lo"):
                _ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    if shutil.which("ip") is None:
        raise OSError("there is no command ip")
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


def torchrun(machine: Machine, address: str, port: int, *command: str, **variables: str) -> subprocess.Popen[str]:
    """Start an agent with one process of ``lit-debias``, of two agents."""
    place = ["--master-addr", address, "--master-port", str(port), "--node-rank", str(machine.number)]
    agent = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *place]
    return machine.start([*agent, "-m", "lit_debias", *command], **variables)


def ended(processes: Sequence[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str]]:
    """Return exit code and output of each; none is left behind."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
