"""Where rows come from: every format gives the same, and what is wrong is one line that says where."""

import datasets
import pytest
from prompt_files import ROWS, ready, write

from lit_debias.data import PromptDataModule, ResponseDataModule
from lit_debias.data.sources import split_names
from lit_debias.errors import UserError
from lit_debias.support import distributed
from lit_debias.types import PromptBatch


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_prompts(tmp_path, suffix):
    file = write(tmp_path / f"mine.{suffix}", ROWS)
    data = ready(PromptDataModule(str(file), columns={"reference": "target"}, batch_size=5))
    batches = list(data.train_dataloader())
    assert all(isinstance(batch, PromptBatch) for batch in batches)
    pairs = {
        (text, ref) for batch in batches for text, ref in zip(batch.texts, batch.columns["reference"], strict=True)
    }
    assert pairs == {(row["prompt"], row["target"]) for row in ROWS}
    assert data.column_names == ["prompt", "target", "reference", "prompt_id"]
    assert data.val_dataloader() == []  # a file without splits is all training data


def test_a_folder_of_files_named_after_splits(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "dev.jsonl", ROWS[:3])
    data = ready(PromptDataModule(str(tmp_path), val_splits="dev", batch_size=5))
    assert [batch.texts for batch in data.val_dataloader()] == [["prompt 0", "prompt 1", "prompt 2"]]
    with pytest.raises(UserError, match="has no split 'validation'; it has: dev, train"):
        ready(PromptDataModule(str(tmp_path)))


@pytest.mark.parametrize("suffix", ["file", "folder", "hub"])
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_stage_takes_the_only_split_in_the_place_of_its_default(stage, suffix, tmp_path, monkeypatch):
    def load(name, config, split):
        assert split == "dev"
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: [])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["dev"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    paths = {"file": write(tmp_path / "x.jsonl", [{**row, "split": "dev"} for row in ROWS]), "hub": "someone/debias"}
    write(tmp_path / "folder" / "dev.jsonl", ROWS)
    data = PromptDataModule(str(paths.get(suffix, tmp_path / "folder")))
    data.setup(stage)
    role = {"fit": "train", "validate": "validation"}.get(stage, "test")
    assert {name: rows and rows["prompt"] for name, rows in data.rows.items()} == {
        **({"validation": None} if stage == "fit" else {}),
        role: [row["prompt"] for row in ROWS],
    }


def test_a_split_that_is_named_or_held_out_has_no_substitute(tmp_path):
    write(tmp_path / "test.jsonl", ROWS)
    for data, stage, message in (
        (PromptDataModule(str(tmp_path), test_splits="dev"), "predict", "no split 'dev'; it has: test; .*test_splits"),
        (PromptDataModule(str(tmp_path), val_splits="dev"), "validate", "no split 'dev'; it has: test; .*val_splits"),
        (PromptDataModule(str(tmp_path)), "fit", "no split 'train'; it has: test; .*train_split"),
        (ResponseDataModule(str(tmp_path), val_split="dev"), "validate", "no split 'dev'.*init_args.val_split$"),
    ):
        with pytest.raises(UserError, match=message):
            data.setup(stage)
    write(tmp_path / "train.jsonl", ROWS)
    data = PromptDataModule(str(tmp_path))
    data.setup("predict")
    assert len(data.rows["test"]) == len(ROWS)


def test_parts_of_a_split_are_read_together_as_the_hub_names_them(tmp_path):
    for number in range(2):
        write(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", ROWS[5 * number : 5 * number + 5])
    (tmp_path / "dataset_infos.json").write_text("{}")
    data = ready(PromptDataModule(str(tmp_path), val_splits=None, batch_size=10))
    (batch,) = data.train_dataloader()
    assert sorted(batch.texts) == [row["prompt"] for row in ROWS]
    assert split_names(str(tmp_path), "prompts") == ["train"]
    (tmp_path / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"split 'train' lacks parts; it has train-00001-of-00002\.parquet"):
        ready(PromptDataModule(str(tmp_path), val_splits=None))


def test_a_split_that_is_there_twice_is_refused(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"has the split 'train' twice: train\.csv, train\.jsonl; leave one of them"):
        ready(PromptDataModule(str(tmp_path), val_splits=None))


def test_what_datasets_saved_to_disk_is_read(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "dev": rows.select([0])}).save_to_disk(tmp_path / "many")
    one = ready(PromptDataModule(str(tmp_path / "one"), batch_size=10))
    many = ready(PromptDataModule(str(tmp_path / "many"), val_splits="dev", batch_size=10))
    for data in (one, many):
        assert sorted(next(iter(data.train_dataloader())).texts) == [row["prompt"] for row in ROWS]
    assert next(iter(many.val_dataloader())).texts == ["prompt 0"]
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"one' is malformed") as caught:
        ready(PromptDataModule(str(tmp_path / "one")))
    assert "\n" not in str(caught.value)


def test_one_file_with_a_split_column(tmp_path):
    rows = [{**row, "split": "validation" if number < 4 else "train"} for number, row in enumerate(ROWS)]
    data = ready(PromptDataModule(str(write(tmp_path / "all.parquet", rows)), batch_size=3, val_batch_size=4))
    assert [batch.texts for batch in data.val_dataloader()] == [[f"prompt {number}" for number in range(4)]]
    assert len(data.train_dataloader()) == 2


def test_json_lines_keep_line_separators_in_strings_and_fill_missing_keys(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('\ufeff{"prompt": "a\u2028b"}\n\n{"prompt": "c", "note": "n"}\n', encoding="utf-8")
    batch = next(iter(ready(PromptDataModule(str(file), batch_size=2)).train_dataloader()))
    assert dict(zip(batch.texts, batch.columns["note"], strict=True)) == {"a\u2028b": None, "c": "n"}


def test_a_hub_data_set_is_asked_for_its_table(monkeypatch):
    calls = []

    def load(name, config, split):
        calls.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["prompts", "responses"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    ready(PromptDataModule("someone/debias", val_splits=None))
    ready(PromptDataModule("someone/debias:other", val_splits=None))
    assert calls == [("someone/debias", "prompts", "train"), ("someone/debias", "other", "train")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"x\.jsonl', row 2 is no valid JSON"),
        ("x.jsonl", '{"prompt": "a"}\n["b"]\n', r"row 2: expected an object"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', r"malformed"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n', r"row 2: 'prompt' is ''; write a text"),
        ("x.jsonl", '{"prompt": "a"}\n{"other": "b"}\n', r"row 2: 'prompt' is None"),
        ("x.jsonl", '{"promt": "a"}\n', r"has no column 'prompt'; did you mean 'promt'\?; name it with"),
        ("x.jsonl", '{"id": "a", "words": "b"}\n', r"has no column 'prompt'; known: id, words; name it with"),
        ("x.json", '[{"prompt": "a"}', r"x\.json' is no valid JSON"),
        ("x.csv", "prompt\n", r"has no rows"),
        ("x.csv", "prompt,note\na,b\nc\n", r"malformed.*Expected 2 columns, got 1"),
        ("x.parquet", "no parquet", r"malformed"),
        ("x.txt", "prompt", r"cannot read '\.txt'; write one of \.parquet, \.jsonl, \.json, \.csv"),
        ("x.jsonl", "", r"has no rows"),
    ],
)
def test_malformed_files_are_one_line_that_says_where(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        ready(PromptDataModule(str(file), batch_size=1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["missing.jsonl", "./folder/none", "/nowhere/at/all", "no-such-word"])
def test_missing_paths(path):
    with pytest.raises(UserError, match="no such file or folder"):
        ready(PromptDataModule(path))


def test_wrong_arguments(tmp_path, monkeypatch):
    file = str(write(tmp_path / "prompts.jsonl", ROWS))
    for arguments, message in (
        ({"batch_size": 0}, "train batch size is 0"),
        ({"val_limit": -1}, "validation limit is -1"),
    ):
        with pytest.raises(UserError, match=message):
            PromptDataModule(file, **arguments)
    for arguments, message in (
        ({"batch_size": 11}, "10 rows to train on are fewer than batch_size 11"),
        (
            {"columns": {"reference": "answer"}},
            r"has no column 'answer' \(wanted as 'reference'\); it has: prompt, target",
        ),
        ({"prompt_kinds": ["open"]}, "has no column 'prompt_kind'"),
        (
            {"train_split": "training"},
            "has no split 'training'; it has: train; name one with .*train_split",
        ),
    ):
        with pytest.raises(UserError, match=message):
            ready(PromptDataModule(file, **arguments))
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(UserError, match="train batch size 4 is over all ranks, and there are 3"):
        ready(PromptDataModule(file))
