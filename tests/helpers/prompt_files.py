"""Files of prompts, in every format, and data modules that have read them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from lightning import LightningDataModule

ROWS = [{"prompt": f"prompt {number}", "target": f"reference {number}"} for number in range(10)]


def write(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    elif file.suffix == ".csv":
        pyarrow.csv.write_csv(table, file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def ready(data: LightningDataModule, stage: str = "fit") -> LightningDataModule:
    data.setup(stage)
    return data
