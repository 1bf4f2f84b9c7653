"""The arms that sample with vLLM: why one cannot run here, its server, and who gets which GPU.

A server runs only as long as its arm. It begins before the trainer, because vLLM takes a share of the memory that it
finds free, and it gets the second GPU where there is one.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.processes import ArmError, has, reason_in, said_to, since, started
from benchmarks.provenance import environment_of_others
from benchmarks.settings import Settings
from lit_debias.models.sources import resolve

SHARED, ALONE = 0.3, 0.9
"""Of a GPU's memory, what vLLM gets beside a trainer, and alone: TRL's own values for both."""
SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",  # where TRL and its server meet
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # a trainer shares the cores
}
ON_CPU = ("--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192")
OURS = ("--enable-lora", "--max-loras", "2", "--max-lora-rank", "16")
TRLS = ("--weight-transfer-config", json.dumps({"backend": "nccl"}), "--max-logprobs", "-1")
"""As TRL's guide and its `trl vllm-serve` start vLLM's server."""
ROOM = 256
"""Tokens of a completion and its prompt that a server takes at least: an engine asks questions of its own."""
GRACE = 20.0
"""Seconds that a server may take to end by itself."""
PLUGIN = "lit_debias_vllm"


@dataclass(frozen=True)
class Pythons:
    """Whose environment an arm runs in."""

    ours: str
    """Runs lit-debias."""
    trl: str
    """Has TRL, and vLLM for TRL's arms with vLLM."""
    vllm: str
    """Has vLLM, for the server of lit-debias; and lit-debias, for vLLM inside of its process."""

    def server(self, side: str) -> str:
        """Return whose vLLM serves a side."""
        return self.trl if side == "trl_side" else self.vllm

    def trainer(self, side: str, engine: str) -> str:
        """Return whose lit-debias or TRL trains."""
        if side == "trl_side":
            return self.trl
        return self.vllm if engine == "colocated" else self.ours


@dataclass(frozen=True)
class GPUs:
    """What ``CUDA_VISIBLE_DEVICES`` is for whom; None leaves it as it is."""

    trainer: str | None = None
    server: str | None = None

    @classmethod
    def shared_out(cls, count: int, visible: str | None) -> GPUs:
        """Give the trainer the first GPU and a server the second; one GPU, or none, is both's.

        Args:
            count: GPUs that torch sees.
            visible: ``CUDA_VISIBLE_DEVICES`` of this process.
        """
        names = visible.split(",") if visible else [str(index) for index in range(count)]
        return cls(names[0], names[1]) if count > 1 else cls()

    @property
    def several(self) -> bool:
        """Whether a server has a GPU of its own."""
        return self.server is not None

    def environment(self, own: Mapping[str, str], *, server: bool = False) -> dict[str, str]:
        """Return the variables of a trainer or of a server."""
        chosen = self.server if server else self.trainer
        return {**own, **SWITCHES, **({} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen})}


def why_not(side: str, settings: Settings, pythons: Pythons, gpus: GPUs) -> str | None:
    """Return why an arm cannot run here, or None.

    Args:
        side: ``our_side`` or ``trl_side``.
        settings: With the arm's engine.
        pythons: What can be imported where.
        gpus: How many there are.
    """
    if side == "trl_side":
        return _why_not_trl(settings, pythons, gpus)
    if settings.engine == "local":
        return None
    if not has(pythons.ours, PLUGIN):
        return "the plugin lit-debias-vllm is not installed"
    if not has(pythons.vllm, "vllm"):
        return f"no vLLM: --vllm-python {pythons.vllm} cannot import it"
    if settings.engine == "colocated" and not has(pythons.vllm, "lightning", PLUGIN):
        return f"no lit-debias beside vLLM: install it and its plugin lit-debias-vllm for --vllm-python {pythons.vllm}"
    return None


def _why_not_trl(settings: Settings, pythons: Pythons, gpus: GPUs) -> str | None:
    if not has(pythons.trl, "trl"):
        return f"no TRL: --trl-python {pythons.trl} cannot import it"
    if settings.engine == "local":
        return None
    if not has(pythons.trl, "vllm"):
        return f"no vLLM beside TRL: --trl-python {pythons.trl} cannot import it; install 'trl[vllm]==1.16.0' there"
    if settings.device == "cpu":
        return "TRL brings weights to vLLM on GPUs only: vLLM's CPU build packs its own, and NCCL needs CUDA"
    if settings.quantization == "nf4":
        return "TRL sends vLLM the packed 4-bit weights, which vLLM does not load (TRL's issue 4973)"
    if settings.engine == "server" and not gpus.several:
        return "TRL's weights reach its server through NCCL, which takes no GPU twice: it needs a second one"
    return None


# ---------------------------------------------------------------- servers


def server_command(side: str, settings: Settings, python: str, port: int, share: float) -> list[str]:
    """Return the command line of an arm's server: vLLM's own, which `trl vllm-serve` starts too."""
    options = {
        "--model": resolve(settings.model),
        "--served-model-name": "base",
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": settings.dtype,
        "--max-model-len": longest_of(settings),
        "--max-num-seqs": settings.completions,
        "--generation-config": "vllm",
        "--logprobs-mode": "processed_logprobs",
    }
    if settings.device == "cuda":
        options["--gpu-memory-utilization"] = share
    given = [text for name, value in options.items() for text in (name, str(value))]
    more = (*(TRLS if side == "trl_side" else OURS), *(ON_CPU if settings.device == "cpu" else ()))
    return [python, "-m", "vllm.entrypoints.openai.api_server", *given, *more]


def longest_of(settings: Settings) -> int:
    """Return the tokens of a completion and its prompt that an engine's vLLM takes."""
    return max(settings.prompt_tokens + settings.completion_tokens, ROOM)


@dataclass
class Servers:
    """Starts the server that an arm needs, and ends it."""

    pythons: Pythons
    minutes: float
    """Limit of its start."""
    gpus: GPUs = field(default_factory=GPUs)
    logs: Path | None = None
    """Folder that gets what it says."""

    @contextmanager
    def for_arm(self, arm: str, side: str, settings: Settings) -> Iterator[Settings]:
        """Within the context an arm's server is there, if it needs one; yields settings that say where.

        Raises:
            ArmError: it does not start.
        """
        if settings.engine != "server":
            yield replace(settings, vllm_share=SHARED)
            return
        share, port = ALONE if self.gpus.several else SHARED, free_port()
        command = server_command(side, settings, self.pythons.server(side), port, share)
        environment = self.gpus.environment(environment_of_others(), server=True)
        with said_to(self.logs and self.logs / f"{arm}.vllm.log") as said:
            before = said.tell()
            with started(command, said, environment, GRACE) as process:
                url = f"http://127.0.0.1:{port}"
                if not self._is_well(process, url):
                    why = f"not well after {self.minutes:g} minutes" if process.poll() is None else "it ended"
                    raise ArmError(f"vLLM's server: {why}: {reason_in(since(said, before))}")
                yield replace(settings, vllm_url=url, vllm_share=share)

    def _is_well(self, process: subprocess.Popen[bytes], url: str) -> bool:
        """Wait until a server answers, it ends, or its time is up."""
        last = time.monotonic() + 60 * self.minutes
        while time.monotonic() < last and process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
            time.sleep(0.5)
        return False


def free_port() -> int:
    """Return the number of a port that nobody listens at now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# ---------------------------------------------------------------- what both sides' processes take from the settings


def engine_of(settings: Settings) -> Any:
    """Return the engine of lit-debias that samples with vLLM."""
    engines = import_module(PLUGIN)
    if settings.engine == "server":
        return engines.VLLMEngine([settings.vllm_url], max_new_tokens=settings.completion_tokens)
    return engines.ColocatedVLLMEngine(
        max_new_tokens=settings.completion_tokens,
        gpu_memory_utilization=settings.vllm_share,
        sleep_level=0,  # TRL's vLLM does not sleep either
        max_model_len=longest_of(settings),
    )


def grpo_config(settings: Settings) -> dict[str, Any]:
    """Return what ``GRPOConfig`` gets: TRL's defaults, and what its guide says to set."""
    if settings.engine == "local":
        return {}
    if settings.engine == "server":
        where = {"vllm_server_base_url": settings.vllm_url, "vllm_group_port": free_port()}
        return {"use_vllm": True, "vllm_mode": "server", **where}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": settings.vllm_share,
        "vllm_max_model_length": settings.prompt_tokens + settings.completion_tokens,
    }


def vllm_version(settings: Settings) -> dict[str, str]:
    """Return the version of the vLLM that sampled, by its name."""
    if settings.engine == "local":
        return {}
    if settings.engine == "colocated":
        return {"vllm": import_module("vllm").__version__}
    with urllib.request.urlopen(f"{settings.vllm_url}/version", timeout=30) as reply:
        return {"vllm": json.load(reply)["version"]}
