"""The columns of the two tables, and their Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lit_debias.support.hashing import sha256

LABELS = ("fairness", "neutrality", "relevance", "quality")
ADVERSARIAL = "adversarial"
"""Column that labels prompts which are made to measure with, such as those of ``lit-debias attack``."""
_ABOUT = dict.fromkeys(("category", "group", "theme", "scenario", "template_id", "prompt_kind"), pa.string())
SCHEMAS = {
    "prompts": pa.schema(
        {
            "prompt_id": pa.string(),
            "prompt": pa.string(),
            **_ABOUT,
            "twin_id": pa.string(),
            "counterfactual_group": pa.string(),
            "counterfactual_prompt": pa.string(),
            "reference": pa.string(),
            "biased": pa.string(),
            "choices": pa.list_(pa.string()),
            "answer": pa.int64(),
            "biased_choice": pa.int64(),
            "ambiguous": pa.bool_(),
            "split": pa.string(),
        }
    ),
    "responses": pa.schema(
        {
            "response_id": pa.string(),
            "prompt_id": pa.string(),
            "prompt": pa.string(),
            "response": pa.string(),
            **_ABOUT,
            "intensity": pa.int64(),
            "stance": pa.string(),
            "corruption": pa.string(),
            "hard_negative": pa.string(),
            **dict.fromkeys(LABELS, pa.float64()),
            "split": pa.string(),
        }
    ),
}
"""Table -> its columns."""
Row = dict[str, Any]
"""A row of somebody's data or of a table here: column -> cell."""


def text_columns(table: str, columns: Mapping[str, str]) -> set[str]:
    """Return the columns of somebody's data that hold texts, whatever they look like.

    Args:
        table: ``prompts`` or ``responses``.
        columns: Name here -> column of the data.
    """
    names = [field.name for field in SCHEMAS[table] if field.type == pa.string()]
    return {columns.get(name, name) for name in names}


def write_tables(folder: Path, tables: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, str]:
    """Write ``TABLE/SPLIT.parquet`` and return relative path -> sha256."""
    digests = {}
    for table, splits in tables.items():
        (folder / table).mkdir()
        for split, rows in splits.items():
            path = folder / table / f"{split}.parquet"
            pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMAS[table]), path)
            digests[f"{table}/{split}.parquet"] = sha256([path])
    return digests
