from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_debias.packing import logprobs
from lit_debias.packing.logprobs import logprobs_at, selected_logprobs
from lit_debias.types import Support

N, H, V = 7, 5, 11


@pytest.fixture
def head() -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(N, H, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randn(V, H, dtype=torch.float64), torch.randint(V, (N,))


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, bias: Any = 0.0
) -> tuple[Tensor, Tensor]:
    logp = ((hidden @ weight.T + bias) / temperature).log_softmax(1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(1)


def test_by_hand() -> None:
    # logits (1, 3) at temperature 2 are (0.5, 1.5): p = sigmoid(1) for the second token
    hidden = torch.tensor([[1.0]], requires_grad=True)
    found = selected_logprobs(hidden, torch.tensor([[1.0], [3.0]]), torch.tensor([1]), temperature=2.0)
    p = torch.tensor(1.0).sigmoid()
    torch.testing.assert_close(found.logprobs, p.log()[None])
    found.logprobs.sum().backward()  # (w_1 - p w_1 - (1 - p) w_0) / 2 = (3 - 3p - 1 + p) / 2 = 1 - p
    torch.testing.assert_close(hidden.grad, (1 - p)[None, None])


@pytest.mark.parametrize("columns", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_log_softmax(head: Any, columns: int, temperature: float) -> None:
    hidden, weight, targets = head
    bias = torch.randn(V, dtype=torch.float64)
    upstream, entropy_upstream = torch.randn(2, N, dtype=torch.float64)
    expected = plain(hidden, weight, targets, temperature, bias)
    found = selected_logprobs(hidden, weight, targets, temperature, bias, columns, entropy_grad=True)
    torch.testing.assert_close(tuple(found), expected)
    gradients = [
        torch.autograd.grad((logprobs * upstream + entropy * entropy_upstream).sum(), hidden)[0]
        for logprobs, entropy in (expected, found)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_finite_differences(head: Any) -> None:
    hidden, weight, targets = head
    assert torch.autograd.gradcheck(
        lambda h: tuple(selected_logprobs(h, weight, targets, 1.3, columns=3, entropy_grad=True)), (hidden,)
    )


def support_of(kept: Tensor) -> Support:
    """Return [N, V] bool as a support; the ids of its rows stand in another order than the rows."""
    order = torch.arange(len(kept)).flip(0)
    counts = kept.sum(1)
    starts = torch.empty_like(counts)
    starts[order] = counts[order].cumsum(0) - counts[order]
    return Support(kept[order].nonzero()[:, 1].int(), starts, counts)


@pytest.fixture
def kept(head: Any) -> Tensor:
    """Return [N, V] bool: the target alone, all, the last ones, the first ones, every second one, some."""
    result = torch.rand(N, V) < 0.4
    result[:5] = False
    result[1], result[2, 8:], result[3, :2], result[4, ::2] = True, True, True, True
    return result.scatter(1, head[2][:, None], True)


def test_a_support_by_hand() -> None:
    # logits (0, log 2, log 3, 5), of which the first three: 2 / (1 + 2 + 3), 3 / 6
    weight = torch.tensor([[1.0], [2.0], [3.0], [torch.tensor(5.0).exp()]]).log()
    support = support_of(torch.tensor([[True, True, True, False]] * 2))
    found = selected_logprobs(torch.ones(2, 1), weight, torch.tensor([1, 2]), entropy=True, support=support)
    torch.testing.assert_close(found.logprobs, torch.tensor([2 / 6, 3 / 6]).log())
    p = torch.tensor([1 / 6, 2 / 6, 3 / 6])
    torch.testing.assert_close(found.entropy, -(p * p.log()).sum().expand(2))


@pytest.mark.parametrize("columns", [1, 3, 100])
@pytest.mark.parametrize("rows", [3, 1024])
@pytest.mark.parametrize("temperature", [1.0, 0.02, 40.0])
def test_within_a_support_everything_is_that_of_the_renormalised_softmax(
    head: Any, kept: Tensor, columns: int, rows: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "ROWS", rows)
    hidden, weight, targets = head
    bias = torch.randn(V, dtype=torch.float64)
    upstream, entropy_upstream = torch.randn(2, N, dtype=torch.float64)
    masked = ((hidden @ weight.T + bias) / temperature).masked_fill(~kept, -torch.inf)
    logp = masked.log_softmax(1)
    entropy = -(logp.exp() * logp.masked_fill(~kept, 0)).sum(1)
    expected = logp.gather(1, targets[:, None])[:, 0], entropy
    within = support_of(kept)
    found = selected_logprobs(hidden, weight, targets, temperature, bias, columns, entropy_grad=True, support=within)
    torch.testing.assert_close(tuple(found), expected)
    assert found.logprobs[0] == 0  # the target alone
    gradients = [
        torch.autograd.grad((logprobs * upstream + entropy * entropy_upstream).sum(), hidden)[0]
        for logprobs, entropy in (expected, found)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])
    both = logprobs_at(hidden, weight, targets, (temperature,) * 2, bias, columns, (within, None))
    torch.testing.assert_close(both[0], expected[0].detach())
    torch.testing.assert_close(both[1], plain(hidden, weight, targets, temperature, bias)[0].detach())


def test_finite_differences_within_a_support(head: Any, kept: Tensor) -> None:
    hidden, weight, targets = head
    options = {"columns": 3, "entropy_grad": True, "support": support_of(kept)}
    assert torch.autograd.gradcheck(lambda h: tuple(selected_logprobs(h, weight, targets, 1.3, **options)), (hidden,))


def test_the_whole_vocabulary_as_support_is_none(head: Any) -> None:
    hidden, weight, targets = (tensor.detach().float() if tensor.is_floating_point() else tensor for tensor in head)
    everything = support_of(torch.ones(N, V, dtype=torch.bool))
    found = selected_logprobs(hidden, weight, targets, columns=4, support=everything).logprobs
    assert torch.equal(found, selected_logprobs(hidden, weight, targets, columns=4).logprobs)


def test_the_expected_gradient_off_policy_is_that_of_the_expected_reward(head: Any) -> None:
    """Over all tokens that the old policy could sample, ratio times reward has the gradient of the new one's mean."""
    hidden, weight, _ = head
    old, new = hidden.detach()[:1], hidden[1:2]
    kept = (old @ weight.T / 0.7).topk(4).indices[0]
    reward = torch.randn(4, dtype=torch.float64)
    behaviour = (old @ weight.T / 0.7)[0, kept].log_softmax(0)  # what sampling with top_k=4 records
    support = support_of(torch.zeros(1, V, dtype=torch.bool).index_fill(1, kept, True).expand(4, -1))
    now = selected_logprobs(new.expand(4, -1), weight, kept, 0.7, columns=3, support=support).logprobs
    found = torch.autograd.grad((behaviour.exp() * (now - behaviour).exp() * reward).sum(), hidden)[0]
    mean = ((new @ weight.T / 0.7)[0, kept].softmax(0) * reward).sum()
    torch.testing.assert_close(found, torch.autograd.grad(mean, hidden)[0])


def test_entropy_only_on_request(head: Any) -> None:
    hidden, weight, targets = head
    assert selected_logprobs(hidden, weight, targets).entropy.eq(0).all()
    measured = selected_logprobs(hidden, weight, targets, entropy=True).entropy
    assert not measured.requires_grad
    expected = plain(hidden, weight, targets, 1.0)[1].detach()
    torch.testing.assert_close(measured, expected)
    torch.testing.assert_close(selected_logprobs(hidden.detach(), weight, targets, entropy=True).entropy, expected)


def test_bfloat16_is_as_close_as_plain_autograd() -> None:
    hidden = torch.randn(32, 64, dtype=torch.bfloat16)
    weight = torch.randn(50, 64, dtype=torch.bfloat16) / 4
    targets = torch.randint(50, (32,))
    exact = hidden.double().requires_grad_()
    expected, _ = plain(exact, weight.double(), targets, 1.0)
    expected.sum().backward()
    leaf = hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = selected_logprobs(leaf, weight, targets, columns=10).logprobs
    found.sum().backward()
    assert found.dtype == torch.float32
    assert leaf.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0.02)
    assert float((leaf.grad.double() - exact.grad).norm() / exact.grad.norm()) < 0.01


def test_hidden_states_of_another_dtype_than_the_head() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(6, 8, dtype=torch.bfloat16)
    selected_logprobs(hidden, weight, torch.arange(4)).logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_two_temperatures_from_one_set_of_logits(head: Any) -> None:
    hidden, weight, targets = head
    found = logprobs_at(hidden, weight, targets, (0.5, 1.0), columns=2)
    for row, temperature in zip(found, (0.5, 1.0), strict=True):
        torch.testing.assert_close(row, plain(hidden, weight, targets, temperature)[0].detach())
    assert not found.requires_grad


def test_no_tokens() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    weight, targets = torch.zeros(3, 4), torch.zeros(0, dtype=torch.int64)
    selected_logprobs(hidden, weight, targets).logprobs.sum().backward()
    assert hidden.grad is not None
    assert logprobs_at(hidden, weight, targets, (1.0, 2.0)).shape == (2, 0)


def test_a_trainable_head_is_refused(head: Any) -> None:
    hidden, weight, targets = head
    with pytest.raises(ValueError, match="frozen output layer"):
        selected_logprobs(hidden, weight.requires_grad_(), targets)


def test_logits_never_exceed_a_slice() -> None:
    class Columns(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                if isinstance(value, Tensor) and value.ndim == 2 and len(value) == 20:
                    self.most = max(self.most, value.shape[1])
            return result

    hidden, weight, targets = torch.randn(20, 4, requires_grad=True), torch.randn(97, 4), torch.randint(97, (20,))
    with Columns() as columns:
        found = selected_logprobs(hidden, weight, targets, columns=6, entropy_grad=True)
        (found.logprobs + found.entropy).sum().backward()
    assert columns.most == 6


def test_rows_beyond_a_block(head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "ROWS", 3)
    hidden, weight, targets = head
    expected, entropy = plain(hidden, weight, targets, 1.0)
    found = selected_logprobs(hidden, weight, targets, columns=4, entropy_grad=True)
    torch.testing.assert_close(tuple(found), (expected, entropy))
    torch.testing.assert_close(logprobs_at(hidden, weight, targets, (1.0,), columns=4)[0], expected.detach())
    both = [torch.autograd.grad((a + b).sum(), hidden)[0] for a, b in ((expected, entropy), found)]
    torch.testing.assert_close(both[1], both[0])


@pytest.mark.parametrize("largest", [0, 3])
def test_a_target_that_is_all_but_impossible(largest: int) -> None:
    # logits 0 but for one of 200, in the first or the last slice: the target's log-prob is -200, in fp32 exp(-200) is 0
    weight = torch.zeros(4, 1)
    weight[largest] = 200.0
    hidden = torch.ones(1, 1, requires_grad=True)
    found = selected_logprobs(hidden, weight, torch.tensor([1]), columns=2, entropy=True)
    torch.testing.assert_close(found.logprobs, torch.tensor([-200.0]))
    torch.testing.assert_close(found.entropy, torch.zeros(1), atol=1e-4, rtol=0)
    found.logprobs.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[-200.0]]))  # w_target - w_largest


def test_a_sure_token_keeps_its_small_gradient_in_bfloat16() -> None:
    # logits (6, 0): 1 - p = 0.00247, which p = 0.99753, rounded to bfloat16, would lose
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[6.0], [0.0]], dtype=torch.bfloat16)
    selected_logprobs(hidden, weight, torch.tensor([0])).logprobs.sum().backward()
    assert hidden.grad is not None
    assert float(hidden.grad) == pytest.approx(6 * 0.0024726, rel=0.01)
