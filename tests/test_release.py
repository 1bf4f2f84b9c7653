"""What says which version this is says the same."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECTS = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]


def value(file: Path, name: str) -> str:
    return re.search(rf'^{name} = "(.+)"$', file.read_text(), re.MULTILINE)[1]


def test_one_version_and_one_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {value(file, "version") for file in PROJECTS} == {citation["version"]}
    released = re.search(
        rf"^## {re.escape(citation['version'])} \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[1] == citation["date-released"]


@pytest.mark.parametrize("file", PROJECTS, ids=lambda file: file.parent.name)
def test_every_distribution_has_its_license_and_the_same_python(file):
    assert value(file, "license") == "Apache-2.0"
    assert value(file, "requires-python") == value(PROJECTS[0], "requires-python")
    assert (file.parent / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert 'license-files = ["LICENSE"]' in file.read_text()
