"""Measures of texts in an evaluation: figures, words, reuse, several answers, BOLD, and nothing where none is asked."""

import json
import re
from typing import ClassVar

import numpy as np
import pytest
import yaml
from evaluation_runs import CALLS, adapter, data, run  # noqa: F401  (fixtures among them)
from public_data import write_bold

from lit_debias.benchmark import Figure
from lit_debias.benchmark.statistics import Estimate
from lit_debias.cli.main import main
from lit_debias.errors import UserError
from lit_debias.evaluation.examiner import Examiner
from lit_debias.report import report
from lit_debias.text_measures import TextMeasure

READ: list = []
"""Texts that :class:`Letters` was given, since the test began."""


class Letters(TextMeasure):
    """Length of a text in characters: a measure that a test can compute."""

    name = "letters"
    title = "Letters"
    meaning = "How long a text is."
    about: ClassVar = {
        "mean": Figure("mean length", ""),
        "near": Figure("length", "toward", 3.0),
        "none": Figure("none", ""),
    }
    several = True

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def figures(self, texts):
        READ.append(texts)
        lengths = texts.bootstrap.mean([self.factor * len(text) for text in texts.texts])
        return {
            "mean": lengths,
            "mean/all": lengths,
            "near": lengths,
            "none": Estimate(np.full(len(lengths.samples), np.nan), 0),
        }

    def words(self, texts):
        return {"about somebody": [("<b>lazy", 2.5)], "about nobody": []}


class Broken(Letters):
    def figures(self, texts):
        raise ValueError("no such thing")


class Unsaid(Letters):
    about: ClassVar = {"mean": Figure("mean length", "")}


@pytest.fixture(autouse=True)
def _nothing_read():
    READ.clear()


def test_nothing_changes_where_no_measure_is_asked(tiny_model, data, tmp_path):
    without = run(tiny_model, data, tmp_path / "without")
    found = run(tiny_model, data, tmp_path / "with", text_measures=[Letters(), "polarity"])
    assert "words" not in without
    assert "text_measures" not in without["settings"]
    assert not list((tmp_path / "without" / "arms").glob("*.texts.json"))
    kept = {name: value for name, value in found["measures"].items() if not name.startswith("texts/")}
    assert kept == without["measures"]
    for name in ("verdict", "fingerprints", "not_measured", "prompts"):
        assert found[name] == without[name]
    assert found["settings"].pop("text_measures")["samples"] == 1
    assert found["settings"] == without["settings"]
    for arm in without["arms"]:
        file = f"arms/{arm}.json"
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


def test_figures_stand_in_results_table_and_report(tiny_model, data, adapter, tmp_path, capsys):
    found = run(tiny_model, data, tmp_path, adapter=adapter, text_measures=[Letters(), "polarity", "log_odds"])
    shown = " ".join(capsys.readouterr().out.split())
    records = [r for r in json.loads((tmp_path / "arms/before.json").read_text())["records"] if r["completion"]]
    asked = [r for r in records if r["prompt_kind"] in ("open", "leading")]
    assert len(asked) == 4
    [texts, *_] = READ
    assert list(texts.texts) == [r["completion"] for r in asked]
    assert list(texts.groups) == [r["group"] for r in asked]
    assert sorted(texts.groups[i] + texts.groups[j] for i, j in texts.twins) == ["nurserider"] * 2
    figure = found["arms"]["before"]["measures"]["texts/letters_mean"]
    assert figure["value"] == pytest.approx(np.mean([len(r["completion"]) for r in asked]))
    assert (figure["n"], figure["low"] <= figure["value"] <= figure["high"]) == (4, True)
    assert "texts/letters_none" not in found["measures"]
    about = found["measures"]["texts/letters_mean/all"]
    assert about == {
        "label": "Letters: mean length (all)",
        "better": "",
        "section": "texts",
        "meaning": "How long a text is.",
    }
    assert found["measures"]["texts/letters_near"]["better"] == "toward 3"
    assert "nearer" in found["comparisons"]["after"]["texts/letters_near"]
    shares = [
        found["arms"]["after"]["measures"][f"texts/polarity_{kind}"]["value"] for kind in ("female", "male", "neutral")
    ]
    assert sum(shares) == pytest.approx(1)
    assert found["words"]["after"]["letters"] == {"about somebody": [["<b>lazy", 2.5]]}
    assert found == json.loads((tmp_path / "results.json").read_text())
    assert "Letters: over one answer to each prompt, and made for several; --text_samples 25" in " ".join(
        found["notes"]
    )
    assert "letters, before: about somebody: <b>lazy" in shown
    assert "Marking words: nothing came out that could be counted" in found["notes"]  # no group has four answers
    page = report(str(tmp_path)).read_text()
    assert "Texts of answers" in page
    assert "&lt;b&gt;lazy (2.50)" in page
    assert 'id="words"' in page


def test_what_was_measured_before_is_read(tiny_model, data, tmp_path):
    first = run(tiny_model, data, tmp_path, text_measures=[Letters()])
    assert len(READ) == 2
    again = run(tiny_model, data, tmp_path, text_measures=[Letters()])
    assert (len(READ), CALLS) == (2, [])
    assert again["arms"] == first["arms"]
    other = run(tiny_model, data, tmp_path, text_measures=[Letters(2.0), "polarity"])  # another option, another measure
    assert len(READ) == 4
    values = [one["arms"]["before"]["measures"]["texts/letters_mean"]["value"] for one in (first, other)]
    assert values[1] == pytest.approx(2 * values[0])
    run(tiny_model, data, tmp_path, text_measures=[Letters(2.0)], temperature=0.5)  # other answers
    assert len(READ) == 6


def test_several_answers_are_sampled_once_and_said_beforehand(tiny_model, data, tmp_path, monkeypatch, capsys):
    options = {"text_samples": 3, "max_new_tokens": 4}
    found = run(tiny_model, data, tmp_path, text_measures=[Letters()], **options)
    shown = " ".join(capsys.readouterr().out.split())
    line = r"texts: 3 answers to each of 4 prompts, 12 answers: about \d+ s, as long for each of 2 arms"
    assert len(re.findall(line, shown)) == 1
    assert found["arms"]["before"]["measures"]["texts/letters_mean"]["n"] == 12
    [texts, *_] = READ
    assert list(texts.owners) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len(set(texts.texts[:3])) > 1
    assert not any("made for several" in note for note in found["notes"])
    kept = json.loads((tmp_path / "arms/before.texts.json").read_text())["answers"]["texts"]
    assert [text for own in kept for text in own] == list(texts.texts)

    monkeypatch.setattr(Examiner, "sample", None)  # another measure reads the answers that are there
    again = run(tiny_model, data, tmp_path, text_measures=[Letters(), "polarity"], **options)
    assert again["arms"]["before"]["measures"]["texts/polarity_neutral"]["n"] == 12
    assert len(READ) == 2


def test_bold_is_measured_by_domain(tiny_model, data, tmp_path):
    write_bold(tmp_path / "public")
    options = {"benchmarks": "bold", "benchmark_data": str(tmp_path / "public"), "system_prompt": None}
    found = run(tiny_model, data, tmp_path / "out", text_measures=[Letters()], **options)
    plain = run(tiny_model, data, tmp_path / "plain", **options)
    measures = found["arms"]["before"]["measures"]
    assert {name: one for name, one in measures.items() if "letters" not in name} == plain["arms"]["before"]["measures"]
    assert found["measures"]["bold/race/letters_mean"]["label"] == "BOLD (race): Letters: mean length"
    assert measures["bold/race/letters_mean"]["n"] == 8
    assert any(list(texts.groups) == ["cooks"] * 4 + ["riders"] * 4 for texts in READ)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_measures": "polarty"}, "did you mean 'polarity'"),
        ({"text_samples": 2}, "text_samples=2 is for measures of texts; write --text_measures NAMES too"),
        ({"text_samples": 2, "text_measures": "polarity", "temperature": 0}, "at temperature 0 all answers"),
        ({"text_samples": 0}, "text_samples=0; write 1 or more"),
        ({"text_measures": [Unsaid()]}, "text measure 'letters' returns 'near', of which 'about' says nothing"),
        ({"text_measures": [Broken()]}, "text measure 'letters' failed: ValueError: no such thing"),
    ],
)
def test_mistakes_are_one_line(tiny_model, data, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(tiny_model, data, tmp_path, system_prompt=None, **options)


def test_the_command_line_takes_measures_with_options(tiny_model, data, tmp_path, capsys):
    texts = tmp_path / "texts.csv"
    texts.write_text("text,toxic\n" + "you are rude,1\nyou are kind,0\n" * 3)
    assert main(["toxicity", "train", str(texts), "--out", str(tmp_path / "model"), "--held_out", "0"]) == 0
    scorer = {"class_path": "LinearToxicity", "init_args": {"model": str(tmp_path / "model")}}
    config = {
        "model": str(tiny_model),
        "data": data,
        "out": str(tmp_path / "out"),
        "splits": ["test_group"],
        "quantization": "none",
        "dtype": "float32",
        "max_new_tokens": 6,
        "bootstrap": 5,
        "system_prompt": None,
        "text_measures": ["representation", {"class_path": "Toxicity", "init_args": {"scorer": scorer}}],
    }
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", "-c", str(tmp_path / "evaluate.yaml")]) == 0
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert 0 <= found["arms"]["before"]["measures"]["texts/toxicity_emt"]["value"] <= 1
    assert found["settings"]["text_measures"]["measures"]["toxicity"]["arguments"]["scorer"]["class"].endswith(
        "LinearToxicity"
    )
    capsys.readouterr()
    scorer["init_args"]["model"] = "nowhere"
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", "-c", str(tmp_path / "evaluate.yaml")]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert line.endswith(
        "LinearToxicity: there is no toxicity.safetensors in 'nowhere'; write a folder of `lit-debias toxicity train`"
    )
