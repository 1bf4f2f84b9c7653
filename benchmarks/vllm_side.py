"""vLLM's rollouts, in an environment of its own that knows nothing of lit-debias; called by ``benchmarks.rollout``."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


def timed(task: dict[str, Any]) -> dict[str, Any]:
    """Return seconds of each repeat and peak memory.

    Args:
        task: ``model`` (a folder), ``dtype``, ``prompts`` ([P] lists of token ids), ``group_size`` G,
            ``completion_tokens`` T, ``warmup`` and ``repeats``.

    Raises:
        RuntimeError: a rollout has another number of tokens than P x G x T.
    """
    from vllm import LLM, SamplingParams

    longest = max(map(len, task["prompts"])) + task["completion_tokens"]
    rows = len(task["prompts"]) * task["group_size"]
    llm = LLM(task["model"], dtype=task["dtype"], max_model_len=longest, max_num_seqs=rows, enforce_eager=True)
    prompts = [{"prompt_token_ids": ids} for ids in task["prompts"]]
    seconds = []
    for seed in range(task["warmup"] + task["repeats"]):
        sampling = SamplingParams(
            n=task["group_size"],
            max_tokens=task["completion_tokens"],
            ignore_eos=True,
            logprobs=0,  # of the sampled tokens, as GRPO wants them
            seed=seed,
        )
        start = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
        tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        if tokens != rows * task["completion_tokens"]:
            raise RuntimeError(f"vLLM sampled {tokens} tokens, not {rows * task['completion_tokens']}")
    return {"seconds": seconds[task["warmup"] :], "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """Return the largest resident memory of this process and of the engine's, added up; 0 where Linux is not there."""
    import psutil  # vLLM needs it

    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [Path(f"/proc/{process.pid}/status") for process in processes]
    texts = [status.read_text() for status in found if status.is_file()]
    return sum(int(size) * 1024 for text in texts for size in re.findall(r"VmHWM:\s+(\d+) kB", text))


if __name__ == "__main__":  # a guard that vLLM's worker processes need
    Path(sys.argv[2]).write_text(json.dumps(timed(json.loads(Path(sys.argv[1]).read_text()))))
