"""ColocatedVLLMEngine with a package that stands in for vLLM: agreement, sleep, versions, refusals."""

from __future__ import annotations

import random
import sys

import pytest
import torch
from grpo_runs import grpo, prompts, trainer  # noqa: F401
from support import perturb
from vllm_inside import installed

from lit_debias import PromptDataModule
from lit_debias.plugins import PromptBatch, UserError
from lit_debias_vllm import ColocatedVLLMEngine, VLLMEngine, colocated, inside

PROMPTS = PromptBatch(["people from the north are", "the rider", "nurses are"])
WAYS = ("adapter", "merged")


@pytest.fixture
def vllm(monkeypatch):
    return installed(monkeypatch)


def engine_in(tmp_path, **options) -> ColocatedVLLMEngine:
    defaults = {"max_new_tokens": 6, "folder": str(tmp_path / "weights"), "sync": "adapter"}
    return ColocatedVLLMEngine(**{**defaults, **options})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_policy(policy, vllm, tmp_path, way, temperature):
    engine = engine_in(tmp_path, sync=way, temperature=temperature)
    for _ in range(2):
        rollout = engine.generate(policy, PROMPTS, 4, seed=3)
        torch.testing.assert_close(rollout.logprobs, policy.logprobs(rollout, temperature), atol=1e-4, rtol=1e-4)
        perturb(policy)  # the second rollout is of another policy
    [llm] = vllm.made
    assert llm.options.get("enable_lora", False) == (way == "adapter")
    assert len(llm.llm_engine.adapters) == (way == "adapter")


def test_completions_are_those_of_a_server_with_the_same_seed(policy, vllm, server, tmp_path):
    told = {}
    engine = engine_in(tmp_path)
    rollout = engine.generate(policy, PROMPTS, 4, seed=3, on_group=told.__setitem__)
    other = VLLMEngine([server.url], 6, sync="adapter", folder=str(tmp_path)).generate(policy, PROMPTS, 4, seed=3)
    assert rollout.texts == other.texts
    assert torch.equal(rollout.truncated, other.truncated)
    assert torch.equal(rollout.completion_mask, other.completion_mask)
    assert [told[number].texts[0] for number in range(3)] == rollout.texts
    greedy = engine.generate(policy, PROMPTS, 2, seed=0, greedy=True)
    assert torch.equal(greedy.completion_ids[:, 0], greedy.completion_ids[:, 1])
    torch.testing.assert_close(greedy.logprobs, policy.logprobs(greedy), atol=1e-4, rtol=1e-4)


def test_every_end_of_the_policy_ends_a_completion(policy, vllm, tmp_path):
    engine = engine_in(tmp_path, max_new_tokens=8)
    free = engine.generate(policy, PROMPTS, 4, seed=3)
    policy.eos_token_ids = (2, int(free.completion_ids[1, 2, 4]))
    rollout = engine.generate(policy, PROMPTS, 4, seed=3)
    assert int(rollout.lengths[1, 2]) <= 5
    assert not rollout.truncated[1, 2]


# ---------------------------------------------------------------- sleep


def test_it_sleeps_between_rollouts_and_is_compared_each_time_that_it_wakes(policy, vllm, tmp_path):
    engine = engine_in(tmp_path, sync="merged")
    engine.prepare(policy)
    engine.generate(policy, PROMPTS, 2, seed=0)
    [llm] = vllm.made
    assert llm.options["enable_sleep_mode"]
    assert llm.calls == ["reload_weights", "enqueue", "sleep", "wake_up", "enqueue", "enqueue", "sleep"]


@pytest.mark.parametrize(("options", "on_cpu"), [({"sleep_level": 0}, False), ({}, True)])
def test_without_sleep_it_is_compared_now_and_then(policy, tmp_path, options, on_cpu, monkeypatch):
    said = []
    monkeypatch.setattr(inside, "rank_zero_info", said.append)
    vllm = installed(monkeypatch, on_cpu)
    engine = engine_in(tmp_path, check_every=2, **options)
    for _ in range(3):
        engine.generate(policy, PROMPTS, 2, seed=0)
    assert vllm.made[0].calls == ["enqueue", "enqueue", "enqueue", "enqueue", "enqueue"]  # 2 of the check
    assert not vllm.made[0].options["enable_sleep_mode"]
    assert any("does not sleep on a CPU" in line for line in said) == on_cpu


def test_an_adapter_that_stops_to_apply_after_sleep_is_noticed(policy, vllm, tmp_path):
    engine = engine_in(tmp_path)
    engine.generate(policy, PROMPTS, 2, seed=0)
    vllm.made[0].deaf = True
    with pytest.raises(UserError, match=r"does not sample from the policy as it is: .*the adapter does not arrive"):
        engine.generate(policy, PROMPTS, 2, seed=1)
    assert vllm.made[0].asleep


def test_groups_that_nobody_waits_for_are_ended(policy, vllm, tmp_path):
    class Enough(dict):
        enough = False

        def __call__(self, number, rollout):
            self[number], self.enough = rollout, True

    on_group = Enough()
    rollout = engine_in(tmp_path).generate(policy, PROMPTS, 2, seed=3, on_group=on_group)
    assert [*on_group] == [2]
    assert vllm.made[0].calls.count("abort") == 2
    assert rollout.lengths[:2].tolist() == [[1, 1], [1, 1]]
    assert rollout.texts[2] == on_group[2].texts[0]


# ---------------------------------------------------------------- the process it is in


def test_the_process_keeps_its_random_numbers_and_its_threads(policy, vllm, tmp_path):
    before = torch.set_num_threads, torch.get_rng_state(), random.getstate()
    engine_in(tmp_path).generate(policy, PROMPTS, 2, seed=0)
    assert torch.set_num_threads is before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]


def test_each_process_of_a_run_has_its_own(policy, vllm, tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that what the engine sets is gone afterwards
        monkeypatch.delenv(name)
    whole = engine_in(tmp_path).generate(policy, PROMPTS[:2], 4, seed=3)
    monkeypatch.setattr(inside, "world_size", lambda: 2)
    for module in (inside, colocated):
        monkeypatch.setattr(module, "rank", lambda: 1)
    part = engine_in(tmp_path).generate(policy, PROMPTS[1:2], 4, seed=3)
    assert part.texts[0] == whole.texts[1]
    assert vllm.made[1].options["distributed_executor_backend"] == "external_launcher"
    assert (inside.os.environ["RANK"], inside.os.environ["LOCAL_RANK"]) == ("1", "1")


def test_a_run_takes_every_step(tiny_model, vllm, prompts, tmp_path):  # noqa: F811
    module = grpo(tiny_model, engine=engine_in(tmp_path, engine_args={"enforce_eager": True}))
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, PromptDataModule(str(prompts), batch_size=4))
    assert run.global_step == module.rollout_step == 2
    [llm] = vllm.made
    assert llm.asleep
    assert llm.options["enforce_eager"]
    assert llm.options["model"] == str(tiny_model)


# ---------------------------------------------------------------- what is refused


def test_without_vllm_it_is_one_line(policy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"vLLM is not installed here .*pip install vllm, or use VLLMEngine"):
        engine_in(tmp_path).prepare(policy)


def test_a_vllm_that_does_not_start_is_one_line(policy, vllm, tmp_path):
    vllm.fails = ValueError("Free memory on device (2/80 GiB)\nis less than desired")
    with pytest.raises(UserError, match=r"does not start: ValueError: Free memory .*a smaller gpu_m") as caught:
        engine_in(tmp_path).prepare(policy)
    assert "\n" not in str(caught.value)


def test_a_vllm_that_fails_keeps_a_checkpoint(policy, vllm, tmp_path):
    engine = engine_in(tmp_path)
    engine.prepare(policy)

    def step():
        raise RuntimeError("CUDA out of memory")

    vllm.made[0].llm_engine.step = step
    with pytest.raises(UserError, match="vLLM fails: RuntimeError: CUDA out of memory; a smaller gpu"):
        engine.generate(policy, PROMPTS, 2, seed=0)
    assert not vllm.made[0].llm_engine.waiting


def test_doctor_says_whether_vllm_is_there(monkeypatch):
    for found in (None, object()):
        monkeypatch.setattr(colocated, "find_spec", lambda name, found=found: found)
        [line] = ColocatedVLLMEngine().examine()
        assert (line.name, line.ok, line.required) == ("vllm", found is not None, True)


def test_another_gpu_than_the_policys_is_refused(monkeypatch):
    inside._check_device(torch.device("cuda", 0))
    with pytest.raises(UserError, match="is on cuda:1, and vLLM takes cuda:0; name the GPUs in CUDA_VISIBLE_DEVICES"):
        inside._check_device(torch.device("cuda", 1))
    monkeypatch.setattr(inside, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    inside._check_device(torch.device("cuda", 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sleep_level": 2}, "sleep_level=2; write 1 .*Level 2 drops the base's weights"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization=1.5, .*write a share between 0 and 1"),
        ({"check_every": 0}, "check_every=0"),
        ({"temperature": 2.5}, "vLLM takes at most 2"),
    ],
)
def test_values_out_of_range_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        ColocatedVLLMEngine(**options)


def test_a_length_that_vllm_does_not_take_is_one_line(policy, vllm, tmp_path):
    with pytest.raises(UserError, match=r"are \d\d tokens, and vLLM takes 30; write max_model_len: \d\d or more"):
        engine_in(tmp_path, max_model_len=30).generate(policy, PROMPTS, 2, seed=0)
