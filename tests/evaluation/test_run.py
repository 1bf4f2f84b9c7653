"""The whole command: what is measured, what is not and why, and mistakes in one line."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_runs import (  # noqa: F401  (fixtures among them)
    CALLS,
    BaseLikelihood,
    Noted,
    OutOfRange,
    Vowels,
    adapter,
    crows_pairs,
    data,
    readers,
    run,
)
from support import loaded, save_tiny_model

from lit_debias.errors import UserError
from lit_debias.evaluation.examiner import mean_logprobs
from lit_debias.models.language_model import LanguageModel
from lit_debias.models.sentence_encoder import SentenceEncoder


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
        "twins": 3,
        "by_kind": {"control": 2, "forced_choice": 2, "leading": 2, "open": 2},
        "by_split": {"test_group": 8},
    }
    assert second["settings"]["data_sha256"]
    assert {"lit-debias", "torch", "transformers"} <= set(second["versions"])


def test_an_arm_that_is_measured_again_says_what_changed(tiny_model, data, tmp_path, capsys):
    run(tiny_model, data, tmp_path)
    capsys.readouterr()
    run(tiny_model, data, tmp_path, max_new_tokens=5, top_k=3)
    said = " ".join(capsys.readouterr().out.split())
    where = tmp_path / "arms" / "before.json"
    assert f"before: measured again; since {where} these have changed: max_new_tokens, top_k" in said
    content = json.loads(where.read_text())
    where.write_text(json.dumps({**content, "fingerprint": "of another version"}))
    run(tiny_model, data, tmp_path, max_new_tokens=5, top_k=3)
    said = " ".join(capsys.readouterr().out.split())
    assert "these have changed: the model's files, or what is measured" in said
    assert "prompt_only: reused from" in said


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


def test_limit_and_missing_judges_are_said(tiny_model, data, tmp_path, capsys):
    found = run(tiny_model, data, tmp_path, limit=2, judges=None, system_prompt=None)
    assert "2 of 5 prompts" in found["notes"][0]
    assert "no judge" in found["notes"][1]
    assert "no judge" in capsys.readouterr().out


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


def test_wrong_benchmarks_are_said_before_a_model_is_loaded(tiny_model, data, crows_pairs, tmp_path):
    with pytest.raises(UserError, match="benchmark_data: FOLDER"):
        run(tiny_model, data, tmp_path, benchmarks="crows_pairs")
    with pytest.raises(UserError, match=r"there is no 'crows_pair'.*crows_pairs"):
        run(tiny_model, data, tmp_path, benchmarks="crows_pair", benchmark_data=crows_pairs)


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
    monkeypatch.setattr("lit_debias.evaluation.benchmarked.measure", None)  # a second run must not need it
    again = run(tiny_model, data, tmp_path, **options)
    assert (again["arms"], again["comparisons"]) == (results["arms"], results["comparisons"])
