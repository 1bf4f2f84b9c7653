"""``lit-debias convert``: pairs for DPO from a benchmark's files."""

from __future__ import annotations

import json
from pathlib import Path

from lit_debias.benchmark.public.pairs import SOURCES
from lit_debias.errors import UserError, did_you_mean
from lit_debias.support.atomic import write_text
from lit_debias.support.text import counted

REQUESTS = {
    "crows_pairs": "the authors of CrowS-Pairs ask that nothing is trained on it; keep what comes of it to studies",
}
"""What authors ask of those who train on their data."""


def convert(benchmark: str, data: str, out: str) -> None:
    """Write a benchmark's pairs as prompt, chosen and rejected, to train on it and measure on another one.

    Args:
        benchmark: stereoset or crows_pairs.
        data: Folder that holds the benchmark's folder, as lit-debias evaluate takes it, or hub.
        out: File to write, .jsonl.

    Raises:
        UserError: there is no such benchmark or file, or ``out`` is there already.
    """
    if benchmark not in SOURCES:
        raise UserError(f"convert: '{benchmark}' has no pairs{did_you_mean(benchmark, list(SOURCES))}")
    place = Path(out)
    if place.suffix != ".jsonl":
        raise UserError(f"--out {out}: write a file that ends with .jsonl")
    if place.exists():
        raise UserError(f"--out {out} is there already; name another file")
    rows = [json.dumps(row, ensure_ascii=False) for row in SOURCES[benchmark](data)]
    write_text(place, "\n".join(rows) + "\n")
    print(f"written: {out}, {counted(len(rows), 'pair')} of {benchmark}")
    print(f"an adapter that is trained on it is measured on other benchmarks: {benchmark} is marked in its results")
    if benchmark in REQUESTS:
        print(f"note: {REQUESTS[benchmark]}")
