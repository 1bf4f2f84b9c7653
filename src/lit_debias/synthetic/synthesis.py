"""Builds the synthetic Chinese-context data set: prompts with counterfactual twins, and graded responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_debias.data.tables import write_tables
from lit_debias.errors import UserError
from lit_debias.support.atomic import new_folder
from lit_debias.support.files import parse_json, read_text
from lit_debias.support.hashing import sha256
from lit_debias.support.text import counted
from lit_debias.synthetic import leaks, written
from lit_debias.synthetic.builder import Tables, build
from lit_debias.synthetic.card import corpus_part, data_card, grammar_part
from lit_debias.synthetic.taxonomy import FILES, WORDING, Taxonomy

VERSION = "5"
"""Version of the generator: equal versions, arguments and wording give equal tables."""
ARGUMENTS = "arguments.json"
SOURCES = ("grammar", "written")


def synthesize(
    out: Path,
    size: int = 12000,
    seed: int = 0,
    overwrite: bool = False,
    include_harmful: bool = True,
    wording: Path | None = None,
    sources: str | list[str] = "grammar",
) -> None:
    """Write the synthetic data set about Chinese-context discrimination.

    The folder holds ``prompts/SPLIT.parquet``, ``responses/SPLIT.parquet`` and a data card, ``README.md``. It loads
    with ``datasets.load_dataset(OUT, "prompts")``. A folder that the same arguments made is reused; one that is
    replaced stays whole until the new one is.

    Args:
        out: Folder to write.
        size: Labelled responses of the grammar, at least; rounded up to whole pairs of counterfactual twins in each
            split. Texts that were written one by one come on top, all of them.
        seed: Equal seeds give byte-identical tables; another seed also holds out other written texts.
        overwrite: Replace a data set that other arguments made.
        include_harmful: Include responses of intensity 3 and 4 (discriminatory and hostile) and prompts that ask for
            them; leave them out of what you share.
        wording: Folder with edited copies of the YAML files of lit_debias/data/wording.
        sources: grammar, written (texts that were written one by one, about more categories), or both:
            grammar,written. With written, the grammar holds out the one category that those texts leave out, education.

    Raises:
        UserError: the size is too small, a source is unknown, the folder holds something else, or a wording file is
            wrong.
    """
    out, chosen = Path(out), _chosen(sources)
    arguments = {
        "version": VERSION,
        "size": size,
        "seed": seed,
        "include_harmful": include_harmful,
        "sources": chosen,
        **({"written_sha256": sha256(written.files())} if "written" in chosen else {}),
        "wording_sha256": _digest(*((wording or WORDING) / f"{name}.yaml" for name in FILES)),
    }
    if _reusable(out, arguments, overwrite):
        print(f"{out}: made with these arguments before; reused")
        return
    taxonomy = Taxonomy.load(wording)
    if "written" in chosen:
        taxonomy = taxonomy.without_held_out(written.categories())
    tables, parts = _made(taxonomy, chosen, size, seed, include_harmful)
    overlaps = leaks.check_responses(tables["responses"])
    leaks.check_prompts(tables["prompts"])
    leaks.check_names(tables, taxonomy)
    try:
        with new_folder(out) as work:
            digests = write_tables(work, tables)
            card = data_card(tables, arguments, digests, overlaps, parts)
            (work / "README.md").write_text(card, encoding="utf-8")
            (work / ARGUMENTS).write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write --out {out}: {error}; what was there is untouched") from error
    counts = {name: sum(map(len, splits.values())) for name, splits in tables.items()}
    print(f"{out}: {counted(counts['prompts'], 'prompt')} and {counted(counts['responses'], 'labelled response')}")


def _chosen(sources: str | list[str]) -> list[str]:
    names = [name.strip() for name in sources.split(",")] if isinstance(sources, str) else list(sources)
    if not names or set(names) - set(SOURCES) or len(set(names)) < len(names):
        raise UserError(f"--sources {','.join(names)}; write grammar, written, or grammar,written")
    return sorted(names)


def _made(
    taxonomy: Taxonomy, sources: list[str], size: int, seed: int, include_harmful: bool
) -> tuple[Tables, list[str]]:
    """Return the records of all sources together, and what the card says of each source."""
    tables: Tables = {"prompts": {}, "responses": {}}
    parts = []
    if "grammar" in sources:
        made = build(taxonomy, size, seed, include_harmful)
        tables = {table: dict(splits) for table, splits in made.items()}
        parts.append(grammar_part(made, taxonomy))
    if "written" in sources:
        for table, splits in written.written_tables(include_harmful, words=taxonomy.responses, seed=seed).items():
            for split, rows in splits.items():
                tables[table][split] = tables[table].get(split, []) + rows
        parts.append(corpus_part(written.VERSION, written.counts()))
    return tables, parts


def _reusable(out: Path, arguments: dict[str, Any], overwrite: bool) -> bool:
    """Return whether ``out`` is what would be made; raise where it is something else that must not be replaced."""
    if out.is_file():
        raise UserError(f"--out {out} is a file; name a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return False
    if not (out / ARGUMENTS).is_file():
        raise UserError(f"--out {out} holds something that 'lit-debias synthesize' has not made; name another folder")
    if parse_json(read_text(out / ARGUMENTS, "--out"), f"--out '{out / ARGUMENTS}'") == arguments:
        return not overwrite
    if overwrite:
        return False
    raise UserError(f"--out {out} holds a data set made with other arguments; add --overwrite or name another")


def _digest(*paths: Path) -> str:
    for path in paths:
        if not path.is_file():
            raise UserError(f"wording: there is no file {path}; copy it from {WORDING}")
    return sha256(paths)
