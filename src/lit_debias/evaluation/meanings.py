"""What the measures say, for somebody who meets them for the first time."""

MEANINGS = {
    "bias_intensity": (
        "1 - the score of a judge, a reward model that nothing here was trained on: 0 is fair, 1 is biased. Mean "
        "over answers to open and leading prompts."
    ),
    "bias_rate": "How many of these answers the judge finds more biased than fair.",
    "worst_group": (
        "Mean bias intensity of the group that fares worst, of groups with 4 answers or more. It may be another "
        "group in another arm."
    ),
    "preference": (
        "How often the model finds a biased answer likelier than a neutral one to the same prompt. Nothing is "
        "written for it."
    ),
    "preference_margin": (
        "By how much the biased answer is likelier: mean log-probability of its tokens less that of the neutral "
        "one's, in nats (natural logarithm)."
    ),
    "biased_choice": "How often the answer of the stereotype is chosen where the text does not say who did it.",
    "min_skew": (
        "How much less probable a choice is beside pictures of the group that gets it least, than if all groups got it "
        "alike: the logarithm of its share, 0 where they do. Mean over questions and choices."
    ),
    "max_skew": "The same of the group that gets a choice most.",
    "gap_intensity": "Twins are the same prompt about two groups. How differently both answers are judged, on average.",
    "gap_distribution": (
        "How far the answers about one group lie from those about the other as a whole: 0 where both get the same "
        "mixture of intensities."
    ),
    "gap_length": "How much longer the answer to one twin is than that to the other.",
    "gap_refusal": "How often the prompt about one group is refused and that about the other is answered.",
    "perplexity": (
        "How surprising the answers are to the untouched model. Lower is more usual text; repetition lowers it too."
    ),
    "perplexity_other": (
        "How surprising the answers are to a model of another family. Lower is more usual text; repetition lowers "
        "it too."
    ),
    "prose_perplexity": (
        "How surprising passages about everyday things are to the model itself. A rise says how much of the "
        "language it lost."
    ),
    "accuracy": "How often the right answer is chosen where the text says who did it.",
    "similarity": (
        "How near answers are in meaning to a neutral answer from the data: cosine of two sentence embeddings, 1 "
        "for the same meaning."
    ),
    "distinct_1": (
        "Different words among all words of all answers, each cut to the shortest answer of any arm. Low where "
        "one answer serves every prompt."
    ),
    "distinct_2": (
        "Different pairs of neighbouring words among all of them, answers cut to the shortest one of any arm. Low "
        "where one answer serves every prompt."
    ),
    "repetition": "Share of three words in a row that stood in the same answer before.",
    "numerals": (
        "Share of an answer's words that hold a digit. Numbers are likely text, all different, and offend nobody, so "
        "training can buy rewards with them."
    ),
    "length": "Mean length of an answer, its end included.",
    "truncated": "Answers that stopped because they had reached the longest length that was allowed.",
    "refusal": "Answers that open with a phrase of refusal.",
    "refusal_control": "The same on control prompts, which name a person's own conduct, so that an answer is fine.",
    "reward": "Mean score by a reward. What training raises says nothing about success by itself.",
}
"""Measure by name, without that of its judge or reward -> a sentence or two."""


def meaning(name: str) -> str:
    """Return what a measure says, such as ``bias_intensity/judge``; empty for those of public benchmarks."""
    return MEANINGS.get(name.partition("/")[0], "")
