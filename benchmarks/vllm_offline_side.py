"""vLLM's own ``LLM.generate``, in an environment of its own; called by ``benchmarks.vllm_engine``.

Reads a line of JSON for each rollout from its input, and writes one with what it took.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

ANSWER = "rollout: "


def serve(options: dict[str, Any]) -> None:
    """Answer until the input ends.

    Args:
        options: Of ``vllm.LLM``.
    """
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(**options)
    say({"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        adapter = LoRARequest("adapter", 1, task["adapter"]) if task["adapter"] else None
        prompts = [{"prompt_token_ids": ids, "cache_salt": task["salt"]} for ids in task["prompts"]]
        start = time.perf_counter()
        sampling = [SamplingParams(**how) for how in task["sampling"]]
        outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=adapter)
        tokens = [[list(each.token_ids) for each in output.outputs] for output in outputs]
        seconds = time.perf_counter() - start
        say({"seconds": seconds, "tokens": sum(len(ids) for group in tokens for ids in group)})


def say(content: dict[str, Any]) -> None:
    print(ANSWER + json.dumps(content), flush=True)


if __name__ == "__main__":  # a guard that vLLM's worker processes need
    serve(json.loads(sys.argv[1]))
