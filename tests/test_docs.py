"""Links of the documents lead to files and headings of the repository; `make docs` holds the site to them as well."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
