"""MkDocs: links that work as files of the repository work on the site.

A page may link to any file of the repository, such as ``../benchmarks/results/study.json`` or a plugin's README. The
site gets a copy of each such file under ``repository/``, and the link is turned there.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
COPIES = "repository/"
"""Where the site keeps what does not lie in docs/."""
PAGES = ["CHANGELOG.md", "CONTRIBUTING.md", *(str(file.relative_to(ROOT)) for file in ROOT.glob("plugins/*/README.md"))]
"""What the navigation may name beside docs/."""
CELL = re.compile(r"<td.*?</td>", re.DOTALL)
FIGURE = re.compile(r"(?<=\d) (?=(?:s|ms|us|min|times|tokens|GiB|MiB|GB/s|GFLOP/s)\b|to [-\d])|(?<=\d to) (?=[-\d])")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository that the navigation names, and the files that pages link to."""
    for path in reached([in_repository(file.src_uri) for file in files.documentation_pages()] + PAGES):
        if site_uri(path).startswith(COPIES):
            files.append(File.generated(config, site_uri(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to other places of the repository into links of the site."""
    here = in_repository(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        target = site_uri(resolved(here, match[1]))
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(turned, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Keep a figure and its unit on one line of a table's cell, and show there a bar that Markdown has to escape."""
    return CELL.sub(lambda cell: FIGURE.sub("\N{NO-BREAK SPACE}", cell[0].replace("\\|", "|")), html)


def reached(waiting: list[str]) -> set[str]:
    """Return the files of the repository that pages lead to, themselves included; what is not there is left out."""
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in found or not (ROOT / path).is_file():
            continue
        found.add(path)
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            waiting += [resolved(path, match[1]) for match in LINK.finditer(text)]
    return found


def resolved(path: str, link: str) -> str:
    """Return the place in the repository of a link on the page at ``path``."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def site_uri(path: str) -> str:
    """Return the source URI of a place in the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else COPIES + path


def in_repository(uri: str) -> str:
    """Return the place in the repository of a source URI."""
    return uri.removeprefix(COPIES) if uri.startswith(COPIES) else f"docs/{uri}"
