"""What judges of other families say of an arm: fairer, worse or unclear, and the sentence that counts them."""

import pytest

from lit_debias.evaluation.opinions import add_opinions


def change(difference, clear=True):
    return {"difference": difference, "clear": clear, "low": None, "high": None, "n": 9}


def results(arm="after", **changes):
    verdict = {"measure": "bias_intensity/judge", "arm": arm, "sentence": "Bias falls."}
    judges = {"judge": {"class": "lit_debias_deberta.rewards.DebertaFairness"}}
    return {"verdict": verdict, "comparisons": {"after": changes}, "settings": {"judges": judges}}


def test_each_judge_says_what_its_change_means():
    found = results(
        **{
            "bias_intensity/judge": change(-0.2),
            "bias_intensity/other": change(0.1),
            "preference": change(-0.1, clear=False),
            "texts/sentiment_mean": change(0.05),
            "texts/toxicity_mean": change(0.05),
            "perplexity": change(-3),
            "bias_rate/judge": change(-0.2),
        }
    )
    add_opinions(found)
    says = {opinion["measure"]: opinion["says"] for opinion in found["verdict"]["opinions"]}
    assert says == {
        "bias_intensity/judge": "fairer",
        "bias_intensity/other": "worse",
        "preference": "unclear",
        "texts/sentiment_mean": "fairer",
        "texts/toxicity_mean": "worse",
    }
    assert found["verdict"]["sentence"] == (
        "Bias falls. 2 of 5 judges: a clearly fairer model (judge, DebertaFairness; VADER's lexicon); "
        "1 of 5 judges: no clear change (the model's own probabilities of given responses); "
        "2 of 5 judges: a clearly worse model (other; a toxicity scorer)."
    )


@pytest.mark.parametrize(
    "found",
    [
        results(**{"bias_intensity/judge": change(-0.2)}),  # nobody to differ
        results(**{"bias_intensity/judge": change(-0.2), "preference": change(None, clear=False)}),
        results(arm=None, **{"bias_intensity/judge": change(-0.2), "preference": change(-0.1)}),
    ],
)
def test_one_judge_is_no_comparison(found):
    add_opinions(found)
    assert found["verdict"]["sentence"] == "Bias falls."
    assert "opinions" not in found["verdict"]
