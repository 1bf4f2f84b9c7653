"""A column of pictures: where they come into prompts, and what is refused before a model is loaded."""

import json
import re

import pytest
from PIL import Image
from seeing_models import draw

from lit_debias.conversations import files_in, in_parts, read_prompt, without_pictures, words_of
from lit_debias.data import PromptDataModule
from lit_debias.data.images import Images
from lit_debias.errors import UserError
from lit_debias.support.picture_files import read_picture, size_of
from lit_debias.types import PromptBatch

IMAGE = {"type": "image"}


def text(said):
    return {"type": "text", "text": said}


def read(folder, *rows, root="pictures", **options):
    """Return the training batch of rows whose pictures lie in a folder beside the file."""
    file = folder / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    images = Images(root=None if root is None else str(folder / root))
    module = PromptDataModule(str(file), batch_size=len(rows), val_splits=None, images=images, **options)
    module.setup("fit")
    (batch,) = module.train_dataloader()
    return batch


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures" / "below").mkdir(parents=True)
    draw(tmp_path / "pictures")
    Image.new("RGB", (8, 4)).save(tmp_path / "pictures" / "below" / "one.jpg")
    return tmp_path


def test_pictures_come_before_the_text_of_a_prompt(folder):
    turns = [{"role": role, "content": said} for role, said in zip(["user", "assistant", "user"], "abc", strict=True)]
    rows = [
        {"prompt": "who?", "images": "red-disc.png"},
        {"prompt": turns, "images": ["blue-disc.png", "below/one.jpg"]},
    ]
    batch = read(folder, rows[1]), read(folder, rows[0])
    (several,), (one,) = (part.asked for part in batch)
    pictures = folder.resolve() / "pictures"
    assert files_in(one) == [str(pictures / "red-disc.png")]
    assert files_in(several) == [str(pictures / "blue-disc.png"), str(pictures / "below" / "one.jpg")]
    assert in_parts(one[0]) == {"role": "user", "content": [IMAGE, text("who?")]}
    assert [in_parts(message)["content"] for message in several] == [
        [text("a")],
        [text("b")],
        [IMAGE, IMAGE, text("c")],
    ]
    assert batch[1].texts == ["who?"]
    assert batch[0].columns["images"] == [["blue-disc.png", "below/one.jpg"]]


def test_pictures_stand_where_the_contents_have_parts(folder):
    content = [text("before "), IMAGE, text("between"), IMAGE]
    (prompt,) = read(folder, {"prompt": [{"role": "user", "content": content}], "images": ["red-disc.png"] * 2}).asked
    assert in_parts(prompt[0])["content"] == content
    assert words_of(prompt) == "before between"
    assert without_pictures(prompt) == [{"role": "user", "content": "before between"}]
    assert read_prompt(prompt, "again") == prompt
    (row,) = PromptBatch([words_of(prompt)], messages=[prompt]).rows()
    assert row == {"prompt": "before between", "messages": [{"role": "user", "content": content}]}


def test_the_folder_of_the_data_is_the_root_where_none_is_named(folder):
    (prompt,) = read(folder, {"prompt": "who?", "images": "pictures/red-disc.png"}, root=None).asked
    assert files_in(prompt) == [str(folder.resolve() / "pictures" / "red-disc.png")]


def test_groups_that_pictures_show_are_balanced(folder):
    shown = [*["red-disc.png"] * 6, *["blue-disc.png"] * 2]
    rows = [
        {"prompt": f"who, {number}?", "images": name, "group": name.split("-")[0], "concept": "disc"}
        for number, name in enumerate(shown)
    ]
    file = folder / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    images = Images(root=str(folder / "pictures"))
    module = PromptDataModule(str(file), batch_size=4, val_splits=None, images=images, balance="skew", seed=0)
    module.setup("fit")
    batches = list(module.train_dataloader())
    kept = [files_in(prompt)[0].rpartition("/")[2] for batch in batches for prompt in batch.asked]
    assert 2 <= kept.count("red-disc.png") < 6
    assert all("skew_weight" in batch.columns for batch in batches)


def test_twins_may_be_pictures(folder):
    rows = [{"prompt": "who?", "images": f"{colour}-disc.png", "twin_id": "a"} for colour in ("red", "blue")]
    assert len(read(folder, *rows, twins=True)) == 2
    with pytest.raises(UserError, match="1 different prompt; twins: true takes 2 with different"):
        read(folder, rows[0], rows[0], twins=True)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("gone.png", r"row 1: 'images': there is no picture '.*gone.png'; write the path of a file"),
        ("broken.png", r"row 1: 'images': picture '.*broken.png' cannot be read \("),
        ("cut.png", r"row 1: 'images': picture '.*cut.png' cannot be read \("),
        ("https://example.org/a.png", r"row 1: 'images' is the URL 'https://example.org/a.png', and none is read"),
        ("../train.jsonl", "row 1: 'images': '../train.jsonl' lies outside of images.root"),
        ("/etc/passwd", "row 1: 'images': '/etc/passwd' lies outside of images.root"),
        ([], "row 1: 'images' is an empty list; write at least one path"),
        (None, "row 1: 'images' is None; write a path, or a list of paths"),
    ],
)
def test_pictures_that_cannot_be_shown_are_one_line(folder, cell, reason):
    pictures = folder / "pictures"
    (pictures / "broken.png").write_text("no picture")
    (pictures / "cut.png").write_bytes((pictures / "red-disc.png").read_bytes()[:90])
    with pytest.raises(UserError, match=f"^data '{re.escape(str(folder))}/train.jsonl', {reason}"):
        read(folder, {"prompt": "who?", "images": cell})


def test_prompts_and_columns_that_do_not_fit_are_one_line(folder):
    with pytest.raises(UserError, match="'prompt' has 2 parts for images, and the row has 1; write one for each part"):
        read(folder, {"prompt": [{"role": "user", "content": [IMAGE, IMAGE, text("a")]}], "images": "red-disc.png"})
    with pytest.raises(UserError, match=r"the content is .*; write a text"):
        read(folder, {"prompt": [{"role": "user", "content": [IMAGE]}], "images": "red-disc.png"})
    with pytest.raises(UserError, match=r"has no column 'images'.*'image'"):
        read(folder, {"prompt": "who?", "image": "red-disc.png"})
    with pytest.raises(UserError, match=r"there is no folder '.*elsewhere'; write the one that holds the pictures"):
        read(folder, {"prompt": "who?", "images": "red-disc.png"}, root="elsewhere")
    with pytest.raises(UserError, match="augment swaps words, and images may show the group"):
        PromptDataModule("x", images=Images(), augment="cda")


def test_a_picture_is_upright_and_in_rgb(tmp_path):
    image = Image.new("L", (6, 2), 200)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    image.save(tmp_path / "a.jpg", exif=exif)
    picture = read_picture(str(tmp_path / "a.jpg"))
    assert (picture.size, picture.mode) == (size_of(str(tmp_path / "a.jpg")), "RGB") == ((2, 6), "RGB")


def test_prompts_with_parts_for_images_need_the_column():
    with pytest.raises(UserError, match=r"write a text, and pictures beside it by images: \{column: NAME\}"):
        read_prompt([{"role": "user", "content": [IMAGE, text("a")]}], "x")
