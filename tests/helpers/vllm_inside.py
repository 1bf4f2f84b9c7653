"""What the package ``vllm`` is to an engine that has it inside its process, with a plain Hugging Face model behind it.

Names, arguments and fields are those of vLLM 0.32; a test where vLLM is installed holds them to that.
"""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from vllm_server import adapted, choice

ARGUMENTS = {
    *("model", "dtype", "generation_config", "logprobs_mode", "disable_log_stats", "use_tqdm_on_load", "seed"),
    *("gpu_memory_utilization", "max_model_len", "enable_sleep_mode", "enforce_eager", "kv_cache_memory_bytes"),
    *("enable_lora", "max_loras", "max_lora_rank", "enable_chunked_prefill", "max_num_batched_tokens", "max_num_seqs"),
    *("distributed_executor_backend", "tensor_parallel_size"),
}
PARAMETERS = {
    *("n", "max_tokens", "temperature", "stop_token_ids", "seed", "logprobs", "detokenize", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos"),
}


class LLM:
    """``deaf`` takes weights and samples from its own; ``fails`` is raised at the start; ``calls`` is what it did."""

    deaf = False
    fails: Exception | None = None
    made: list[LLM] = []  # noqa: RUF012

    def __init__(self, model: str, **options: Any) -> None:
        assert not options.keys() - ARGUMENTS, options.keys() - ARGUMENTS
        torch.manual_seed(0)  # vLLM does, in this process
        torch.set_num_threads = lambda number: None
        if self.fails is not None:
            raise self.fails
        self.options: dict[str, Any] = {"model": model, **options}
        self.original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.base = self.original
        self.calls: list[str] = []
        self.asleep = False
        self.llm_engine = Engine(self)
        self.made.append(self)

    def enqueue(
        self, prompts: list[Any], sampling_params: list[Any], lora_request: Any = None, use_tqdm: bool = True
    ) -> list[str]:
        assert not use_tqdm
        self.calls.append("enqueue")
        return [self.llm_engine.add(*each, lora_request) for each in zip(prompts, sampling_params, strict=True)]

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[None]:
        assert method == "reload_weights"
        assert not self.options.get("enable_lora")
        self.calls.append(method)
        self.base = copy.deepcopy(self.original)
        self.base.load_state_dict(load_file(Path(kwargs["weights_path"]) / "model.safetensors"), strict=False)
        return [None]

    def reset_prefix_cache(self) -> bool:
        return True

    def sleep(self, level: int = 1) -> None:
        assert self.options["enable_sleep_mode"]
        assert level == 1
        assert not self.llm_engine.waiting
        self.calls.append("sleep")
        self.asleep = True

    def wake_up(self) -> bool:
        self.calls.append("wake_up")
        self.asleep = False
        return True


class Engine:
    """Finishes a request in each step, the last one first."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.model_config = SimpleNamespace(max_model_len=llm.options.get("max_model_len") or 512)
        self.waiting: dict[str, tuple[str, Any, Any, Any]] = {}
        self.adapters: dict[int, Any] = {}
        self.counted = 0

    def add(self, prompt: Any, how: Any, adapter: Any) -> str:
        assert not self.llm.asleep
        name = str(self.counted)
        self.counted += 1
        self.waiting[f"{name}-a1b2c3d4"] = (name, prompt, how, adapter)
        return f"{name}-a1b2c3d4"

    def add_lora(self, adapter: Any) -> bool:
        assert self.llm.options["enable_lora"]
        assert len(self.adapters) < self.llm.options["max_loras"]
        self.adapters[adapter.lora_int_id] = adapted(self.llm.original, Path(adapter.lora_path))
        return True

    def remove_lora(self, number: int) -> bool:
        del self.adapters[number]
        return True

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def abort_request(self, names: list[str], internal: bool = False) -> None:
        assert internal
        for name in names:
            del self.waiting[name]
            self.llm.calls.append("abort")

    @torch.inference_mode()
    def step(self) -> list[Any]:
        random.random()  # vLLM's sampler draws from the process's own numbers
        torch.rand(1)
        name, prompt, how, adapter = self.waiting.pop([*self.waiting][-1])
        base = self.llm.original if self.llm.deaf else self.llm.base
        model = base if adapter is None or self.llm.deaf else self.adapters[adapter.lora_int_id]
        body = {**vars(how), "prompt": prompt["prompt_token_ids"]}
        mode = self.llm.options["logprobs_mode"]
        outputs = [completion(choice(model, body, index, mode)) for index in range(how.n)]
        return [SimpleNamespace(request_id=name, finished=True, outputs=outputs)]


def completion(found: dict[str, Any]) -> Any:
    pairs = zip(found["token_ids"], found["logprobs"]["token_logprobs"], strict=True)
    logprobs = [{token: SimpleNamespace(logprob=value)} for token, value in pairs]
    same = {name: found[name] for name in ("index", "token_ids", "finish_reason")}
    return SimpleNamespace(logprobs=logprobs, **same)


def parameters(**given: Any) -> Any:
    assert not given.keys() - PARAMETERS, given.keys() - PARAMETERS
    assert given["temperature"] or given["n"] == 1
    return SimpleNamespace(**given)


def adapter_request(name: str, number: int, path: str) -> Any:
    return SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=path)


def installed(monkeypatch: Any, on_cpu: bool = False) -> type[LLM]:
    """Put the package where it is imported from; return a class of its own for a test."""

    class Fresh(LLM):
        made: list[LLM] = []  # noqa: RUF012

    parts = {
        "vllm": {"LLM": Fresh, "SamplingParams": parameters},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: on_cpu)},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": adapter_request},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return Fresh
