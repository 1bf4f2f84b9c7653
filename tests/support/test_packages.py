"""Files inside installed packages."""

from pathlib import Path

import pytest

import lit_debias
from lit_debias.support.packages import path_in_package


def test_a_name_is_a_path_in_the_package_be_it_there_or_not():
    root = Path(lit_debias.__file__).parent
    assert path_in_package("pkg://lit_debias/support/text.py") == root / "support" / "text.py"
    assert path_in_package("pkg://lit_debias/no/such") == root / "no" / "such"
    assert path_in_package("pkg://lit_debias") == root


@pytest.mark.parametrize("name", ["pkg://no_such_package/a", "pkg://", "pkg://not a name/a", "pkg://json.tool/a"])
def test_what_is_no_package_has_no_path(name):
    assert path_in_package(name) is None
