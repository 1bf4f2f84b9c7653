"""Several adapters, and several training seeds of one."""

import json

import pytest
from evaluation_runs import CALLS, adapter, crows_pairs, data, run, seeds  # noqa: F401  (fixtures among them)
from report_material import record

from lit_debias.errors import UserError
from lit_debias.evaluation.records import Record
from lit_debias.evaluation.results import summarize
from lit_debias.evaluation.table import as_tables
from lit_debias.policy.recipe import QLoRAPolicy


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


def test_all_arms_share_one_base(tiny_model, data, seeds, tmp_path, monkeypatch):
    read, load = [], QLoRAPolicy._load_base
    monkeypatch.setattr(QLoRAPolicy, "_load_base", lambda self, *where: read.append(1) or load(self, *where))
    together = run(tiny_model, data, tmp_path / "together", adapter=seeds[0], adapters={"other": seeds[1]}, limit=2)
    assert len(read) == 1
    alone = run(tiny_model, data, tmp_path / "alone", adapter=seeds[0], limit=2)
    assert together["arms"]["after"] == alone["arms"]["after"]
