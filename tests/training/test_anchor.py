"""The anchor: its term against plain Hugging Face, ranks and micro-batches, and runs that stay closer to the base."""

import pytest
import torch
from grpo_runs import adapter_of, grpo, trainer
from lightning import seed_everything
from torch.optim import AdamW

from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.support import distributed
from lit_debias.training.anchor import ProseAnchor
from lit_debias.training.dpo import DPO

TEXTS = ["the sea is deep", "a letter came on monday", "stir the soup", "who reads this"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


@pytest.fixture
def policy(tiny_model):
    torch.manual_seed(0)
    policy = QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=4).load("cpu")
    return moved(policy)


def moved(policy):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def by_hand(policy, texts):
    """Return the sum over tokens of half the squared difference, and the tokens, by the plain model."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[policy.encoder.first(), *policy.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            own = policy.causal_lm(ids).logits.log_softmax(-1)
            with policy.lm.disable_adapter():
                base = policy.causal_lm(ids).logits.log_softmax(-1)
        change = (own - base)[0, :-1].gather(1, ids[0, 1:, None])
        total, count = total + float(change.square().sum()) / 2, count + ids.shape[1] - 1
    return total, count


def test_the_term_is_that_of_the_plain_model(policy, file):
    anchor = ProseAnchor(weight=0.5, texts=str(file), passages=3)
    for step, chosen in {0: TEXTS[:3], 1: [TEXTS[3], *TEXTS[:2]]}.items():  # passages take turns
        total, count = by_hand(policy, chosen)
        assert sum(float(term.detach()) for term in anchor.terms(policy, step, 2048)) == pytest.approx(
            0.5 * total / count, rel=1e-4
        )


def test_an_untouched_policy_pays_nothing(tiny_model, file):
    policy = QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=4).load("cpu")
    (term,) = ProseAnchor(texts=str(file)).terms(policy, 0, 2048)
    assert float(term.detach()) == 0
    term.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in policy.trainable_parameters().values())


def gradient(policy, anchor, tokens):
    parameters = policy.trainable_parameters()
    for parameter in parameters.values():
        parameter.grad = None
    terms = list(anchor.terms(policy, 0, tokens))
    for term in terms:
        term.backward()
    return len(terms), {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def test_micro_batches_and_ranks_change_nothing(policy, file, monkeypatch):
    anchor = ProseAnchor(texts=str(file), passages=3)
    passes, whole = gradient(policy, anchor, 2048)
    several, same = gradient(policy, anchor, 1)
    assert (passes, several) == (1, 3)
    summed = {name: torch.zeros_like(value) for name, value in whole.items()}
    monkeypatch.setattr(distributed, "world_size", lambda: 5)
    for rank in range(5):  # two of them have no passage
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        passes, part = gradient(policy, anchor, 2048)
        assert passes == (rank < 3)
        for name, value in part.items():
            summed[name] += value
    for name, value in whole.items():
        assert torch.allclose(same[name], value, atol=1e-6)
        assert torch.allclose(summed[name], value, atol=1e-6)


def drift(policy, texts):
    return by_hand(policy, texts)[0]


@pytest.mark.parametrize("algorithm", ["grpo", "dpo"])
def test_a_run_with_an_anchor_stays_closer_to_the_base(tiny_model, tmp_path, file, algorithm):
    rows = [
        f'{{"prompt": "people from {p} are", "reference": "kind and {p}", "biased": "lazy {p}"}}' for p in "abcdefgh"
    ]
    data = tmp_path / "prompts.jsonl"
    data.write_text("\n".join(rows))
    found = {}
    for weight in (None, 50.0):
        seed_everything(3, verbose=False)
        anchor = None if weight is None else ProseAnchor(weight, str(file))
        if algorithm == "grpo":
            module = grpo(tiny_model, anchor=anchor, seed=1)
        else:
            torch.manual_seed(7)
            own = QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=4)
            module = DPO(own, optimizer=lambda parameters: AdamW(parameters, lr=1e-2), anchor=anchor, seed=1)
        run = trainer(tmp_path, max_steps=6, max_epochs=-1)
        run.fit(module, PromptDataModule(str(data), batch_size=4, val_splits=None, seed=1))
        found[weight] = drift(module.policy, TEXTS)
        assert ("anchor" in run.callback_metrics) == (weight is not None)
        assert any(float(value.abs().max()) > 0 for name, value in adapter_of(module).items() if "lora_B" in name)
    assert 0 < found[50.0] < 0.5 * found[None]


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="weight=0, passages=4; write positive numbers"):
        ProseAnchor(weight=0)
    with pytest.raises(UserError, match=r"texts '.*' cannot be read"):
        ProseAnchor(texts=str(tmp_path / "gone.txt"))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="is empty; write passages"):
        ProseAnchor(texts=str(tmp_path / "empty.txt"))


def test_the_passages_are_not_those_that_measure():
    from lit_debias.evaluation.prose import read_prose
    from lit_debias.support.sketch import overlap, sketch

    own = ProseAnchor().texts
    assert len(own) == len(set(own)) >= 100
    assert overlap(read_prose(None), sketch(own))[0] == 0
