"""Digests that lie in data sets, caches and results: a change would pass for other content."""

import hashlib
from pathlib import Path

from lit_debias.support import hashing
from lit_debias.support.hashing import sha256, sha256_of_files, stable_hash

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, "abc"


def test_parts_count_one_after_the_other_whatever_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "BLOCK", 2)
    file = tmp_path / "b"
    file.write_bytes(b"bc")
    assert {sha256(parts) for parts in (["abc"], ["a", b"bc"], [memoryview(b"a"), file], iter("abc"))} == {ABC}
    file.write_bytes(b"\xff" * 5)
    assert sha256([file]) == hashlib.sha256(b"\xff" * 5).hexdigest()


def test_files_count_with_name_size_and_content_and_folders_in_order(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "z").write_text("1")
    (folder / "deep" / "a").write_text("22")
    expected = hashlib.sha256(b"a\x002\x0022" + b"z\x001\x001").hexdigest()
    assert sha256_of_files([folder]) == expected
    assert sha256_of_files([folder / "deep" / "a", folder / "z"]) == expected
    assert sha256_of_files([folder / "z", folder / "deep" / "a"]) != expected


def test_the_hash_of_a_text_is_the_same_for_ever():
    assert stable_hash("abc") == 0xBA7816BF8F01CFEA


def test_nobody_else_computes_digests():
    root = Path(__file__).parents[2]
    files = [*root.glob("src/**/*.py"), *root.glob("plugins/*/src/**/*.py")]
    found = {path.name for path in files if "hashlib.sha256" in path.read_text()}
    assert found == {"hashing.py"}
