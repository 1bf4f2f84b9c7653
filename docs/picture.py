"""Draws the picture of a report that README.md shows: ``python docs/picture.py RUN --out docs/images/report.png``.

It is the top of the real page, down to a heading, as Chromium shows it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from lit_debias.report import report

WIDTH, GAP = 680, 24
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu")


def main() -> None:
    """Draw the report of a run, and the picture of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run, as for `lit-debias report`")
    parser.add_argument("--out", type=Path, default=Path("docs/images/report.png"))
    parser.add_argument("--until", default="checks", help="anchor of the heading above which the picture ends")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("picture: Chromium is not installed; write: apt-get install chromium")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        with redirect_stdout(None):  # it would name a file that is gone in a moment
            page = report(options.run, str(Path(folder) / "report.html"))
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        draw(browser.new_page(color_scheme=options.scheme), page, options.out, options.until)
        browser.close()
    print(f"written: {options.out} ({options.out.stat().st_size / 1024:.0f} KiB)")


def draw(tab: Page, page: Path, out: Path, until: str) -> None:
    """Write the part of a page above a heading as a PNG."""
    tab.set_viewport_size({"width": WIDTH, "height": 800})
    tab.goto(page.as_uri())
    heading = tab.locator(f"#{until}")
    if heading.count() != 1:
        sys.exit(f"picture: the page has no heading '{until}'; write the anchor of one")
    end = heading.evaluate("node => node.getBoundingClientRect().top")
    tab.screenshot(path=out, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": end - GAP})


if __name__ == "__main__":
    main()
