"""Preferences: users, pairs in order, and what is refused."""

from __future__ import annotations

import pytest
from prompt_files import ready, write

from lit_debias.data import PreferenceDataModule
from lit_debias.errors import UserError

PAIR = {"user": "u", "prompt": "p", "chosen": "a", "rejected": "b"}


def pairs(tmp_path, rows, **options) -> PreferenceDataModule:
    return ready(PreferenceDataModule(str(write(tmp_path / "pairs.jsonl", rows)), **({"batch_size": 1} | options)))


def test_every_pair_of_a_stage_comes_in_order_and_by_its_number(tmp_path):
    rows = [PAIR | {"user": user, "chosen": f"a{user}", "group": group} for user, group in ((7, "x"), (8, None))]
    rows += [PAIR | {"user": 9, "split": "validation"}]
    data = pairs(tmp_path, [row | {"split": row.get("split", "train")} for row in rows], val_batch_size=2)
    [batch] = data.in_order("train")
    assert (batch["user"], batch["group"], batch["pair"]) == (["7", "8"], ["x", None], [0, 1])
    assert sorted(batch["chosen"][0] for batch in data.train_dataloader()) == ["a7", "a8"]
    assert [batch["user"] for batch in data.in_order("validation")] == [["9"]]


def test_users_of_a_csv_file_are_texts_and_columns_have_other_names(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("who,prompt,better,rejected\n007,p,1,2\n7,p,1,2\n")
    data = ready(PreferenceDataModule(str(file), columns={"user": "who", "chosen": "better"}, batch_size=1))
    [batch] = data.in_order("train")
    assert batch["user"] == ["007", "7"]
    with pytest.raises(UserError, match="has no split 'validation'"):
        data.in_order("validation")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"user": "u", "prompt": "p", "chosen": "a"}], "has no column 'rejected'"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], r"has no column 'user'.*columns\.user"),
        ([PAIR, PAIR | {"user": None}], "row 2: there is no 'user'"),
        ([PAIR | {"user": " "}], "row 1: 'user' is empty"),
        ([PAIR | {"rejected": "a"}], "row 1: 'chosen' and 'rejected' are the same text, 'a'"),
        ([PAIR | {"chosen": ""}], "row 1: 'chosen' is ''; write a text"),
        ([PAIR | {"group": "x"}, PAIR | {"group": "y"}], "row 2: user 'u' is of the group 'y', and before of 'x'"),
    ],
)
def test_what_is_no_preference_is_one_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        pairs(tmp_path, rows)
