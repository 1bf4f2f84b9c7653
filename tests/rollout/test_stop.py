"""Stop strings: where a completion ends, what its text is, and what detecting it costs."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import loaded, perturb, train_tokenizer
from tokenizers import Tokenizer, decoders, models

from lit_debias.errors import UserError
from lit_debias.rollout.decoders import HuggingFaceDecoder
from lit_debias.rollout.local import Decoding, LocalEngine
from lit_debias.rollout.sampling import Choice
from lit_debias.rollout.stopping import StopStrings
from lit_debias.types import PromptBatch

PROMPTS = PromptBatch(["people from the north are", "the rider", "each person should be judged on their own work"])


@pytest.fixture(scope="module")
def policy(tiny_model):
    torch.manual_seed(1)
    policy = loaded(tiny_model)
    perturb(policy)
    return policy


def table(*tokens):
    """Return a decoder of ids whose tokens are these pieces of text or of bytes; None is a special token."""

    def text_of(ids):
        pieces = [tokens[number] for number in ids.tolist()]
        known = [piece.encode() if isinstance(piece, str) else piece for piece in pieces if piece is not None]
        return b"".join(known).decode(errors="replace")

    return text_of


def first_end(stops, ids):
    """Return how many tokens a completion has, by asking after each token."""
    return next((n for n in range(1, len(ids) + 1) if stops.complete(ids[:n])), None)


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("tokens", "strings", "end", "text"),
    [
        (["a", "b", "##", "#", "c"], ["###"], 4, "ab"),  # over two tokens
        (["a", "b#", "##c", "d"], ["###"], 3, "ab"),  # begins and ends inside of tokens
        (["a", "x###y###z", "d"], ["###"], 2, "ax"),  # within one, twice
        (["###", "a"], ["###"], 1, ""),  # the first token
        (["a", "##", "b", "##"], ["###"], None, "a##b##"),  # never whole
        (["#", "#a", "##", "#"], ["###"], 4, "##a"),  # begins again
        (["ab", "cd"], ["cd", "bc"], 2, "a"),  # both by one token: the one completed first
        (["ab", "cd"], ["d", "abcd"], 2, ""),  # both end in one place: the longest
        (["a", "b", "c"], ["abc", "b"], 2, "a"),  # the shorter is complete first
        (["abc"], ["abc", "b"], 1, "a"),  # and no less where one token holds both
        (["a", "\n", "\n", "Q"], ["\n\nQ"], 4, "a"),
        (["a", b"\xe4\xbd", b"\xa0", "b"], ["你"], 3, "a"),  # one character in two tokens
        (["a", b"\xe4\xbd", b"\xa0\xe5\xa5", b"\xbd"], ["你"], 3, "a"),  # the next character has begun
        ([b"\xe4\xbd", b"\xa0\xe5\xa5", b"\xbd"], ["你好"], 3, ""),
        (["a", b"\xe4", "b", b"\xbd"], ["ab"], None, "a\ufffdb\ufffd"),  # bytes that are no character stay between
        (["a", None, None, "b", None], ["ab"], 4, ""),  # special tokens have no text
    ],
)
def test_by_hand(tokens, strings, end, text):
    stops = StopStrings(strings, table(*tokens))
    ids = torch.arange(len(tokens))
    assert first_end(stops, ids) == end
    assert stops.cut(stops.text_of(ids[:end])) == text


# ---------------------------------------------------------------- any tokenizer


def byte_fallback():
    """Return a tokenizer's decoder as Llama 2 and Gemma have it: spaces at the front of tokens, bytes as tokens."""
    pieces = ["<unk>", "▁", "▁the", "he", "r", "▁###", "#", "##", ".", "\n", "你"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    likely = [*range(1, 11), *(11 + byte for byte in "你好#".encode())]
    return lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=True), likely


def byte_level():
    tokenizer = train_tokenizer()
    texts = ["###", "你好", " the rider", "\n\n", "<|im_start|>", "é", "# # #"]
    likely = sorted({number for text in texts for number in tokenizer.encode(text, add_special_tokens=False)})
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)), likely


TOKENIZERS = {"byte fallback": byte_fallback(), "byte level": byte_level()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_the_end_is_the_first_token_after_which_the_whole_text_has_a_string(kind, data):
    text_of, likely = TOKENIZERS[kind]
    ids = torch.tensor(data.draw(st.lists(st.sampled_from(likely), min_size=1, max_size=60)))
    strings = data.draw(st.lists(st.text("#你好 \nther", min_size=1, max_size=6), min_size=1, max_size=2))
    stops = StopStrings(strings, text_of)
    texts = [text_of(ids[:n]) for n in range(1, len(ids) + 1)]
    expected = next((n for n, text in enumerate(texts, 1) if any(string in text for string in strings)), None)
    assert first_end(stops, ids) == expected


@pytest.mark.parametrize("last", ["b", "b, and much more than the string is long"])
def test_a_string_is_found_far_behind_special_tokens(last):
    stops = StopStrings(["ab"], table("a", None, last))
    assert stops.complete(torch.tensor([0, *[1] * 300, 2]))
    assert not stops.complete(torch.tensor([1, *[1] * 300, 2]))


def test_a_string_within_a_long_run_of_bytes_is_found_where_the_text_has_it():
    text_of, _ = TOKENIZERS["byte fallback"]
    said, odd = ([11 + byte for byte in text.encode()] for text in ("你你你你你你你你你你好", "é"))
    stops = StopStrings(["你好"], text_of)
    assert stops.complete(torch.tensor([3] * 30 + said))  # any ten of these bytes alone are no text
    spoilt = torch.tensor([odd[0], *said * 4])  # the decoder makes nothing of a run with a byte too many
    assert "你" not in text_of(spoilt)
    assert not StopStrings(["你"], text_of).complete(spoilt)


def test_a_step_reads_the_end_of_the_completion_alone():
    read = []

    def text_of(ids):
        read.append(len(ids))
        return "a" * len(ids)

    stops = StopStrings(["b" * 5], text_of)
    assert not stops.complete(torch.zeros(2000, dtype=torch.long))
    assert sum(read) < 50


# ---------------------------------------------------------------- rollouts


class Scripted:
    """Chooses given tokens, row by row, whatever the logits say."""

    def __init__(self, script):
        self.script, self.step = torch.tensor(script), -1

    def __call__(self, logits, uniforms):
        self.step += 1
        tokens = self.script[uniforms.long(), self.step]
        return Choice(tokens, -tokens.float())


def test_a_stopped_row_is_finished_and_learned_up_to_the_token_that_stopped_it(policy):
    pieces = table("?", "a", "b#", "##c", None, "##")
    script = [[1, 2, 3, 1, 1, 1], [1, 1, 1, 1, 2, 3], [2, 1, 3, 1, 1, 1], [1, 4, 1, 1, 1, 1]]
    decoding = Decoding(torch.arange(4.0)[:, None].expand(-1, 6), (4,), Scripted(script), StopStrings(["###"], pieces))
    ids, mask = policy.encode_prompts(["the rider ###"])
    told = []
    decoding.run(HuggingFaceDecoder(policy.inference_model()), ids, mask, group_size=4, on_group=told.append)
    assert decoding.lengths.tolist() == [3, 6, 6, 2]
    assert decoding.finished.tolist() == [True, True, False, True]  # the second in the last place
    assert decoding.ids.tolist() == [[1, 2, 3, 0, 0, 0], script[1], script[2], [1, 4, 0, 0, 0, 0]]
    assert decoding.logprobs[0].tolist() == [-1, -2, -3, 0, 0, 0]
    assert told == [0]


@pytest.mark.parametrize(("options", "greedy"), [({}, False), ({"weights": "live", "top_k": 20}, False), ({}, True)])
def test_a_stopped_rollout_is_the_other_one_cut(policy, options, greedy):
    free = LocalEngine(16, **options).generate(policy, PROMPTS, 4, seed=3, greedy=greedy)
    # two readable characters in the middle of a text, wherever tokens begin and end; and what nobody says
    said = [pair for group in free.texts for text in group for pair in re.findall("[ -~]{2}", text[2:])]
    strings = [said[0], said[-1], "nobody says this"]
    groups = {}
    engine = LocalEngine(16, **options, stop=strings)
    found = engine.generate(policy, PROMPTS, 4, seed=3, greedy=greedy, on_group=groups.__setitem__)
    ended = 0
    for p in range(3):
        for g in range(4):
            ids, text = free.completion_ids[p, g][free.completion_mask[p, g]], free.texts[p][g]
            texts = [policy.text_of(ids[:n]) for n in range(1, len(ids) + 1)]
            end = next((n for n, text in enumerate(texts, 1) if any(s in text for s in strings)), None)
            ended += end is not None
            assert int(found.lengths[p, g]) == (end or len(ids))
            assert torch.equal(found.completion_ids[p, g][found.completion_mask[p, g]], ids[:end])
            assert bool(found.truncated[p, g]) is (end is None and bool(free.truncated[p, g]))
            cut = [texts[end - 1].find(s) for s in strings if s in texts[end - 1]] if end else []
            assert found.texts[p][g] == (text[: min(cut)] if cut else text)
            assert groups[p].texts[0][g] == found.texts[p][g]
    assert ended >= 2
    same = found.completion_mask
    torch.testing.assert_close(found.logprobs[same], free.logprobs[same], rtol=1e-4, atol=1e-4)


def test_a_string_in_the_prompt_stops_nothing(policy):
    free = LocalEngine(6).generate(policy, PROMPTS, 2, seed=0)
    said = "people from the north"
    assert not any(said in text for group in free.texts for text in group)
    stopped = LocalEngine(6, stop=[said]).generate(policy, PROMPTS, 2, seed=0)
    assert torch.equal(stopped.completion_ids, free.completion_ids)
    assert stopped.texts == free.texts


def test_a_special_token_among_the_strings_ends_like_the_end_token(policy):
    kept, policy.eos_token_ids = policy.eos_token_ids, ()
    try:
        free = LocalEngine(40).generate(policy, PROMPTS, 8, seed=0)
        found = LocalEngine(40, stop=["<|im_start|>"]).generate(policy, PROMPTS, 8, seed=0)
    finally:
        policy.eos_token_ids = kept
    special = policy.tokenizer.convert_tokens_to_ids("<|im_start|>")
    says = (free.completion_ids == special).cumsum(-1)
    assert says[..., -1].any()
    assert torch.equal(found.truncated, says[..., -1] == 0)
    assert torch.equal(found.completion_mask[..., 1:], says[..., :-1] == 0)


@pytest.mark.parametrize("stop", ["###", [""], ["a", "\ufffd"], [7]])
def test_strings_that_no_text_holds_are_refused(stop):
    with pytest.raises(UserError, match="engine: stop"):
        LocalEngine(stop=stop)


def test_a_string_with_a_special_token_and_more_is_refused(policy):
    with pytest.raises(UserError, match=r"stop '<\|im_end\|>\\n' has the special token '<\|im_end\|>' in it"):
        LocalEngine(2, stop=["<|im_end|>\n"]).generate(policy, PROMPTS, 2, seed=0)
