"""What a model is asked beyond likelihoods of sentences: texts, implicit rewards, system messages, listed choices."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch
from support import loaded, perturb, save_tiny_model

from lit_debias.benchmark import CannotAskError, Model, writing
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.progress import ignore

PROMPTS = ["Who was late?", "The riders were", "Nurses are usually", "People from the north cook in", "Who was late?"]
TOKENS = 6


@pytest.fixture(scope="module")
def policy(tiny_model):
    torch.manual_seed(0)
    policy = loaded(tiny_model)
    perturb(policy)
    return policy


def model(policy, advance=ignore, **judges):
    return Model(policy, RewardSuite(judges), advance)


def plain(policy, before, after):
    """Return the log-likelihood of ids ``after`` by one forward pass of the plain model."""
    with torch.no_grad():
        logits = policy.causal_lm(input_ids=torch.tensor([before + after]), use_cache=False).logits[0]
    logprobs = logits[len(before) - 1 : -1].double().log_softmax(-1)
    return float(logprobs.gather(-1, torch.tensor(after)[:, None]).sum())


def encode(policy, text):
    return policy.tokenizer.encode(text, add_special_tokens=False)


# ------------------------------------------------------------------ texts


def sampled(policy, prompts=PROMPTS, k=3, **options):
    return model(policy).texts(prompts, k, **{"max_new_tokens": TOKENS, **options})


def test_texts_depend_on_the_seed_the_prompt_and_their_number_alone(policy, monkeypatch):
    together = sampled(policy)
    assert [len(texts) for texts in together] == [3] * 5
    assert sampled(policy) == together
    assert sampled(policy, seed=1) != together
    assert [sampled(policy, [prompt])[0] for prompt in PROMPTS[:4]] == together[:4]
    assert sampled(policy, PROMPTS[:4][::-1]) == together[:4][::-1]
    assert [texts[:2] for texts in together] == sampled(policy, k=2)
    assert together[0] != together[4]  # the same prompt again is another sample
    assert len({text for texts in together for text in texts}) > 10
    monkeypatch.setattr(writing, "ROWS", 2)
    assert sampled(policy) == together


def test_a_low_temperature_gives_what_temperature_0_gives(policy):
    greedy = sampled(policy, temperature=0, k=2)
    assert all(first == second for first, second in greedy)
    assert sampled(policy, temperature=1e-4, k=2) == greedy
    asked = encode(policy, f"<|im_start|>user\n{PROMPTS[1]}<|im_end|>\n<|im_start|>assistant\n")
    for _ in range(TOKENS):
        with torch.no_grad():
            asked.append(int(policy.causal_lm(input_ids=torch.tensor([asked]), use_cache=False).logits[0, -1].argmax()))
    assert policy.text_of(torch.tensor(asked[-TOKENS:])) == greedy[1][0]


def test_samples_follow_the_probabilities(policy):
    """Of 400 first tokens, the shares of the most probable texts; bytes that are no text are one."""
    asked = encode(policy, f"<|im_start|>user\n{PROMPTS[0]}<|im_end|>\n<|im_start|>assistant\n")
    with torch.no_grad():
        expected = policy.causal_lm(input_ids=torch.tensor([asked]), use_cache=False).logits[0, -1].softmax(-1)
    [texts] = sampled(policy, PROMPTS[:1], k=400, max_new_tokens=1)
    shares = Counter()
    for token, probability in enumerate(expected.tolist()):
        shares[policy.text_of(torch.tensor([token]))] += probability
    for text, share in shares.most_common(3):
        assert texts.count(text) / len(texts) == pytest.approx(share, abs=0.08)


def test_continuations_are_greedy_texts_with_what_judges_say(policy):
    found = model(policy, judge=Brief(), column=NeedsColumn()).continuations(PROMPTS[1:3])
    prompts = [f"Continue this text: {text}" for text in PROMPTS[1:3]]
    texts = model(policy).texts(prompts, temperature=0, max_new_tokens=32)
    assert [[one.text] for one in found] == texts
    judged = model(policy, judge=Brief(), column=NeedsColumn()).judged(prompts, [text for [text] in texts])
    assert [one.intensity["judge"] for one in found] == pytest.approx([1 - row["judge"] for row in judged])
    assert set(judged[0]) == {"judge"}


class Brief(Reward):
    """A judge: 1 over the length of the text."""

    def score(self, batch):
        return [1 / max(1, len(text)) for text in batch.completions]


class NeedsColumn(Brief):
    columns = ("reference",)


# ------------------------------------------------------------------ implicit rewards, tokens


def test_implicit_rewards_are_differences_to_the_untouched_base(policy, tiny_model):
    contexts, sentences = ["", "The cook."], [["Nurses are kind.", "No."], ["It was late."]]
    found = model(policy).rewards(contexts, sentences)
    trained = model(policy).sentences(contexts, sentences)
    base = model(loaded(tiny_model)).sentences(contexts, sentences)
    assert [len(row) for row in found] == [2, 1]
    for ratio, own, other in zip(*map(chain.from_iterable, (found, trained, base)), strict=True):
        assert ratio.total == pytest.approx(own.total - other.total, abs=1e-4)
        assert ratio.total != 0
        assert (ratio.tokens, ratio.mean) == (own.tokens, ratio.total / own.tokens)


def test_implicit_rewards_of_a_policy_without_an_adapter_are_0(tiny_model):
    found = model(loaded(tiny_model)).rewards([""], [["Nurses are kind.", "It was late because the lift was out."]])
    assert [ratio.total for ratio in found[0]] == [0.0, 0.0]


def test_tokens_add_up_to_sentences(policy):
    contexts, sentences = ["", "A cook is near."], [["Nurses are kind.", "No."], ["It was late.", "So."]]
    by_token, sums = (ask(contexts, sentences) for ask in (model(policy).tokens, model(policy).sentences))
    for parts, whole in zip(*map(chain.from_iterable, (by_token, sums)), strict=True):
        assert sum(parts.logprobs) == pytest.approx(whole.total, abs=1e-4)
        assert len(parts.ids) == whole.tokens
    assert policy.text_of(torch.tensor(by_token[0][0].ids)) == "Nurses are kind."
    assert policy.text_of(torch.tensor(by_token[1][1].ids)) == " So."


# ------------------------------------------------------------------ system messages


def test_a_system_message_takes_the_place_of_the_policys_own(policy):
    policy.system_prompt = "Be fair."
    try:
        assert model(policy).system == "Be fair."
        ask = model(policy).choices
        own, other = (ask(["Who?"], [["The boy"]], system)[0][0].total for system in (None, "Be brief."))
        several = ask(["Who?"] * 3, [["The boy"]] * 3, ["Be brief.", None, "Be fair."])
        texts = model(policy).texts(["Who?"] * 2, 2, max_new_tokens=TOKENS, system=["Be brief.", None])
    finally:
        policy.system_prompt = None
    for system, value in (("Be fair.", own), ("Be brief.", other)):
        asked = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
        assert value == pytest.approx(plain(policy, encode(policy, asked), encode(policy, "The boy")), abs=1e-4)
    assert [row[0].total for row in several] == pytest.approx([other, own, own], abs=1e-4)
    assert texts[0] != texts[1]


def test_a_model_that_takes_no_system_message_says_so(tmp_path):
    policy = loaded(save_tiny_model(tmp_path / "base", chat_template=None))
    assert model(policy).why_no_system("Be brief.") == "the model has no chat template"
    with pytest.raises(CannotAskError, match="no chat template"):
        model(policy).choices(["Who?"], [["The boy"]], "Be brief.")
    with pytest.raises(CannotAskError, match="no chat template"):
        model(policy).texts(["Who?"], system=[None, "Be brief."][1:])
    assert model(policy).texts(["Who?"], max_new_tokens=2)


# ------------------------------------------------------------------ listed choices


def test_rotations_average_over_the_orders_of_the_list(policy):
    def question(options):
        return f"Who was late: {', '.join(options)}?"

    listed, told = ["the boy", "the nurse", "nobody"], []
    orders = [listed, ["the nurse", "nobody", "the boy"], ["nobody", "the boy", "the nurse"]]
    by_hand = [model(policy).choices([question(order)], [listed])[0] for order in orders]
    asked = model(policy, told.append)
    found, two = asked.choices([question, question], [listed, listed[:2]], rotations=True)
    assert [one.total for one in found] == pytest.approx(
        [sum(row[i].total for row in by_hand) / 3 for i in range(3)], abs=1e-4
    )
    assert [one.tokens for one in found] == [one.tokens for one in by_hand[0]]
    assert len(two) == 2
    assert sum(told) == 2  # an item is done once all its orders are
    once = model(policy).choices([question], [listed])[0]
    assert [one.total for one in once] == pytest.approx([one.total for one in by_hand[0]], abs=1e-4)
    with pytest.raises(TypeError, match="a question that is a function"):
        model(policy).choices(["Who?"], [listed], rotations=True)


def test_nothing_asked_is_nothing_answered(policy):
    asked = model(policy)
    assert asked.sentences([], []) == asked.choices([], []) == asked.texts([]) == asked.continuations([]) == []
