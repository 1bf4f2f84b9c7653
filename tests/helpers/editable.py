"""What ``pip install -e`` does, as far as this process sees it; tests/test_tutorial.py runs pip itself."""

import re
import sys
from pathlib import Path

from lit_debias.plugins.manager import get_plugin_manager


def install(folder: Path, monkeypatch) -> None:
    """Put a plugin that ``lit-debias rewards new`` or ``benchmarks new`` wrote on the path, for one test."""
    source, module = folder / "src", folder.name.replace("-", "_")
    points = re.search(r"(\[project\.entry-points\.lit_debias\])\n(.*)\n", (folder / "pyproject.toml").read_text())
    info = source / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[lit_debias]\n{points[2].replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(str(source))
    monkeypatch.delitem(sys.modules, module, raising=False)
    get_plugin_manager.cache_clear()
