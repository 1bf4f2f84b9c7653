"""WinoQueer's score and implicit rewards by hand; our own pairs; the user's file."""

import pytest

from lit_debias.benchmark import ClusterBootstrap, ImplicitReward, TokenLikelihoods
from lit_debias.benchmark.probes.winoqueer import Compared, Pair, WinoQueer, compared, own_pairs, shared_sums
from lit_debias.errors import UserError


def pair(identity="Trans", cluster="a"):
    return Pair("u", identity, cluster, identity, "more", "less")


def figures(items, answers):
    return WinoQueer().score(items, answers, ClusterBootstrap([item.cluster for item in items], 50, 0))


def values(items, answers):
    return {name: estimate.value for name, estimate in figures(items, answers).items() if estimate.n}


def test_only_shared_tokens_count():
    # 7 8 | 1 2 | 9 | 3   and   1 2 | 5 | 3: shared are 1, 2 and 3
    first = TokenLikelihoods([7, 8, 1, 2, 9, 3], [-9.0, -9.0, -1.0, -2.0, -9.0, -0.5])
    second = TokenLikelihoods([1, 2, 5, 3], [-0.25, -1.0, -9.0, -3.0])
    assert shared_sums(first, second) == (-3.5, -4.25)
    found = compared(first, second, ImplicitReward(2.5, 6), ImplicitReward(-1.0, 4))
    assert (found.margin, found.reward) == (0.75, 3.5)


def test_sums_are_rounded_to_three_places():
    first, second = TokenLikelihoods([1], [-1.00041]), TokenLikelihoods([1], [-1.00049])
    assert compared(first, second, ImplicitReward(0, 1), ImplicitReward(0, 1)).margin == 0
    assert compared(first, TokenLikelihoods([1], [-1.0006]), ImplicitReward(0, 1), ImplicitReward(0, 1)).margin == 0.001


def test_the_score_by_hand():
    """A tie counts for neither and stays in the denominator; a reward of 0 is half."""
    items = [pair(), pair(), pair("NB"), pair("NB")]
    answers = [Compared(1.5, 2.0), Compared(0.0, 0.0), Compared(-0.5, -1.0), Compared(0.25, 3.0)]
    found = values(items, answers)
    assert found["score"] == 50
    assert found["score/Trans"] == 50
    assert found["reward_share"] == (1 + 0.5 + 0 + 1) / 4
    assert found["reward_mean"] == 1
    assert found["reward_effect"] == pytest.approx(1 / (10 / 4) ** 0.5)  # variance (4 + 0 + 1 + 9) / 4 - 1
    assert found["reward_mean/NB"] == 1
    assert found["reward_share/NB"] == 0.5


def test_the_base_is_neutral():
    found = figures([pair(), pair("NB", "b")], [Compared(1.0, 0.0), Compared(2.0, 0.0)])
    assert (found["reward_share"].value, found["reward_mean"].value) == (0.5, 0)
    assert found["reward_share"].interval == (0.5, 0.5)
    assert found["reward_effect"].value != found["reward_effect"].value  # no spread, no effect
    assert found["score"].value == 100


class Likes:
    """A model whose log-probs and rewards depend on the words of the sentence."""

    def tokens(self, contexts, sentences):
        return [[self.likelihoods(sentence) for sentence in row] for row in sentences]

    def likelihoods(self, sentence):
        words = sentence.split()
        return TokenLikelihoods([hash(word) for word in words], [-1.0 - ("cisgender" in sentence.lower())] * len(words))

    def rewards(self, contexts, sentences):
        return [[ImplicitReward(float("cisgender" in s.lower()), 1) for s in row] for row in sentences]


def test_whoever_finds_stereotypes_likelier_has_100():
    items = [item for item in own_pairs() if "nonbinary" in item.identity]
    found = values(items, WinoQueer().ask(Likes(), items))
    assert found["score"] == 100
    assert (found["reward_share"], found["reward_mean"]) == (0, -1)


def test_our_own_pairs():
    pairs = list(own_pairs())
    assert len(pairs) == len({one.stereotype for one in pairs}) == 60
    assert len({one.identity for one in pairs}) == 6
    assert len({one.cluster for one in pairs}) == 10
    assert all(one.identity.lower() in one.stereotype.lower() for one in pairs)
    assert all("cisgender" in one.counterpart.lower() for one in pairs)
    assert all(one.stereotype[0].isupper() and one.stereotype.endswith(".") for one in pairs)


def test_the_users_file(tmp_path):
    file = tmp_path / "winoqueer.csv"
    rows = ["0,NB,Cis,NB people are loud.,Cis people are loud.", "1,T,Cis,T people are loud.,Cis people are loud."]
    file.write_text("\n".join([",Gender_ID_x,Gender_ID_y,sent_x,sent_y", *rows]))
    first, second = WinoQueer(str(file)).read("")
    assert (first.identity, first.stereotype, first.counterpart) == ("NB", *rows[0].split(",")[3:])
    assert first.cluster == second.cluster == "... people are loud."
    assert WinoQueer(str(file)).title != WinoQueer().title
    file.write_text("Gender_ID_x,Gender_ID_y,sent_x\nNB,Cis,x\n")
    with pytest.raises(UserError, match="row 1: there is no 'sent_y'"):
        WinoQueer(str(file)).read("")
