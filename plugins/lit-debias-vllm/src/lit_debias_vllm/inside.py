"""vLLM inside this process: started once, asleep between rollouts."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from lit_debias.plugins import ResumableError, UserError, cause_of, rank, world_size
from lit_debias_vllm.sampling import Completion, Sampling
from lit_debias_vllm.server import Way
from lit_debias_vllm.versions import Version

NAME = "ColocatedVLLMEngine"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for ``max_lora_rank``."""
BATCHED = 8192
"""Tokens of a batch on a CPU, where prompts must be read whole: a seeded one that is cut ends the process."""


class Inside:
    """vLLM in this process.

    Args:
        model: Folder or hub id of the base.
        dtype: Of its weights.
        device: Of the policy.
        way: How weights come to it.
        adapter_rank: Of the policy's adapter.
        sleeps: Leave the device's memory to the update between rollouts.
        options: What ``vllm.LLM`` is given beside all that.

    Raises:
        UserError: vLLM is not installed, does not start, or would take another GPU.
    """

    def __init__(
        self,
        model: str,
        dtype: str,
        device: torch.device,
        way: Way,
        adapter_rank: int,
        sleeps: bool,
        options: Mapping[str, Any],
    ) -> None:
        _check_device(device)
        vllm = _vllm()
        self.on_cpu = bool(_part("vllm.platforms").current_platform.is_cpu())
        self.way: Way = way
        self.sleeps = sleeps and not self.on_cpu
        if sleeps and self.on_cpu:
            rank_zero_info(f"{NAME}: vLLM does not sleep on a CPU; its weights and its cache keep their memory.")
        given = {**_defaults(model, dtype, self.on_cpu), "enable_sleep_mode": self.sleeps, **_of_ranks(), **options}
        if way == "adapter":
            given |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank_for(adapter_rank), **options}
        self._vllm: Any = vllm
        with _own_settings():
            try:
                self._llm: Any = vllm.LLM(**given)
            except Exception as error:
                raise UserError(f"{NAME}: vLLM does not start: {cause_of(error)}; {ADVICE}") from error
        self.longest = int(self._llm.llm_engine.model_config.max_model_len)
        self.version = ""
        self._adapter: Any = None
        self._asleep = False

    # ---------------------------------------------------------------- memory

    @contextmanager
    def awake(self) -> Iterator[bool]:
        """Have the device's memory within the context; yields whether it was asleep before."""
        slept = self._asleep
        if slept:
            torch.cuda.empty_cache()  # what the update has left over
            self._llm.wake_up()
            self._asleep = False
        try:
            with isolate_rng():  # its sampler draws from the process's own numbers, too
                yield slept
        finally:
            if self.sleeps:
                self._llm.sleep(level=1)
                self._asleep = True

    # ---------------------------------------------------------------- weights

    def bring(self, version: Version) -> None:
        """Take a version of the policy; does nothing where it is the one it has."""
        if self.version != version.name:
            try:
                (self._bring_adapter if self.way == "adapter" else self._bring_merged)(version)
            except UserError:
                raise
            except Exception as error:
                raise failed(error) from error
            self.version = version.name

    def _bring_adapter(self, version: Version) -> None:
        number = self._adapter.lora_int_id if self._adapter else 0
        if number:
            self._llm.llm_engine.remove_lora(number)
        request = _part("vllm.lora.request").LoRARequest
        self._adapter = request(version.name, number + 1, str(version.adapter()))  # a number is never used again
        self._llm.llm_engine.add_lora(self._adapter)

    def _bring_merged(self, version: Version) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(version.merged())})
        self._llm.reset_prefix_cache()

    # ---------------------------------------------------------------- sampling

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        is_enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield number and completions of each prompt, as its group ends.

        Args:
            prompts: Token ids.
            sampling: How.
            seeds: Of each prompt's first completion.
            is_enough: Asked after each token; True ends all groups that were not yielded.

        Raises:
            UserError: vLLM fails.
        """
        engine = self._llm.llm_engine
        asked = [{"prompt_token_ids": list(prompt), "cache_salt": self.version} for prompt in prompts]
        how = [self._vllm.SamplingParams(detokenize=False, **sampling.parameters(seed)) for seed in seeds]
        waiting: dict[str, tuple[int, str]] = {}
        try:
            for number, name in enumerate(self._llm.enqueue(asked, how, self._adapter, use_tqdm=False)):
                waiting[name.partition("-")[0]] = number, name  # vLLM adds random letters to its own counter
            while waiting and not is_enough():
                for output in engine.step():
                    if output.finished:
                        number, _ = waiting.pop(output.request_id)
                        yield number, sampling.read(_reply(output.outputs, self.version), self.version, "vLLM")
        except UserError:
            raise
        except Exception as error:
            raise failed(error) from error
        finally:
            engine.abort_request([name for _, name in waiting.values()], internal=True)


ADVICE = (
    "a smaller gpu_memory_utilization or max_model_len leaves more memory to the policy; VLLM_LOGGING_LEVEL=INFO shows "
    "what vLLM does"
)


def failed(error: Exception) -> ResumableError:
    """Return what to raise where vLLM fails in the middle of a run."""
    return ResumableError(f"{NAME}: vLLM fails: {cause_of(error)}; {ADVICE}")


def _vllm() -> ModuleType:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when it starts: no process of its own
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"{NAME}: vLLM is not installed here ({cause_of(error)}); pip install vllm, or use VLLMEngine, whose "
            "servers have an environment of their own"
        ) from error


def _part(name: str) -> Any:
    return importlib.import_module(name)


def _defaults(model: str, dtype: str, on_cpu: bool) -> dict[str, Any]:
    whole_prompts = {"enable_chunked_prefill": False, "max_num_batched_tokens": BATCHED} if on_cpu else {}
    return {
        "model": model,
        "dtype": dtype,
        "generation_config": "vllm",  # the policy's own ends and temperature, not those of a file
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,  # of nothing: each completion has a seed of its own
        **whole_prompts,
    }


def _of_ranks() -> dict[str, Any]:
    """Return how vLLM joins the processes of a run: each has a model of its own, on the device of its number."""
    if world_size() == 1:
        return {}
    os.environ.setdefault("RANK", str(rank()))
    os.environ.setdefault("LOCAL_RANK", str(rank()))
    return {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": 1}


def _check_device(device: torch.device) -> None:
    """Refuse to start where vLLM would take another GPU than the policy's, and make it this process's."""
    taken = int(os.environ.get("LOCAL_RANK", rank())) if world_size() > 1 else 0
    if device.type == "cuda" and device.index not in (None, taken):
        raise UserError(
            f"{NAME}: the policy is on {device}, and vLLM takes cuda:{taken}; name the GPUs in CUDA_VISIBLE_DEVICES, "
            "and write their number as trainer.devices"
        )


def _rank_for(adapter_rank: int) -> int:
    return next((size for size in RANKS if size >= adapter_rank), adapter_rank)


@contextmanager
def _own_settings() -> Iterator[None]:
    """Keep random states and the function that sets torch's threads as they are: vLLM replaces both."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with isolate_rng():
            yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)


def _reply(outputs: Sequence[Any], model: str) -> dict[str, Any]:
    """Return completions as a server sends them, so that both are read alike."""
    return {"model": model, "choices": [_choice(output) for output in outputs]}


def _choice(output: Any) -> dict[str, Any]:
    ids = list(output.token_ids)
    logprobs = [of_token[token].logprob for token, of_token in zip(ids, output.logprobs, strict=True)]
    found = {"token_logprobs": logprobs}
    return {"index": output.index, "token_ids": ids, "logprobs": found, "finish_reason": output.finish_reason}
