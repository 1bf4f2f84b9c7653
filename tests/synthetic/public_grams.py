"""Digests of what public benchmarks say in eight words, so that a copied sentence is found without their files.

python -m tests.synthetic.public_grams ../shared/data     # writes public_grams.npy
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lit_debias.support.sketch import strings_in
from lit_debias.support.text import words

FILE = Path(__file__).with_name("public_grams.npy")
BENCHMARKS = (
    "bbq",
    "bold",
    "crows_pairs",
    "holisticbias",
    "realtoxicity_sample",
    "stereoset",
    "winobias",
    "winogender",
)
SIZE, BYTES = 8, 5


def digests(texts: Iterable[str]) -> dict[int, str]:
    """Return digest -> the eight words, of every eight words in a row."""
    found = {}
    for text in texts:
        said = words(text)
        for start in range(len(said) - SIZE + 1):
            gram = " ".join(said[start : start + SIZE])
            found[int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=BYTES).digest(), "big")] = gram
    return found


def known() -> set[int]:
    """Return the digests of the public benchmarks."""
    packed = np.load(FILE).astype(np.int64)
    return set((packed @ (256 ** np.arange(BYTES - 1, -1, -1, dtype=np.int64))).tolist())


def pack(found: Iterable[int]) -> np.ndarray:
    """Return digests [N] as bytes [N, 5], sorted."""
    return np.array([list(value.to_bytes(BYTES, "big")) for value in sorted(found)], dtype=np.uint8)


def texts_of(folder: Path) -> Iterator[str]:
    """Yield all texts of the benchmarks in a folder."""
    for path in sorted(path for name in BENCHMARKS for path in (folder / name).rglob("*") if path.is_file()):
        if "golden" in path.parts or path.name.startswith("LICENSE"):
            continue
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        name = path.name.removesuffix(".gz")
        if name.endswith(".json"):
            yield from strings_in(json.loads(text))
        elif name.endswith(".jsonl"):
            yield from strings_in([json.loads(line) for line in text.splitlines() if line])
        elif name.endswith((".csv", ".tsv")):
            yield from strings_in(list(csv.reader(io.StringIO(text), delimiter="\t" if name.endswith("tsv") else ",")))
        else:
            yield from text.splitlines()


if __name__ == "__main__":
    np.save(FILE, pack(digests(texts_of(Path(sys.argv[1])))))
