"""vLLM as a server and offline, both with the same options, threads and cores, in processes of its own environment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_debias.errors import UserError

ANSWER = "rollout: "  # as the side has it, whose module belongs to another environment
READY_SECONDS = 900
SIDE = Path(__file__).with_name("vllm_offline_side.py")
PLUGIN = Path(__file__).parent.parent / "plugins" / "lit-debias-vllm" / "src"


def options_of(model: str, rows: int, longest: int, adapter_rank: int | None) -> dict[str, Any]:
    """Return vLLM's options, as ``vllm.LLM`` takes them.

    Args:
        model: Folder of the base.
        rows: Completions at once.
        longest: Tokens of a prompt and its completion.
        adapter_rank: None where weights come merged.
    """
    adapters = {"enable_lora": True, "max_loras": 2, "max_lora_rank": max(8, adapter_rank)} if adapter_rank else {}
    return {
        "model": model,
        "dtype": "bfloat16",
        "max_model_len": longest,
        "max_num_seqs": rows,
        "logprobs_mode": "processed_logprobs",
        "enable_chunked_prefill": False,  # a seeded prompt that is cut ends a CPU server
        "max_num_batched_tokens": max(8192, longest),
        **adapters,
    }


def flags(options: Mapping[str, Any]) -> list[str]:
    """Return the same as a server's command line."""
    found = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        found += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return found


def environment(threads: int) -> dict[str, str]:
    """Return that of both: as many threads, and no core of their own."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_WAIT_POLICY")}
    return own | {
        "PYTHONPATH": str(PLUGIN),  # of which the server imports lit_debias_vllm_server alone
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "HF_HUB_OFFLINE": "1",
    }


class Offline:
    """A process with ``vllm.LLM``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def answer(self) -> dict[str, Any]:
        """Return what it says next.

        Raises:
            UserError: it has ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return dict(json.loads(line.removeprefix(ANSWER)))
        raise UserError(f"offline vLLM ended with exit status {self.process.wait()}; its messages stand above")

    def rollout(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``seconds`` and ``tokens`` of a rollout."""
        assert self.process.stdin is not None
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return self.answer()


@contextmanager
def offline(python: str, options: Mapping[str, Any], threads: int) -> Iterator[Offline]:
    """Within the context offline vLLM is ready."""
    with _started([python, str(SIDE), json.dumps(options)], threads) as process:
        side = Offline(process)
        side.answer()
        yield side


@contextmanager
def server(python: str, options: Mapping[str, Any], threads: int) -> Iterator[str]:
    """Within the context a server answers at the address that is yielded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ["--host", "127.0.0.1", "--port", str(port), "--worker-extension-cls", "lit_debias_vllm_server.Receiver"]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *flags(options), *own]
    with _started(command, threads) as process:
        _wait(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"


def _wait(url: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise UserError("vLLM's server does not start; its messages stand above")


@contextmanager
def _started(command: Sequence[str], threads: int) -> Iterator[subprocess.Popen[str]]:
    served = "--port" in command
    try:
        process = subprocess.Popen(
            command,
            env=environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if served else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"--vllm-python {command[0]}: {error.strerror}; write the Python of an environment") from error
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.communicate()
