"""``python -m lit_debias_vllm MODEL FOLDER`` writes the base of a policy as a folder that vLLM serves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lit_debias import QLoRAPolicy
from lit_debias.plugins import UserError, new_folder


def main(arguments: list[str] | None = None) -> int:
    """Write it; return 0, or 2 after one line of what is wrong."""
    parser = argparse.ArgumentParser("python -m lit_debias_vllm", description=__doc__)
    parser.add_argument("model", help="as QLoRAPolicy takes it: pkg://PACKAGE/FILE.gguf, a folder, or a hub id")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    options = parser.parse_args(arguments)
    try:
        write_base(options.model, options.folder, options.dtype)
    except UserError as error:
        print(f"lit_debias_vllm: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.folder} is ready: python -m vllm.entrypoints.openai.api_server --model {options.folder}")
    return 0


def write_base(model: str, folder: Path, dtype: Any) -> None:
    """Write the base of a policy with its tokenizer.

    Raises:
        UserError: it cannot be loaded.
    """
    policy = QLoRAPolicy(model, quantization="none", dtype=dtype).load()
    base: Any = policy.lm.unload()
    with new_folder(folder) as work:
        base.save_pretrained(work)
        policy.tokenizer.save_pretrained(work)


if __name__ == "__main__":
    sys.exit(main())
