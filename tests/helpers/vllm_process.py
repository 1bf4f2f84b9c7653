"""A real vLLM server, in a process group of its own, started as docs/scale.md says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OPTIONS = (
    *("--served-model-name", "base", "--host", "127.0.0.1", "--dtype", "bfloat16", "--max-num-seqs", "64"),
    *("--enable-lora", "--max-loras", "2", "--max-lora-rank", "16", "--logprobs-mode", "processed_logprobs"),
    *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"),
)
HIDE = 'mount -t tmpfs none "$0" && exec "$@"'
SWITCHES = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several servers and a trainer share the cores
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass
class VLLMProcess:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End it with all its processes, as a machine that is switched off."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds: float = 600) -> None:
        """Wait until it is well."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
            else:
                return
        raise AssertionError(f"vLLM does not start: {self.log.read_text()[-3000:]}")


@contextmanager
def started(
    python: str,
    model: Path,
    folder: Path,
    *more: str,
    longest: int = 512,
    path: Path | None = None,
    hidden: Path | None = None,
) -> Iterator[VLLMProcess]:
    """Start a server within the context; it is not well yet, see :meth:`VLLMProcess.wait`.

    Args:
        python: Of an environment with vLLM.
        model: Folder of the base.
        folder: For the log.
        more: Options of the server.
        longest: Tokens of prompt and completion.
        path: What it can import beside its environment.
        hidden: A folder that it does not see: another, empty one lies over it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / f"vllm-{port}.log"
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port), *OPTIONS]
    command += ["--max-model-len", str(longest), *more]
    if hidden is not None:
        command = ["unshare", "--mount", "sh", "-c", HIDE, str(hidden), *command]
    without_ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        without_ours["PYTHONPATH"] = str(path)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=without_ours | SWITCHES, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = VLLMProcess(f"http://127.0.0.1:{port}", process, log)
    try:
        yield server
    finally:
        if process.poll() is None:
            server.kill()
