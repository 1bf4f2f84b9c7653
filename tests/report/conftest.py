"""A run of a few hand-made records, as reports take it."""

import pytest
from report_material import EVIL, record, write_evaluation


@pytest.fixture
def arms():
    before = [
        record(i, side, 0.1 + 0.1 * i + 0.05 * i * side, f"before {i} {side}") for i in range(4) for side in (0, 1)
    ]
    after = [record(i, side, 0.9 - 0.2 * i, f"after {i} {side}") for i in range(4) for side in (0, 1)]
    after[0].completion = EVIL
    return {"before": before, "after": after}


@pytest.fixture
def run(tmp_path, arms):
    write_evaluation(tmp_path / "run" / "evaluation", arms)
    return tmp_path / "run"
