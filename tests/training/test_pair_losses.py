"""Losses of pairs: worked out by hand, their gradients by finite differences, and both against TRL."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from grpo_runs import baseline

from lit_debias.grpo.loss import UpdateSize
from lit_debias.training.dpo import DPO, dpo_loss, ipo_loss


def test_dpo_loss_by_hand():
    # rewards 0.5 * (-4 + 6) = 1 and 0.5 * (-9 + 7) = -1: -log sigmoid(2); then 0.5 * (-1) and 0.5 * 1: -log sigmoid(-1)
    logprobs, reference = torch.tensor([[-4.0, -9.0], [-3.0, -2.0]]), torch.tensor([[-6.0, -7.0], [-2.0, -3.0]])
    losses, measured = dpo_loss(logprobs, reference, beta=0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))])
    assert {name: value.tolist() for name, value in measured.items()} == {
        "rewards/chosen": [1.0, -0.5],
        "rewards/rejected": [-1.0, 0.5],
        "rewards/margins": [2.0, -1.0],
        "rewards/accuracies": [True, False],
        "logps/chosen": [-4.0, -3.0],
        "logps/rejected": [-9.0, -2.0],
    }


def test_smoothed_labels_by_hand():
    # margins 2 and -1 as above; a tenth of the pairs is taken to be the wrong way round
    logprobs, reference = torch.tensor([[-4.0, -9.0], [-3.0, -2.0]]), torch.tensor([[-6.0, -7.0], [-2.0, -3.0]])
    losses, measured = dpo_loss(logprobs, reference, beta=0.5, label_smoothing=0.1)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    other_right, other_wrong = math.log(1 + math.exp(1)), math.log(1 + math.exp(-1))
    assert losses.tolist() == pytest.approx([0.9 * right + 0.1 * wrong, 0.9 * other_right + 0.1 * other_wrong])
    assert measured["rewards/margins"].tolist() == [2.0, -1.0]


def test_ipo_by_hand():
    # log-ratios per token: (-4 + 6) / 2 = 1 and (-9 + 7) / 4 = -0.5, so h = 1.5, and 1 / (2 * 0.5) = 1 is wanted;
    # then -1 / 1 and 1 / 2, so h = -1.5
    logprobs, reference = torch.tensor([[-4.0, -9.0], [-3.0, -2.0]]), torch.tensor([[-6.0, -7.0], [-2.0, -3.0]])
    losses, measured = ipo_loss(logprobs, reference, torch.tensor([[2, 4], [1, 2]]), beta=0.5)
    assert losses.tolist() == pytest.approx([0.25, 6.25])
    assert measured["rewards/chosen"].tolist() == [1.0, -0.5]  # of sums, as those of DPO


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_dpo_gradient_by_finite_differences(label_smoothing):
    torch.manual_seed(0)
    logprobs = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: dpo_loss(values, reference, 0.7, label_smoothing)[0], logprobs)


def test_ipo_gradient_by_finite_differences():
    torch.manual_seed(0)
    logprobs = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    reference, lengths = torch.randn(3, 2, dtype=torch.float64), torch.tensor([[2, 3], [1, 5], [4, 4]])
    assert torch.autograd.gradcheck(lambda values: ipo_loss(values, reference, lengths, 0.7)[0], logprobs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"loss_types": ["sigmoid"]}),
        ({"loss": "ipo"}, {"loss_types": ["ipo"]}),
        # TRL's sigmoid has no smoothing; for one pair, AOT's loss is DPO's with it
        ({"label_smoothing": 0.2}, {"loss_types": ["aot"], "label_smoothing": 0.2}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_losses_and_gradients_are_those_of_trl(tiny_model, ours, theirs):
    trl = pytest.importorskip("trl.trainer.dpo_trainer", reason="TRL is not installed")
    torch.manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]])  # three tokens of the chosen response, four of the other
    logprobs = -torch.rand(2, 4, dtype=torch.float64) * mask[:, 1:]
    reference = -torch.rand(2, 4, dtype=torch.float64) * mask[:, 1:]
    mine, yours = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    module = baseline(DPO, tiny_model, beta=0.3, **ours)
    found, measured = module.loss(mine[None], mask[None, :, 1:], reference[None], None, UpdateSize(7, 2, 7, 1, 4))
    wanted, logged = loss_of_trl(trl, yours, mask, reference, beta=0.3, **theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    (found + 0).backward()
    (wanted + 0).backward()
    torch.testing.assert_close(mine.grad * mask[:, 1:], yours.grad * mask[:, 1:], rtol=1e-12, atol=0)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert float(measured[name]) == pytest.approx(logged[name][0], rel=1e-6)


def loss_of_trl(trl, logprobs, mask, reference, **options):
    """Return the loss of TRL's own method, and its metrics; a model stands in that gives known log-probs [2, T]."""
    zeros = torch.zeros_like(logprobs.detach())
    outputs = SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    model = lambda **_: outputs  # noqa: E731
    model.training = True
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=model, accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        use_weighting=False, f_divergence_type="reverse_kl", loss_weights=[1.0],
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
        **{"label_smoothing": 0.0, **options},
    )  # fmt: skip
    inputs = {"input_ids": mask, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    chosen, rejected = reference.sum(-1)
    known = {"ref_chosen_logps": chosen[None], "ref_rejected_logps": rejected[None]}
    loss = trl.DPOTrainer._compute_loss(trainer, model, {**inputs, **known}, return_outputs=False)
    return loss, trainer._metrics["train"]
