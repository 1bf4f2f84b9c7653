"""``python vllm_inside_probe.py MODEL FOLDER``: runs with vLLM inside the process, and what its objects look like.

Where the package ``vllm`` is vLLM, this tells what the one that stands in for it must be like.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from grpo_runs import grpo, trainer

from lit_debias import PromptDataModule
from lit_debias.grpo.correction import ImportanceCorrection
from lit_debias_vllm import ColocatedVLLMEngine, check
from lit_debias_vllm.sampling import Sampling

WAYS = ("adapter", "merged")


def probe(model: Path, folder: Path) -> dict[str, Any]:
    """Return what runs of both ways made, and the shape of what the second one's vLLM says."""
    runs = {}
    for way in WAYS:
        engine = ColocatedVLLMEngine(
            max_new_tokens=12,
            sync=way,
            folder=str(folder / "weights"),
            max_model_len=256,
            engine_args={"kv_cache_memory_bytes": 2**27, "enforce_eager": True},
        )
        runs[way] = run(engine, model, folder / way)
    return {"runs": runs, "seen": seen(engine._inside._llm)}


def run(engine: Any, model: Path, folder: Path) -> dict[str, Any]:
    """Train two steps; return how many were made, and how far vLLM's log-probs are from the policy's, in nats."""
    folder.mkdir(parents=True)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"people from {place} are"}) for place in "abcdefgh"))
    gaps, generate = [], engine.generate

    def watched(policy: Any, *arguments: Any, **options: Any) -> Any:
        before = torch.get_rng_state()
        rollout = generate(policy, *arguments, **options)
        assert torch.equal(torch.get_rng_state(), before)
        gaps.append(check.gap_of(policy, rollout, 1.0).policy)
        return rollout

    engine.generate = watched
    fit = trainer(folder, max_steps=2)
    fit.fit(grpo(model, engine=engine, correction=ImportanceCorrection()), PromptDataModule(str(prompts), batch_size=4))
    return {"steps": fit.global_step, "gaps": gaps}


def seen(llm: Any) -> dict[str, Any]:
    """Return the types of what an engine reads, by name."""
    vllm = sys.modules["vllm"]
    engine = llm.llm_engine
    how = vllm.SamplingParams(detokenize=False, **Sampling(2, 3, 1.0, (2,)).parameters(5))
    prompt = {"prompt_token_ids": [1, 40, 50], "cache_salt": "x"}
    names = llm.enqueue([prompt, prompt], [how, how], None, use_tqdm=False)
    outputs = []
    while len(outputs) < 2:
        outputs += [output for output in engine.step() if output.finished]
    rest = llm.enqueue([prompt], [how], None, use_tqdm=False)
    engine.abort_request(rest, internal=True)
    completion = outputs[0].outputs[0]
    token = completion.token_ids[0]
    return {
        "names": sorted(name.partition("-")[0] for name in names) == sorted(output.request_id for output in outputs),
        "n": [len(output.outputs) for output in outputs],
        "index": sorted(each.index for each in outputs[0].outputs),
        "tokens": [len(each.token_ids) == len(each.logprobs) for each in outputs[0].outputs],
        "logprob": type(completion.logprobs[0][token].logprob).__name__,
        "ended": completion.finish_reason in ("stop", "length"),
        "longest": engine.model_config.max_model_len,
        "aborted": not engine.has_unfinished_requests(),
        "cpu": bool(sys.modules["vllm.platforms"].current_platform.is_cpu()),
        "lora": sys.modules["vllm.lora.request"].LoRARequest("a", 3, "/b").lora_int_id,
    }


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]), Path(sys.argv[2]))))
