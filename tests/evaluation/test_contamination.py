"""What was trained on is not measured: sketches of data, marks in results, the table of training set by benchmark."""

import json

import pytest
from command_line import run as command
from command_line import said
from evaluation_runs import data, run  # noqa: F401  (fixtures among them)
from grpo_runs import trainer
from prompt_files import ready, write
from public_data import write_crows, write_stereoset

from lit_debias.benchmark.measuring import samples
from lit_debias.benchmark.public import CrowsPairs, StereoSet
from lit_debias.benchmark.public.pairs import SOURCES, with_blank
from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.evaluation.arms import Arm
from lit_debias.evaluation.contamination import contaminated, learned_prompts, refuse_learned, trained_on
from lit_debias.export.record import data_record
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.support.sketch import SIZE, overlap, sketch, strings_in
from lit_debias.training.dpo import DPO


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public")
    write_crows(folder)
    write_stereoset(folder)
    return folder


# -------------------------------------------------------------------- sketches


def test_sentences_are_found_whatever_their_case_and_marks():
    known = sketch(["The cook is LOUD, today. Too short here!", "The nurse is quiet today"])
    assert len(known) == 2
    assert overlap(["So: the nurse is quiet today?"], known) == (0, 1)
    assert overlap(["The cook is loud today! The cook is calm today.", "Too short here"], known) == (1, 2)


def test_a_large_data_set_is_known_by_a_sample_of_its_sentences():
    texts = [f"This is sentence number {number}." for number in range(4000)]
    known = sketch(texts[:2000])
    assert len(known) == SIZE
    assert overlap(texts[:2000], known) == (SIZE, SIZE)
    found, tested = overlap(texts, known)
    assert found == SIZE
    assert tested == pytest.approx(2 * SIZE, rel=0.1)  # half of the sentences are known
    assert overlap(texts[2000:], known)[0] == 0


def test_texts_in_cells():
    cell = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}, 3, None]
    assert [text for text in strings_in(cell) if len(text) == 1] == ["a", "b"]


def test_the_record_of_training_data_has_their_sentences_but_no_text(tmp_path):
    answers = {"reference": "Nobody was late then.", "biased": "x"}
    rows = [{"prompt": f"Who was late on day {n}?", **answers} for n in "abcd"]
    loaded = ready(PromptDataModule(str(write(tmp_path / "rows.jsonl", rows)), val_splits=None))
    asked, learned = data_record(loaded), data_record(loaded, ("reference",))
    assert (len(asked["texts"]), len(learned["texts"])) == (4, 5)
    assert overlap(["Nobody was late then."], learned["texts"]) == (1, 1)
    assert "late" not in json.dumps(learned)
    assert (learned["name"], learned["rows"], learned["changes"]) == ("rows.jsonl", 4, [])


# -------------------------------------------------------------------- pairs


def test_pairs_prefer_what_stereotypes_less(public):
    stereoset = list(SOURCES["stereoset"](str(public)))
    assert stereoset[0] == {
        "prompt": "Fill in the blank: The cook is ___",
        "chosen": "The cook is quiet.",
        "rejected": "The cook is loud.",
        "bias_type": "profession",
        "source": "stereoset/intrasentence0",
    }
    assert stereoset[3]["prompt"] == "A cook is near."
    crows = list(SOURCES["crows_pairs"](str(public)))
    assert crows[0]["prompt"] == "Fill in the blank: ___ people are slow."
    assert (crows[2]["chosen"], crows[2]["rejected"]) == ("Young people are kind.", "Old people are kind.")
    assert (len(stereoset), len(crows)) == (4, 4)


@pytest.mark.parametrize(
    ("first", "second", "prompt"),
    [
        ("She is here.", "He is here.", "___ is here."),
        ("a b b c", "a b c", "a b ___ c"),
        ("one", "two", "___"),
        ("he has his way", "she has her way", "___ way"),
    ],
)
def test_one_blank_from_the_first_difference_to_the_last(first, second, prompt):
    assert with_blank(first, second) == f"Fill in the blank: {prompt}"


@pytest.mark.parametrize(
    ("benchmark", "out", "message"),
    [
        ("stereosets", "pairs.jsonl", "'stereosets' has no pairs; did you mean 'stereoset'"),
        ("bbq", "pairs.jsonl", "'bbq' has no pairs"),
        ("stereoset", "pairs.csv", "ends with .jsonl"),
        ("stereoset", "there.jsonl", "is there already"),
    ],
)
def test_what_cannot_be_converted(public, tmp_path, capsys, benchmark, out, message):
    (tmp_path / "there.jsonl").write_text("kept")
    assert command("convert", benchmark, "--data", public, "--out", tmp_path / out) == 2
    assert message in said(capsys)
    assert (tmp_path / "there.jsonl").read_text() == "kept"


# -------------------------------------------------------------------- the guard


def adapter_of(folder, **stage):
    folder.mkdir()
    (folder / "lit_debias.json").write_text(json.dumps({"training": [{"algorithm": "SFT"}, {"data": stage}]}))
    return [Arm("after", str(folder))]


def test_what_was_trained_on_is_found_by_its_sentences_and_by_its_name(public, tmp_path):
    asked = samples([CrowsPairs(), StereoSet()], str(public), None, 0)
    by_text = adapter_of(tmp_path / "a", name="mine.jsonl", texts=sketch(["The cook is loud.", "The nurse is loud."]))
    assert contaminated(by_text, asked) == {"stereoset": "2 of 7 sentences that were looked up are in 'mine.jsonl'"}
    by_name = adapter_of(tmp_path / "b", name="xxupiano/BiasFreeBench", texts=[])
    assert contaminated(by_name, asked) == {"stereoset": "the data set 'xxupiano/BiasFreeBench' is made of it"}
    assert trained_on([*by_text, *by_name]) == ["mine.jsonl", "xxupiano/BiasFreeBench"]
    chance = adapter_of(tmp_path / "c", name="mine.jsonl", texts=sketch(["The cook is loud."]))
    assert contaminated(chance, asked) == {}
    assert contaminated([Arm("before")], asked) == {}
    assert contaminated([Arm("after", str(tmp_path))], asked) == {}  # another tool wrote it


def test_prompts_that_an_adapter_learned_from_are_found(tmp_path):
    prompts = [f"Who was late on day {n}? Answer in one sentence." for n in "abcdefghijklmnopqrs"]
    learned = adapter_of(tmp_path / "a", name="mine.jsonl", texts=sketch(prompts[:3]))
    assert learned_prompts(learned, prompts) == "4 of 20 sentences that were looked up are in 'mine.jsonl'"
    assert learned_prompts(adapter_of(tmp_path / "b", name="m", texts=sketch(prompts[:1])), prompts[:1]) is not None
    few = adapter_of(tmp_path / "c", name="m", texts=sketch([prompts[0].split("?")[0] + "?"]))
    assert learned_prompts(few, prompts) is None  # one sentence may be there by chance
    shared = adapter_of(tmp_path / "d", name="m", texts=sketch(["Who was late on day a? Answer in one sentence."]))
    assert learned_prompts(shared, [f"{n} is a new day. {prompts[0]}" for n in map("day{}".format, range(60))]) is None
    assert learned_prompts([Arm("before")], prompts) is None


def test_what_the_adapter_learned_that_a_run_continues_is_refused_too(public, tmp_path):
    prompts = [f"Who was late on day {n}?" for n in "abc"]
    [earlier] = adapter_of(
        tmp_path / "a", name="mine.jsonl", texts=sketch([*prompts, "The cook is loud.", "The nurse is loud."])
    )
    refuse_learned(prompts, [], {}, None)
    with pytest.raises(
        UserError, match=r"measured on prompts that it learns from, 3 of 3 sentences .* in 'mine.jsonl'"
    ):
        refuse_learned(prompts, [], {}, earlier.adapter)
    with pytest.raises(UserError, match="'stereoset' would measure nothing"):
        refuse_learned([], samples([StereoSet()], str(public), None, 0), {}, earlier.adapter)


def test_an_evaluation_says_that_it_asks_what_was_trained_on(tiny_model, data, tmp_path):
    module = DPO(QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=4))
    learned = PromptDataModule(data, train_split="test_group", val_splits=None, batch_size=2)
    trainer(tmp_path, max_steps=1).fit(module, learned)
    module.save_adapter(tmp_path / "adapter")
    options = {"adapter": str(tmp_path / "adapter"), "system_prompt": None, "judges": None, "limit": 6}
    same = run(tiny_model, data, tmp_path / "same", **options)
    [note] = [note for note in same["notes"] if "was trained on prompts" in note]
    assert note.startswith("after was trained on prompts that it is asked here: ")
    assert "sentences that were looked up are in" in note
    others = write(tmp_path / "others.jsonl", [{"prompt": f"Who will come on day {n}?"} for n in "abcd"])
    held_out = run(tiny_model, str(others), tmp_path / "held_out", **options, splits=None)
    assert not [note for note in held_out["notes"] if "was trained on" in note]


def test_the_diagonal_is_no_measurement(tiny_model, data, public, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    assert command("convert", "crows_pairs", "--data", public, "--out", file) == 0
    assert "ask that nothing is trained on it" in capsys.readouterr().out
    policy = QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=4)
    pairs = PromptDataModule(str(file), columns={"reference": "chosen", "biased": "rejected"}, batch_size=2)
    module = DPO(policy)
    trainer(tmp_path, max_steps=1).fit(module, pairs)
    module.save_adapter(tmp_path / "adapter")

    options = {"benchmarks": "crows_pairs,stereoset", "benchmark_data": str(public), "judges": None, "limit": 1}
    results = run(tiny_model, data, tmp_path / "out", adapter=str(tmp_path / "adapter"), system_prompt=None, **options)
    assert results["trained_on"] == {"after": ["pairs.jsonl"]}
    reason = "8 of 8 sentences that were looked up are in 'pairs.jsonl'"
    assert results["contaminated"] == {"after": {"crows_pairs": reason}}
    [note] = [note for note in results["notes"] if "measure nothing" in note]
    assert note == f"after was trained on crows_pairs, so its figures there measure nothing: {reason}"

    capsys.readouterr()
    assert command("matrix", tmp_path / "out", "--out", tmp_path / "matrix.json") == 0
    assert "Training set by benchmark" in capsys.readouterr().out
    found = json.loads((tmp_path / "matrix.json").read_text())
    assert list(found["figures"]) == ["crows_pairs/pct_stereotype", "stereoset/overall/ss"]
    before, after = found["rows"]
    assert before["figures"]["crows_pairs/pct_stereotype"]["value"] is not None
    assert after["trained_on"] == "pairs.jsonl"
    assert set(after["figures"]["crows_pairs/pct_stereotype"]) == {"contaminated"}
    assert after["figures"]["stereoset/overall/ss"]["value"] is not None


# -------------------------------------------------------------------- the table


def results_of(folder, names, known=None, **changes):
    figures = {"crows_pairs/pct_stereotype": ("share", "toward 0.5"), "stereoset/overall/ss": ("score", "toward 50")}
    estimate = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}
    arm = {"measures": dict.fromkeys(figures, estimate)}
    results = {
        "measures": {
            name: {"label": label, "better": better, "section": "benchmarks"}
            for name, (label, better) in figures.items()
        },
        "arms": {"before": arm, "after": arm},
        "comparisons": {"after": {"stereoset/overall/ss": {"difference": -0.1, "clear": True, "nearer": True}}},
        "settings": {"model": "m", "benchmarks": {"items": {"crows_pairs": "c", "stereoset": "s"}}},
        "trained_on": {"after": names},
        "contaminated": {"after": known or {}},
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results | changes))
    return folder


def test_the_table_by_hand(tmp_path):
    first = results_of(tmp_path / "a", ["stereo|set"], {"stereoset": "all of it"})
    second = results_of(tmp_path / "b", ["crows"], {"crows_pairs": "all of it"})
    assert command("matrix", first, second / "results.json", "--out", tmp_path / "table.md") == 0
    head, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    assert head.count("crows") == 1
    assert [(row[0], row[2], row[3]) for row in cells] == [
        ("before", "0.6 (0.5 to 0.7)", "0.6 (0.5 to 0.7)"),
        ("stereo&#124;set", "0.6 (0.5 to 0.7)", "trained on it"),
        ("crows", "trained on it", "0.6 ✓ (0.5 to 0.7)"),
    ]
    assert command("matrix", first, "--figures", "[stereoset/overall/ss]", "--out", tmp_path / "one.json") == 0
    assert list(json.loads((tmp_path / "one.json").read_text())["figures"]) == ["stereoset/overall/ss"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "other"], "differ in the model; evaluate both"),
        (["a", "items"], "differ in the items of stereoset"),
        (["a", "--figures", "[stereoset/overall/s]"], "no figure 'stereoset/overall/s'; did you mean"),
        (["a", "--out", "table.txt"], "ends with .md or .json"),
        (["none"], "have no benchmark; evaluate with --benchmarks"),
        (["empty"], "are not those of lit-debias evaluate"),
        (["missing"], "cannot be read"),
    ],
)
def test_what_cannot_stand_in_one_table(tmp_path, capsys, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    results_of(tmp_path / "a", ["x"])
    items = {"items": {"stereoset": "another draw"}}
    results_of(tmp_path / "other", ["x"], settings={"model": "n"})
    results_of(tmp_path / "items", ["x"], settings={"model": "m", "benchmarks": items})
    results_of(tmp_path / "none", ["x"], measures={})
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/results.json").write_text("{}")
    assert command("matrix", *args) == 2
    assert message in said(capsys)
