"""The one optimiser step that GRPO, SFT and DPO make."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.support import distributed
from lit_debias.training.adapter_module import AdapterModule
from lit_debias.training.dpo import DPO
from lit_debias.training.grpo import GRPO
from lit_debias.training.sft import SFT
from lit_debias.types import PromptBatch


def test_micro_batches_add_up_and_ranks_exchange_gradients_once(tiny_model, monkeypatch):
    module = AdapterModule(QLoRAPolicy(str(tiny_model)))
    weight = nn.Parameter(torch.tensor(1.0))
    weight.grad = torch.tensor(100.0)  # of the step before
    synced = []
    module.policy = SimpleNamespace(in_step=iter, is_sharded=False)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(module, "optimizers", lambda: SGD([weight], 1.0))
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    monkeypatch.setattr(module, "_gradient_sync", lambda last: synced.append(last) or nullcontext())
    monkeypatch.setattr(module, "_optimizer_step", lambda optimizer, name, prompts: float(weight.grad))
    sums, gradient = module.optimise(
        [slice(0, 1), slice(1, 2), slice(2, 3)],
        lambda groups: (weight * groups.stop, {"loss": weight.detach() * groups.stop, "tokens": 4.0}),
        "step 0",
        PromptBatch(["q"]),
    )
    assert gradient == 2 * (1 + 2 + 3)  # DDP halves it
    assert synced == [False, False, True]
    assert sums == {"loss": 6.0, "tokens": 12.0}


@pytest.mark.parametrize("cls", [GRPO, SFT, DPO])
def test_nobody_has_an_accumulation_of_his_own(cls):
    assert cls.optimise is AdapterModule.optimise


def test_a_policy_is_loaded_once(tiny_model):
    module = SFT(QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=4))
    assert not module.is_loaded
    assert module.load_policy() is module.load_policy() is module.policy
