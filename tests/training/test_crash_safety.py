"""The short form of ``python -m benchmarks.faults``: kills, a stop, damage and a full disk, in real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.processes
def test_runs_survive(tmp_path):
    out = tmp_path / "faults.json"
    command = [sys.executable, "-m", "benchmarks.faults", "--short", "--out", str(out)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=230, check=False)
    assert out.is_file(), done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert [fault for fault in found["faults"] if not fault["ok"]] == []
    assert len(found["faults"]) == 4
    assert [kill["code"] for kill in found["kills"]] == [-9] * 3
    assert done.returncode == 0
