"""The page about measures of texts: what it shows runs, and it has every measure."""

import re
from pathlib import Path

from lit_debias.text_measures import MEASURES
from lit_debias.text_measures.lists import OCCUPATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "text_measures.md").read_text()


def test_the_example_runs(capsys):
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    share, low, high = map(float, re.findall(r"[\d.]+", capsys.readouterr().out))
    assert (share, low < share < high) == (1 / 3, True)


def test_the_table_has_every_measure():
    assert re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)[-len(MEASURES) :] == list(MEASURES)
    assert f"over {len(OCCUPATIONS)} occupations" in PAGE
