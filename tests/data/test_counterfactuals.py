"""Counterfactual twins: names and pronouns swapped with article, case and letter case, and what is left alone."""

import pytest
from lightning import LightningModule, Trainer
from prompt_files import ready, write

from lit_debias.data import PromptDataModule
from lit_debias.data.augmentation import REASONS
from lit_debias.data.counterfactuals import UnclearError, swaps_of
from lit_debias.errors import UserError

ALL = {swap.category: swap for swap in swaps_of()}
GENDER = ALL["gender"]


@pytest.mark.parametrize("category", ALL)
def test_swapping_twice_gives_the_original_of_every_pair(category):
    swap = ALL[category]
    assert len(swap.counterparts) >= 6
    for name in swap.counterparts:
        for written in (name, name[:1].upper() + name[1:], name.upper()):
            text = f"{written} came late, and so did {name}."
            other = swap.swap(text)
            assert other != text
            assert swap.swap(other) == text


@pytest.mark.parametrize(
    ("category", "text", "twin"),
    [
        ("occupational", "An accountant met a ride-hail driver.", "A ride-hail driver met an accountant."),
        ("occupational", "The engineers wait; COURIERS do not.", "The couriers wait; ENGINEERS do not."),
        ("regional", "Why are Beijingers like that?", "Why are Northeasterners like that?"),
        ("regional", "out-of-town migrants (waidiren), too", "local hukou holders, too"),
        ("gender", "The women's room, for a woman.", "The men's room, for a man."),
        ("gender", "He's late, and he hurt himself.", "She's late, and she hurt herself."),
        ("gender", "A working mother and her", "A working father and him"),
        ("gender", "I saw her.", "I saw him."),
        ("gender", "They told her to wait for her", "They told him to wait for him"),
        ("gender", "Her work is good.", "His work is good."),
        ("gender", 'It rained. "Her car," they said, "is her own."', 'It rained. "His car," they said, "is his own."'),
        ("gender", "I met him at his house; the house is his.", "I met her at her house; the house is hers."),
        ("gender", "The idea was his in the end, not hers.", "The idea was hers in the end, not his."),
        ("gender", "HE SAW HIM", "SHE SAW HER"),
        ("gender", "Mr. Li and the man-made lake", "Ms. Li and the man-made lake"),
    ],
)
def test_names_and_pronouns_have_their_counterparts(category, text, twin):
    assert ALL[category].swap(text) == twin


@pytest.mark.parametrize(
    "text",
    [
        "they gave her money",
        "he praised her and left",
        "the job of his and Bob's",
        'the man called her "friend"',
        "Mrs Li is here",
        "the hE of the story",
    ],
)
def test_what_is_unclear_is_not_guessed(text):
    with pytest.raises(UnclearError):
        GENDER.swap(text)


def test_a_category_leaves_the_others_alone():
    assert ALL["occupational"].swap("The nanny knows her money") == "The doctor knows her money"
    with pytest.raises(UserError, match="no category 'gendre'; did you mean 'gender'"):
        swaps_of(["gendre"])


# -------------------------------------------------------------------- rows

ROWS = [
    {"prompt": "Is he kind?", "reference": "Ask him.", "biased": "No man is."},
    {"prompt": "What do nurses do?", "reference": "They care.", "biased": "They gossip."},
    {"prompt": "Describe the nanny.", "reference": "She is calm.", "biased": "She is rude."},
    {"prompt": "They gave her money. Why?", "reference": "For work.", "biased": "For nothing."},
    {"prompt": "Who drives?", "reference": "The man.", "biased": "The woman."},
    {"prompt": "Is she late?", "reference": "Who knows.", "biased": "Women are."},
    {"prompt": "Is he late?", "reference": "Who knows.", "biased": "Men are."},
    {"prompt": "Can women lead?", "reference": "Yes.", "biased": "No."},
]
HELD_OUT = {"prompt": "Can men lead?", "reference": "Yes.", "biased": "No."}


def files(tmp_path, rows=ROWS, **splits):
    for name, content in {"train": rows, **splits}.items():
        write(tmp_path / f"set/{name}.jsonl", content)
    return str(tmp_path / "set")


def texts(data):
    rows = data.rows["train"]
    return list(zip(rows["prompt"], rows["reference"], rows["biased"], strict=True))


def test_originals_stay_and_twins_follow_them(tmp_path):
    rows = [{**row, "prompt_id": number, "group": "x"} for number, row in enumerate(ROWS)]
    path = files(tmp_path, rows, test_group=[HELD_OUT])
    data = ready(PromptDataModule(path, augment="cda", val_splits=None, batch_size=1))
    found = texts(data)
    assert found[:2] == [("Is he kind?", "Ask him.", "No man is."), ("Is she kind?", "Ask her.", "No woman is.")]
    assert [row for row in found if row in [tuple(row.values()) for row in ROWS]] == [tuple(r.values()) for r in ROWS]
    # the nanny has a twin of another occupation, and one of another gender: each differs in one category alone
    assert found[3:6] == [
        ("Describe the nanny.", "She is calm.", "She is rude."),
        ("Describe the doctor.", "She is calm.", "She is rude."),
        ("Describe the nanny.", "He is calm.", "He is rude."),
    ]
    assert len(found) == len(ROWS) + 3
    [words] = data.changes
    assert words.startswith("augment: 3 counterfactual twins beside 8 prompts; ")
    # left out: her money; two that are each other's twins; one whose preference would turn; one that is held out
    assert [words.count(f"{count:,} left out, as {REASONS[name]}") for name, count in
            {"unclear": 1, "known": 2, "reversed": 1, "elsewhere": 1}.items()] == [1, 1, 1, 1]  # fmt: skip
    table = data.rows["train"]
    assert list(table["prompt_id"])[:2] == ["0", "0/gender"]
    assert list(table["twin_id"])[:3] == ["0", "0", "1"]
    assert list(table["group"])[:3] == ["x", None, "x"]
    assert data.groups(table)[:3] == [[0, 1], [2], [3, 4, 5]]
    order = [prompt for batch in data.train_dataloader() for prompt in batch.texts]
    assert abs(order.index("Is he kind?") - order.index("Is she kind?")) == 1


def test_only_training_rows_get_twins_and_only_of_the_categories_named(tmp_path):
    path = files(tmp_path, validation=ROWS)
    data = ready(PromptDataModule(path, augment="cda", augment_categories=["occupational"]))
    assert len(data.rows["train"]) == len(ROWS) + 1
    assert len(data.rows["validation"]) == len(ROWS)


def test_the_limit_counts_prompts_of_the_data(tmp_path):
    rows = [{"prompt": f"Is he {word}?", "reference": "Ask him.", "biased": "No."} for word in "abcdef"]
    data = ready(PromptDataModule(files(tmp_path, rows), augment="cda", train_limit=3, batch_size=2, val_splits=None))
    assert len(data.rows["train"]) == 6
    prompts = list(data.rows["train"]["prompt"])
    assert [prompt.replace("she", "he") for prompt in prompts[1::2]] == prompts[::2]


def test_conversations_are_swapped_message_by_message(tmp_path):
    talk = [{"role": "system", "content": "She asks."}, {"role": "user", "content": "Is he kind?"}]
    row = {"prompt": talk, "reference": [{"role": "assistant", "content": "Ask him."}], "biased": "No."}
    data = ready(PromptDataModule(files(tmp_path, [row] * 2), augment="cda", batch_size=1, val_splits=None))
    twin = data.rows["train"][1]
    assert [message["content"] for message in twin["prompt"]] == ["He asks.", "Is she kind?"]
    assert twin["reference"][0]["content"] == "Ask her."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "cad"}, "augment is 'cad'; write cda"),
        ({"balance": "skw"}, "balance is 'skw'; write skew"),
        ({"augment": "cda", "balance": "skew"}, "both change the training rows; write one"),
        ({"augment": "cda", "twins": True}, "twins: true keeps the pairs of the data, and augment makes others"),
        ({"balance": "skew", "twins": True}, "and balance makes others"),
        ({"augment_categories": ["gender"]}, "names categories for augment: cda"),
        ({"augment": "cda", "augment_categories": []}, "names categories for augment: cda"),
        ({"balance": "skew", "balance_tau": 0.0}, "balance_tau is 0.0; write a positive number"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        PromptDataModule("unread.jsonl", **options)


def test_nothing_to_swap_is_an_error(tmp_path):
    rows = [{"prompt": f"Why {word}?", "reference": "So.", "biased": "No."} for word in "abcdef"]
    with pytest.raises(UserError, match="0 counterfactual twins beside 6 prompts; leave augment out"):
        ready(PromptDataModule(files(tmp_path, rows), augment="cda", val_splits=None))


class Learner(LightningModule):
    def __init__(self, *columns: str) -> None:
        super().__init__()
        if columns:
            self.columns = columns


def of_module(data: PromptDataModule, *columns: str) -> PromptDataModule:
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    data.trainer.strategy._lightning_module = Learner(*columns)
    return ready(data)


def test_what_is_not_learned_is_empty_in_a_twin_and_grpo_is_refused(tmp_path):
    path = files(tmp_path)
    data = of_module(PromptDataModule(path, augment="cda", val_splits=None), "reference")
    rows = {prompt: biased for prompt, _, biased in texts(data)}
    assert rows["Is he kind?"] == "No man is."
    assert rows["Is she kind?"] is None
    with pytest.raises(UserError, match="leave it out for Learner"):
        of_module(PromptDataModule(path, augment="cda", val_splits=None))


# -------------------------------------------------------------------- pairs without a difference


def test_pairs_of_one_text_are_left_out_of_dpo_and_counted_once(tmp_path):
    tie = {"prompt": "Who?", "reference": "All  of us.", "biased": "All of us."}
    path = files(tmp_path, [*ROWS, tie, tie], validation=[tie, *ROWS])
    data = of_module(PromptDataModule(path, columns={}), "reference", "biased")
    assert data.changes == ["2 of 10 rows left out, as 'reference' and 'biased' are the same text"]
    assert (len(data.rows["train"]), len(data.rows["validation"])) == (8, 8)
    for unaffected in (of_module(PromptDataModule(path), "reference"), of_module(PromptDataModule(path))):
        assert len(unaffected.rows["train"]) == 10
        assert unaffected.changes == []


def test_the_limit_counts_pairs_with_a_difference_and_twins_go_together(tmp_path):
    rows = [
        {"prompt": f"{side} {number}", "twin_id": str(number), "reference": "a", "biased": "a" if number < 3 else "b"}
        for number in range(8) for side in ("he", "she")
    ]  # fmt: skip
    rows[0]["biased"] = "b"  # its twin is a tie still
    data = of_module(PromptDataModule(files(tmp_path, rows), twins=True, train_limit=10, batch_size=2, val_splits=None),
                     "reference", "biased")  # fmt: skip
    assert len(data.rows["train"]) == 10
    left_out = "5 of 16 rows left out, as 'reference' and 'biased' are the same text, and 1 twin of theirs"
    assert data.changes == [left_out]


def test_data_without_a_difference_anywhere(tmp_path):
    rows = [{"prompt": "a", "reference": "b", "biased": "b"}] * 4
    with pytest.raises(UserError, match="'reference' and 'biased' are the same text in every row"):
        of_module(PromptDataModule(files(tmp_path, rows), val_splits=None), "reference", "biased")


def test_empty_responses_are_no_ties(tmp_path):
    rows = [{"prompt": str(n), "reference": None, "biased": None} for n in range(4)]
    data = of_module(PromptDataModule(files(tmp_path, rows), val_splits=None), "reference", "biased")
    assert len(data.rows["train"]) == 4  # the module refuses them, with file and row
