"""What makes another measurement: settings, data, models, judges."""

import shutil
from pathlib import Path

import pytest
import torch
from evaluation_runs import CALLS, Vowels, adapter, data, readers, run  # noqa: F401  (fixtures among them)
from support import loaded, perturb

from lit_debias.evaluation.fingerprint import check_judges, describe
from lit_debias.models.adapters import TRAINED
from lit_debias.support.hashing import sha256_of_files


def test_the_fingerprint_of_the_synthetic_folder_knows_no_columns(tiny_model, data, tmp_path):
    found = run(tiny_model, data, tmp_path, system_prompt=None)
    assert "columns" not in found["settings"]
    assert found["settings"]["data_sha256"] == sha256_of_files([Path(data) / "prompts" / "test_group.parquet"])


def test_other_prose_and_other_models_are_measured_anew(tiny_model, data, readers, tmp_path):
    prose = tmp_path / "prose.txt"
    prose.write_text("The lift was out of order.")
    changes = [{}, {"perplexity_model": readers["perplexity_model"]}, {"similarity_model": readers["similarity_model"]}]
    changes += [{"prose": str(prose)}]
    keys = [run(tiny_model, data, tmp_path / "out", system_prompt=None, **change)["fingerprints"] for change in changes]
    prose.write_text("The lift works.")
    keys.append(run(tiny_model, data, tmp_path / "out", system_prompt=None, prose=str(prose))["fingerprints"])
    assert len({key["before"] for key in keys}) == 5


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


def test_results_name_the_type_that_auto_was(tiny_model, data, tmp_path, monkeypatch):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr("lit_debias.evaluation.prepare.dtype_of", lambda *_, dtype=dtype: dtype)
        out = tmp_path / "out"  # another type is another measurement
        found[dtype] = run(tiny_model, data, out, dtype="auto", splits=("test_group",), system_prompt=None, limit=1)
        assert CALLS, "the arm of another type was reused"
    assert [found[dtype]["settings"]["dtype"] for dtype in found] == ["float32", "bfloat16"]


def test_another_configuration_is_another_judge():
    check_judges({"judge": Vowels("ae")}, {"reward": Vowels("io")})


def test_describe_reads_files_that_settings_name(tmp_path):
    (tmp_path / "weights").write_text("1")
    first = describe({"checkpoint": str(tmp_path)})
    (tmp_path / "weights").write_text("2")
    assert describe({"checkpoint": str(tmp_path)}) != first
    assert describe(torch.ones(2)) == "torch.Tensor"
    assert describe(["a", 1, None]) == ["a", 1, None]
