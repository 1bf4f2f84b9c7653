"""Where processes share the base out: what is refused, and how all of them make the same passes.

What two processes train stands in plugins/lit-debias-vllm/tests/test_vllm_sharded.py.
"""

import pytest
import torch
from grpo_runs import trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from support import loaded

from lit_debias.errors import UserError
from lit_debias.evaluation.callback import EvaluationCallback
from lit_debias.forward.choose import check_passes
from lit_debias.models import sharding as shared_base
from lit_debias.models.loading import load_causal_lm, nf4_config
from lit_debias.models.probing.layouts import ARowEach, OneByOne
from lit_debias.models.probing.ways import Way
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.rollout.local import LocalEngine
from lit_debias.support import distributed
from lit_debias.training.sharding import ShardedBase, adopt_strategy, check_engine
from lit_debias.training.trainer_checks import check_strategy


class Elsewhere(LocalEngine):
    """Samples somewhere else."""

    needs_base = False


@pytest.fixture
def sharding(tmp_path):
    """A trainer that is to share the base out; no process is started."""
    sharding = trainer(tmp_path, strategy=ModelParallelStrategy(), devices=2)
    adopt_strategy(sharding)
    return sharding


def test_lightnings_strategy_is_taken_and_validates_without_inference_mode(sharding):
    check_strategy(sharding)
    assert type(sharding.strategy) is ShardedBase
    assert not sharding.validate_loop.inference_mode
    assert not sharding.fit_loop.epoch_loop.val_loop.inference_mode


def test_products_are_not_split(tmp_path):
    split = trainer(tmp_path, strategy=ModelParallelStrategy(tensor_parallel_size=2), devices=2)
    with pytest.raises(UserError, match=r"tensor_parallel_size is 2; .* write tensor_parallel_size: 1"):
        adopt_strategy(split)


def test_sizes_are_the_number_of_processes(tmp_path):
    odd = trainer(tmp_path, strategy=ModelParallelStrategy(data_parallel_size=3), devices=2)
    adopt_strategy(odd)
    with pytest.raises(UserError, match="data_parallel_size is 3, and there are 2 processes; write auto"):
        odd.strategy.setup_environment()


def test_an_engine_that_needs_the_whole_base_is_refused(sharding, tmp_path):
    check_engine(trainer(tmp_path), LocalEngine())
    check_engine(sharding, Elsewhere())
    with pytest.raises(UserError, match=r"needs the whole base in this process.*write VLLMEngine with sync: adapter"):
        check_engine(sharding, LocalEngine())


def test_what_one_process_measures_alone_is_refused(sharding):
    with pytest.raises(UserError, match=r"EvaluationCallback: the first process measures alone.*lit-debias evaluate"):
        EvaluationCallback(["length"]).setup(sharding, None, "fit")


def test_a_model_that_reads_one_completion_at_a_time_is_refused():
    check_passes(Way(ARowEach.name, print, None, packs=False), "x")
    with pytest.raises(UserError, match="model 'x' reads one completion at a time"):
        check_passes(Way(OneByOne.name, print, None, packs=False), "x")


def test_a_base_that_is_kept_whole_is_refused(tiny_model):
    with pytest.raises(UserError, match="keep_base keeps a base whole"):
        QLoRAPolicy(str(tiny_model), keep_base=True).load("cpu", mesh=object())


def test_the_codes_of_layers_are_those_that_are_loaded_otherwise(tiny_model):
    plain = load_causal_lm(str(tiny_model), dtype=torch.float32)
    expected = load_causal_lm(str(tiny_model), dtype=torch.float32, quantization_config=nf4_config(torch.float32))
    for layer in shared_base._layers(plain, "x"):
        shared_base._quantize(layer, torch.float32, "x")
        layer.to("cpu")
    ids = torch.arange(9)[None]
    for model in (plain, expected):
        model.train()  # bitsandbytes' kernels for CPUs round otherwise in evaluation mode
    assert torch.equal(plain(ids).logits, expected(ids).logits)
    with pytest.raises(UserError, match="is stored in 4 bits, which cannot be shared out"):
        shared_base._layers(expected, "x")


def test_a_process_with_fewer_passes_computes_for_the_others(tiny_model, monkeypatch):
    policy = loaded(tiny_model)
    policy.forms.sharded = True
    monkeypatch.setattr(distributed, "gather_objects", lambda number: [number, 3])
    passes, way = [], policy.forms.way
    counting = type(way)(way.name, lambda packed: passes.append(packed) or way.outputs(packed), way.head, way.packs)
    policy.forms.way = counting
    with torch.no_grad():
        assert list(policy.in_step([slice(0, 1)])) == [slice(0, 1)]
    assert len(passes) == 2
    assert list(policy.in_step([slice(0, 1)] * 4)) == [slice(0, 1)] * 4  # another one computes for this
    assert len(passes) == 2
    list(policy.in_step([]))
    assert len(passes) == 5
    gradients = [parameter.grad for parameter in policy.trainable_parameters().values()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
