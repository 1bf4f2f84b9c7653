"""The documents: links lead to files and headings of the repository, as `make docs` asks of the site; examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lit_debias import PreferenceDataModule, RewardBatch, synthesize
from lit_debias.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def text_of(page: Path) -> str:
    """Return a page without its blocks of code, in which nothing is a link or a heading."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the names that headings have on GitHub and on the site."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_anchors_by_hand():
    assert anchors("# A `b_c`: d's, (e)\ntext\n## 5. F-g  h\n") == {"a-b_c-ds-e", "5-f-g--h"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(text_of(page)):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.relative_to(ROOT)} links to {path}"
        if anchor:
            assert anchor in anchors(text_of(target)), f"{page.relative_to(ROOT)} links to {path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    named = re.findall(r"`((?:benchmarks|configs|docs|tests)/[\w/.-]+\.(?:json|md|py|svg|yaml))`", text_of(page))
    missing = {path for path in named if not any((place / path).exists() for place in (ROOT, page.parent))}
    generated = {"tests/test_lit_debias_brevity.py", "tests/test_lit_debias_kitchens.py"}
    assert not missing - generated, f"{page.relative_to(ROOT)} names {missing}"


def test_every_decision_has_a_number_a_context_a_choice_and_a_consequence():
    page = text_of(ROOT / "docs" / "decisions.md")
    _, *decisions = re.split(r"^## ", page, flags=re.MULTILINE)
    assert [int(text.split(".")[0]) for text in decisions] == [*range(1, len(decisions) + 1)]
    for text in decisions:
        parts = re.findall(r"^- \*\*(\w+)\.\*\* \S", text, re.MULTILINE)
        assert parts == ["Context", "Choice", "Consequence"], text.splitlines()[0]


def test_every_decision_is_found_by_its_subject():
    head, *decisions = re.split(r"^## ", text_of(ROOT / "docs" / "decisions.md"), flags=re.MULTILINE)
    assert sorted(map(int, re.findall(r"\[(\d+)\]\(#", head))) == [*range(1, len(decisions) + 1)]


# ---------------------------------------------------------------- examples


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of code of one language on a page of docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_configuration_is_one(tmp_path, capsys):
    [text] = blocks("configs.md", "yaml")
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", str(tmp_path / "run.yaml"), "--print_config"])
    assert not stopped.value.code
    assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["batch_size"] == 16


@pytest.mark.filterwarnings("ignore:.*logging interval:")
def test_own_data_become_an_adapter_where_the_page_says(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [rows], [text] = blocks("data.md", "csv"), blocks("data.md", "yaml")
    Path("prompts.csv").write_text(rows)
    Path("run.yaml").write_text(text)
    small = ("--model.policy.model", str(tiny_model), "--model.engine.max_new_tokens", "6", "--trainer.max_steps", "1")
    assert main(["fit", "-c", "run.yaml", *small]) == 0
    assert Path("runs/mine/adapter/adapter_model.safetensors").exists()
    assert list(Path("runs/mine/logs").rglob("metrics.csv"))


def test_the_reward_scores_as_its_docstring_says():
    [source] = blocks("rewards.md", "python")
    names: dict = {}
    exec(compile(source, "rewards.md", "exec", dont_inherit=True), names)
    batch = RewardBatch(["", ""], ["It may rain.", "It rains."], [0, 0], {})
    assert names["Hedging"]().score(batch) == [1.0, 0.0]
    assert names["lit_debias_rewards"]() == [names["Hedging"]]


def test_the_people_who_disagree_are_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synthesize(Path("runs/demo/data"), size=900)
    [source], [rows] = blocks("preferences.md", "python"), blocks("preferences.md", "csv")
    exec(compile(source, "preferences.md", "exec", dont_inherit=True), {})
    data = PreferenceDataModule("runs/demo/preferences", test_split="test_template", batch_size=4)
    data.setup()
    pairs = {role: next(iter(data.in_order(role))) for role in ("train", "validation", "test")}
    assert set(pairs["train"]["group"]) == set(pairs["validation"]["group"]) == {"neutral", "biased"}
    Path("pairs.csv").write_text(rows)
    data = PreferenceDataModule("pairs.csv", batch_size=2)
    data.setup("fit")
    assert data.rows["train"]["user"][:] == ["ann", "ben"]
