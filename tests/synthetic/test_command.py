"""`lit-debias synthesize`: the folder that it writes, replaces or leaves alone."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from lit_debias.data.tables import SCHEMAS
from lit_debias.errors import UserError
from lit_debias.synthetic.splits import SPLITS
from lit_debias.synthetic.synthesis import synthesize
from lit_debias.synthetic.taxonomy import WORDING, Taxonomy


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    synthesize(out, size=400)
    return out


def test_equal_arguments_give_equal_bytes_and_another_seed_other_ones(folder, tmp_path):
    synthesize(tmp_path / "again", size=400)
    assert tree(tmp_path / "again") == tree(folder)
    synthesize(tmp_path / "other", size=400, seed=1)
    assert tree(tmp_path / "other")["responses/train.parquet"] != tree(folder)["responses/train.parquet"]


def test_files_have_the_promised_columns_and_about_the_asked_size(folder):
    rows = 0
    for table, schema in SCHEMAS.items():
        for split in SPLITS:
            content = pq.read_table(folder / table / f"{split}.parquet")
            assert content.schema.equals(schema)
            assert set(content["split"].to_pylist()) == {split}
            rows += content.num_rows if table == "responses" else 0
    assert 400 <= rows <= 400 + 7 * 12  # up to one pair of twins more in each split


def test_the_card_warns_counts_and_configures(folder):
    _, front, card = (folder / "README.md").read_text().split("---\n", 2)
    configs = yaml.safe_load(front)["configs"]
    assert [config["config_name"] for config in configs] == ["prompts", "responses"]
    for config in configs:
        assert [entry["split"] for entry in config["data_files"]] == list(SPLITS)
        assert all((folder / entry["path"]).is_file() for entry in config["data_files"])
    count = pq.read_metadata(folder / "prompts/train.parquet").num_rows
    assert f"| train | {count} |" in card
    assert "Content warning" in card
    assert "generator version" in card
    assert "| regional |" in card.split("## From the grammar")[1].split("## Columns")[0]


def test_datasets_loads_the_folder(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(folder), "responses", cache_dir=str(tmp_path))
    assert tuple(loaded) == SPLITS
    assert loaded["train"].column_names == SCHEMAS["responses"].names


def test_a_shared_export_has_nothing_of_intensity_3_and_4(tmp_path):
    synthesize(tmp_path / "safe", size=300, include_harmful=False)
    rows = [row for file in (tmp_path / "safe/responses").iterdir() for row in pq.read_table(file).to_pylist()]
    assert {row["intensity"] for row in rows} == {0, 1, 2}
    families = {row["template_id"] for row in rows}
    assert families.isdisjoint(family.id for family in Taxonomy.load().families if family.harm)
    assert "hostile text, about" not in (tmp_path / "safe/README.md").read_text()


def test_an_existing_folder_is_reused_refused_or_replaced(folder, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    synthesize(folder, size=400)
    assert "reused" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before
    with pytest.raises(UserError, match="made with other arguments; add --overwrite"):
        synthesize(folder, size=500)
    copy = tmp_path / "copy"
    synthesize(copy, size=300)
    synthesize(copy, size=400, overwrite=True)
    assert json.loads((copy / "arguments.json").read_text())["size"] == 400
    assert tree(copy) == tree(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]  # no work folder is left


def test_a_data_set_that_cannot_be_replaced_is_still_there(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*.*")}

    def fail(*_):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("lit_debias.synthetic.synthesis.data_card", fail)  # when the tables are written
    with pytest.raises(UserError, match=r"cannot write --out .*copy: .*Permission denied; what was there is untouched"):
        synthesize(copy, size=400, overwrite=True)
    assert {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*.*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    with pytest.raises(UserError, match="cannot write --out"):
        synthesize(tmp_path / "first", size=400)
    assert not (tmp_path / "first").exists()


def test_a_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="has not made"):
        synthesize(tmp_path, size=400, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(UserError, match="is a file"):
        synthesize(tmp_path / "thesis.txt", size=400)


def test_too_small_a_size(tmp_path):
    with pytest.raises(UserError, match=r"--size 20 leaves a split empty; write at least \d+"):
        synthesize(tmp_path / "x", size=20)


def test_edited_wording_is_used(tmp_path):
    wording = shutil.copytree(WORDING, tmp_path / "wording")
    groups = wording / "groups.yaml"
    groups.write_text(groups.read_text().replace("people from Henan", "people from Atlantis"))
    synthesize(tmp_path / "out", size=3000, wording=wording)
    text = " ".join(pq.read_table(tmp_path / "out/prompts/train.parquet")["prompt"].to_pylist())
    assert "people from Atlantis" in text.replace("People", "people")
    assert "eople from Henan" not in text
