from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_files import write

from lit_debias.errors import UserError
from lit_debias.evaluation.prompts import available, choose_splits, draw, read_prompts


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


# -------------------------------------------------------------------- prompts of any kind


ROWS = [{"question": f"Why {number}?", "region": "north"} for number in range(3)]
COLUMNS = {"prompt": "question", "group": "region"}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_and_a_map_of_columns(suffix, tmp_path):
    file = str(write(tmp_path / f"x.{suffix}", ROWS))
    rows = read_prompts(file, choose_splits(file, None), COLUMNS)
    assert [(row["prompt"], row["group"], row["prompt_id"]) for row in rows] == [
        (f"Why {number}?", "north", f"train-{number}") for number in range(3)
    ]
    assert rows[0]["twin_id"] == "train-0"
    assert sorted(available(rows)) == sorted(["twin_id", *ROWS[0], *COLUMNS, "prompt_id", "split", "origin"])


def test_splits_that_nobody_named(tmp_path):
    def chosen(*names):
        folder = tmp_path / "-".join(names)
        for name in names:
            write(folder / f"{name}.jsonl", ROWS)
        return choose_splits(str(folder), None)

    assert chosen("train", "test_group", "test_template", "test") == ("test_template", "test_group")
    assert chosen("train", "test") == ("test",)
    assert chosen("dev") == ("dev",)
    with pytest.raises(UserError, match=r"has dev, train; name those that are asked"):
        chosen("train", "dev")
    folder = str(tmp_path / "dev")
    assert choose_splits(folder, "dev") == ("dev",)
    with pytest.raises(UserError, match="'dev' is there twice"):
        choose_splits(folder, ["dev", "dev"])


def test_the_splits_of_one_file(tmp_path):
    file = str(write(tmp_path / "x.csv", [{"prompt": "a", "split": "test"}, {"prompt": "b", "split": "train"}]))
    assert [row["prompt"] for row in read_prompts(file, choose_splits(file, None))] == ["a"]
    assert [row["split"] for row in read_prompts(file, ("train", "test"))] == ["train", "test"]


def test_prompts_of_the_hub(monkeypatch):
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["default"])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["test", "train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list(ROWS))
    assert choose_splits("someone/bias", None) == ("test",)
    rows = read_prompts("someone/bias", ("test",), COLUMNS)
    assert [row["origin"] for row in rows] == [f"data 'someone/bias', split 'test', row {n}" for n in (1, 2, 3)]

    def fail(*_):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(UserError, match="'someone/bias' is no file or folder here, and the hub says: no route"):
        choose_splits("someone/bias", None)


def read(tmp_path, *rows, suffix="jsonl"):
    return read_prompts(str(write(tmp_path / f"x.{suffix}", list(rows))), ("train",))


def test_two_rows_with_one_twin_id_are_twins(tmp_path):
    rows = read(
        tmp_path,
        {"prompt": "a", "group": "A", "twin_id": 1},
        {"prompt": "b", "group": "B", "twin_id": 1},
        {"prompt": "c", "group": "C", "twin_id": 2},
        {"prompt": "d", "group": "D", "twin_id": None},
    )
    assert [(row["twin_id"], row["counterfactual_prompt"], row["counterfactual_group"]) for row in rows] == [
        ("1", "b", "B"),
        ("1", "a", "A"),
        ("2", "", ""),
        ("train-3", "", ""),
    ]


def test_cells_of_other_types_are_what_they_say(tmp_path):
    (row,) = read(tmp_path, {"prompt": "a", "group": 7, "category": True, "choices": [1, 2], "biased_choice": 1.0})
    assert (row["group"], row["category"], row["choices"], row["biased_choice"]) == ("7", "True", ["1", "2"], 1)
    assert row["ambiguous"]  # no answer is right
    (row,) = read(
        tmp_path,
        {"prompt": "a", "choices": '["yes", "no"]', "answer": "no", "biased_choice": "0", "ambiguous": "no"},
        suffix="csv",
    )
    assert (row["choices"], row["answer"], row["biased_choice"], row["ambiguous"]) == (["yes", "no"], 1, 0, False)
    (row,) = read(tmp_path, {"prompt": "a", "answer": "Paris", "group": "", "prompt_kind": ""}, suffix="csv")
    assert (row["answer"], row["group"], row["prompt_kind"]) == (-1, "all", "open")  # an answer to no choices


def test_a_column_may_be_empty_in_some_rows(tmp_path):
    first, second = read(tmp_path, {"prompt": "a", "note": None}, {"prompt": "b", "note": "n", "reference": "r"})
    assert (first["note"], first["reference"], second["note"]) == (None, "", "n")
    assert list(first) == list(second)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"prompt": "a"}, r"row 2: 'a' is asked before, .*row 1; leave one out"),
        ({"prompt": "a", "group": "other"}, r"row 2: 'a' is asked before"),
        ({"prompt": ""}, r"row 2: 'prompt' is ''; write a text"),
        ({"prompt": "b", "group": ["x"]}, r"row 2: 'group' is \['x'\]; write a text"),
        ({"prompt": "b", "choices": ["x"]}, r"row 2: 'choices' is \['x'\]; write two choices or more"),
        ({"prompt": "b", "choices": ["x", "x"]}, r"row 2: 'choices' is .*; write two choices or more, each once"),
        ({"prompt": "b", "choices": ["x", "y"], "answer": "z"}, r"row 2: 'answer' is 'z'; write a place among"),
        ({"prompt": "b", "choices": ["x", "y"], "answer": 1.5}, r"row 2: 'answer' is 1\.5; write a place among"),
        ({"prompt": "b", "ambiguous": "perhaps"}, r"row 2: 'ambiguous' is 'perhaps'; write true or false"),
        ({"prompt": "b", "reference": 3}, r"row 2: 'reference' is 3; write a text, or nothing"),
        ({"prompt": "b", "twin_id": "t", "cluster": "d"}, r"row 2: another 'cluster' than its twin, .*row 1"),
        ({"prompt": "a", "twin_id": "t", "reference": "r"}, r"row 1: its twin has the same prompt"),
    ],
)
def test_what_cannot_be_asked_is_one_line(second, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, {"prompt": "a", "twin_id": "t"}, second)
    assert "\n" not in str(caught.value)


def test_three_twins_are_refused_and_a_cluster_is_offered(tmp_path):
    with pytest.raises(UserError, match=r"row 3: the third row with twin_id 't'.*map another column to 'cluster'"):
        read(tmp_path, *({"prompt": prompt, "twin_id": "t"} for prompt in "abc"))
