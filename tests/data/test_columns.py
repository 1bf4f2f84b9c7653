"""Types of columns: what a CSV file says is what is read, Parquet's types become plain ones, splits agree."""

import uuid
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from prompt_files import ready

from lit_debias.data import PromptDataModule, ResponseDataModule
from lit_debias.data.columns import cells
from lit_debias.data.sources import read_file
from lit_debias.errors import UserError

# -------------------------------------------------------------------- CSV


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["007", "010"], ["007", "010"]),
        (["7", "-3", "0"], [7, -3, 0]),
        (["7", ""], [7, None]),
        (["0.25", "1"], [0.25, 1.0]),
        (["0.50", "1"], ["0.50", "1"]),
        (["1.0", "1e-05"], [1.0, 1e-05]),
        (["1e5", "2"], ["1e5", "2"]),
        (["+1", "2"], ["+1", "2"]),
        (["-0", "2"], ["-0", "2"]),
        (["1_000", "2"], ["1_000", "2"]),
        ([" 1", "2"], [" 1", "2"]),
        (["\u0661", "2"], ["\u0661", "2"]),
        (["nan", "1.5"], ["nan", "1.5"]),
        (["inf", "1.5"], ["inf", "1.5"]),
        (["NaN", "NA"], ["NaN", "NA"]),
        (["None", "null", ""], ["None", "null", ""]),
        (["True", "false"], ["True", "false"]),
        (["2026-01-02", "12:30"], ["2026-01-02", "12:30"]),
        ([str(2**63 - 1), "1"], [2**63 - 1, 1]),
        ([str(2**63), "1"], [str(2**63), "1"]),
        ([str(2**53 + 1), "0.5"], [str(2**53 + 1), "0.5"]),
        (["", ""], [None, None]),
    ],
)
def test_a_column_of_a_csv_file_is_numbers_only_where_that_loses_nothing(cells, values, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("other,x\n" + "".join(f"a,{cell}\n" for cell in cells), encoding="utf-8")
    found = read_file(file)["x"][:]
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


def test_prompts_and_other_known_texts_stay_texts(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("question,region,reference,level\n1984,7,12,3\n2001,8,13,4\n")
    data = PromptDataModule(str(file), prompt_column="question", columns={"group": "region"}, batch_size=2)
    (batch,) = ready(data).train_dataloader()
    rows = sorted(zip(batch.texts, *(batch.columns[name] for name in ("group", "reference", "level")), strict=True))
    assert rows == [("1984", "7", "12", 3), ("2001", "8", "13", 4)]
    mapped = ready(PromptDataModule(str(file), columns={"prompt": "question"}, batch_size=2))
    assert sorted(next(iter(mapped.train_dataloader())).texts) == ["1984", "2001"]


def test_splits_of_a_csv_file_may_have_numbers_for_names(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("prompt,split\na,0\nb,1\n")
    data = ready(PromptDataModule(str(file), train_split="1", val_splits=None, batch_size=1))
    assert next(iter(data.train_dataloader())).texts == ["b"]


def test_labels_may_be_texts(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("prompt,response,fairness,quality\np,r,0.50,\np,s,1.00,\n")
    (batch,) = ready(ResponseDataModule(str(file), batch_size=2)).train_dataloader()
    assert dict(zip(batch["response"], batch["labels"][:, 0].tolist(), strict=True)) == {"r": 0.5, "s": 1.0}
    assert batch["labels"][:, 1:].isnan().all()
    file.write_text("prompt,response,fairness\np,r,0.50\np,s,fair\n")
    with pytest.raises(UserError, match=r"row 3: fairness is 'fair'; write 0 to 1, or nothing"):
        ready(ResponseDataModule(str(file), batch_size=2))


def test_equal_prompts_of_two_splits_are_one_prompt_and_others_are_not(tmp_path):
    for split, prompt in (("a", "p"), ("b", "q"), ("c", "p")):
        (tmp_path / f"{split}.csv").write_text(f"prompt,response,fairness\n{prompt},{split},1\n")
    data = ready(ResponseDataModule(str(tmp_path), test_split=["a", "b", "c"]), "test")
    a, b, c = data.rows["test"]["prompt_id"]
    assert a == c != b


# -------------------------------------------------------------------- Parquet

NAME = uuid.UUID(int=7)
PLAIN = {
    "map": (pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())), [[{"key": "a", "value": 1}], None]),
    "map within": (
        pa.array([{"m": [("a", 1)]}] * 2, pa.struct({"m": pa.map_(pa.string(), pa.int64())})),
        [{"m": [{"key": "a", "value": 1}]}] * 2,
    ),
    "category": (pa.array(["x", None]).dictionary_encode(), ["x", None]),
    "category of numbers": (pa.array([3, 4]).dictionary_encode(), [3, 4]),
    "uuid": (pa.array([NAME.bytes, None], pa.uuid()), [str(NAME), None]),
    "list view": (pa.array([["a"], None], pa.list_view(pa.string())), [["a"], None]),
    "decimal": (pa.array([Decimal("1.50"), None], pa.decimal32(5, 2)), [Decimal("1.50"), None]),
    "string view": (pa.array(["a", None], pa.string_view()), ["a", None]),
    "nothing": (pa.nulls(2), [None, None]),
}


@pytest.mark.parametrize(("column", "values"), PLAIN.values(), ids=PLAIN)
def test_types_of_parquet_become_plain_ones(column, values, tmp_path):
    pq.write_table(pa.table({"prompt": ["p", "q"], "x": column}), tmp_path / "x.parquet")
    (batch,) = ready(PromptDataModule(str(tmp_path / "x.parquet"), batch_size=2)).train_dataloader()
    found = dict(zip(batch.texts, batch.columns["x"], strict=True))
    assert [found["p"], found["q"]] == values


def test_a_type_that_no_reward_reads_is_one_line(tmp_path):
    rows = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2,)), rows)
    pq.write_table(pa.table({"prompt": ["p"], "x": tensors}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet': column 'x' has the type extension<arrow\.fixed_shape_tensor"):
        read_file(tmp_path / "x.parquet")


def test_notes_of_another_version_of_datasets_are_passed_over(tmp_path):
    noted = b'{"info": {"features": {"prompt": {"dtype": "string", "_type": "FutureText"}}}}'
    table = pa.table({"prompt": ["p"]}).replace_schema_metadata({b"huggingface": noted})
    pq.write_table(table, tmp_path / "x.parquet")
    assert read_file(tmp_path / "x.parquet")["prompt"][:] == ["p"]


# -------------------------------------------------------------------- splits that disagree


def splits(folder, *files):
    for number, (suffix, content) in enumerate(files):
        (folder / f"s{number}.{suffix}").write_text(content)
    names = [f"s{number}" for number in range(len(files))]
    data = ready(PromptDataModule(str(folder), test_splits=names, val_splits=None), "test")
    return data.rows["test"]["x"][:]


@pytest.mark.parametrize(
    ("files", "values"),
    [
        ([("csv", "prompt,x\na,1\n"), ("csv", "prompt,x\nb,high\n")], ["1", "high"]),
        ([("csv", "prompt,x\na,1.5\n"), ("csv", "prompt,x\nb,high\n")], ["1.5", "high"]),
        ([("csv", "prompt,x\na,1\n"), ("csv", "prompt,x\nb,1.5\n")], [1.0, 1.5]),
        ([("csv", "prompt,x\na,\n"), ("csv", "prompt,x\nb,high\n")], [None, "high"]),
        ([("csv", "prompt,x\na,1\n"), ("csv", "prompt,y\nb,2\n")], [1, None]),
        (
            [("jsonl", '{"prompt": "a", "x": [1]}'), ("jsonl", '{"prompt": "b", "x": ["c"]}')],
            [["1"], ["c"]],
        ),
        (
            [
                ("jsonl", '{"prompt": "a", "x": [{"role": "user", "content": "c"}]}'),
                ("jsonl", '{"prompt": "b", "x": [{"content": "d", "role": "user", "name": "e"}]}'),
            ],
            [[{"role": "user", "content": "c", "name": None}], [{"role": "user", "content": "d", "name": "e"}]],
        ),
    ],
)
def test_splits_with_other_types_get_the_one_that_holds_both(files, values, tmp_path):
    assert splits(tmp_path, *files) == values


def test_splits_whose_types_no_type_holds_are_one_line(tmp_path):
    files = [("jsonl", '{"prompt": "a", "x": ["b"]}'), ("csv", "prompt,x\na,b\n")]
    with pytest.raises(UserError, match=r"column 'x' is list<.*> in 's0' and string in 's1'; write one kind") as caught:
        splits(tmp_path, *files)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------- maps of columns


def columns_of(file, **mapped) -> dict[str, list]:
    data = ready(PromptDataModule(str(file), columns=mapped, batch_size=1))
    batch = next(iter(data.train_dataloader()))
    return {"prompt": batch.texts, **{name: batch.columns[name] for name in batch.columns if name != "prompt_id"}}


@pytest.mark.parametrize(
    ("mapped", "columns"),
    [
        ({"prompt": "group", "group": "prompt"}, {"prompt": ["Why?"], "group": ["north"]}),  # they change places
        ({"protected": "group", "group": "group"}, {"prompt": ["north"], "group": ["Why?"], "protected": ["Why?"]}),
        ({"protected": "group"}, {"prompt": ["north"], "group": ["Why?"], "protected": ["Why?"]}),
        ({"a": "group", "b": "group"}, {"prompt": ["north"], "group": ["Why?"], "a": ["Why?"], "b": ["Why?"]}),
        ({"prompt": "group"}, {"prompt": ["Why?"], "group": ["Why?"]}),
    ],
)
def test_a_column_serves_each_name_that_asks_for_it_and_keeps_its_own(mapped, columns, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("prompt,group\nnorth,Why?\n")
    assert columns_of(file, **mapped) == columns


def test_cells_are_the_column_over_many_thousands():
    numbers = list(range(2345))
    assert list(cells(Dataset.from_dict({"n": numbers}), "n")) == numbers
