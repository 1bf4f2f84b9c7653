from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_debias.errors import UserError
from lit_debias.evaluation.prompts import choose_splits, draw, read_prompts


@pytest.fixture
def data(tmp_path):
    def write(split, rows):
        (tmp_path / "prompts").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts" / f"{split}.parquet")
        return str(tmp_path)

    return write


def test_missing_twins_are_added_and_present_ones_are_not(data):
    common = {"twin_id": "t", "prompt_kind": "open", "biased": "They are lazy.", "reference": "It depends."}
    folder = data(
        "test",
        [
            {"prompt": "a", "counterfactual_prompt": "b", "group": "A", "counterfactual_group": "B", **common},
            {"prompt": "b", "counterfactual_prompt": "a", "group": "B", "counterfactual_group": "A", **common},
            {"prompt": "c", "counterfactual_prompt": "d", "group": "A", "counterfactual_group": "B", **common},
        ],
    )
    rows = read_prompts(folder, ["test"])
    assert [row["prompt"] for row in rows] == ["a", "b", "c", "d"]
    added = rows[-1]
    assert (added["group"], added["counterfactual_prompt"], added["biased"]) == ("B", "c", "")
    assert added["twin_id"] == "t"


def test_prompts_alone_are_enough(data):
    rows = read_prompts(data("test", [{"prompt": "a", "group": None}]), ["test"])
    assert rows[0]["twin_id"] == "test-0"
    assert rows[0]["group"] == "all"


def test_draw_takes_from_every_stratum_in_turn_and_keeps_twins(data):
    rows = [
        {"prompt": f"{kind}{i}{side}", "twin_id": f"{kind}{i}", "category": "c", "prompt_kind": kind}
        for kind, count in (("open", 50), ("control", 3))
        for i in range(count)
        for side in "ab"
    ]
    drawn = draw(rows, 8, seed=0)
    twins = Counter(row["twin_id"] for row in drawn)
    assert len(twins) == 8
    assert set(twins.values()) == {2}
    assert Counter(row["prompt_kind"] for row in drawn) == {"control": 6, "open": 10}
    assert draw(rows, 8, seed=0) == drawn
    assert draw(rows, 8, seed=1) != drawn
    assert len(draw(rows, None, seed=0)) == len(rows)


def test_errors_say_what_to_write(data, tmp_path):
    with pytest.raises(UserError, match="lit-debias synthesize"):
        choose_splits(str(tmp_path / "nowhere"), ["test"])
    folder = data("test_group", [{"prompt": "a"}])
    with pytest.raises(UserError, match="did you mean 'test_group'"):
        choose_splits(folder, ["test_groups"])
    with pytest.raises(UserError, match="write some of: test_group"):
        choose_splits(folder, [])
    data("bad", [{"text": "a"}])
    with pytest.raises(UserError, match="no column 'prompt'; known: text; name it with --columns"):
        read_prompts(folder, ["bad"])
