"""By which name others can get a base model: its id on the Hugging Face hub, where it has one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lit_debias.errors import UserError
from lit_debias.support.packages import PACKAGE_SCHEME

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
"""A folder in the hub's cache: owner and name."""
CONVERTED = re.compile(r"(?P<name>.+?)[.-](?:I?Q\d\w*|[Ff]16|[Bb][Ff]16)(?:\.gguf|-[0-9a-f]{12}-\d+)")
"""A GGUF file, or what :mod:`~lit_debias.models.sources` makes of it: the model's name, then how it is quantised."""
ORIGINALS = {
    "SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "gemma-3-270m-it": "google/gemma-3-270m-it",
}
"""Models that Python packages bring as GGUF files -> what they were quantised from; the files do not say."""


def hub_name(source: str) -> str | None:
    """Return the hub id of a model, or None where nothing here says it.

    Args:
        source: As a policy takes it, or what transformers then calls the model: a local folder, ``pkg://PACKAGE/PATH``,
            a GGUF file, or a hub id.
    """
    if cached := CACHED.search(source):
        return f"{cached[1]}/{cached[2]}"
    if converted := CONVERTED.fullmatch(Path(source).name):
        return ORIGINALS.get(converted["name"])
    local = Path(source).expanduser()
    if local.is_dir():
        return _noted_in(local / "config.json")
    return source if HUB_ID.fullmatch(source) and not source.startswith((".", "~", "/")) else None


def _noted_in(config: Path) -> str | None:
    """Return the hub id that transformers before version 5 noted in a model's configuration."""
    try:
        noted = str(json.loads(config.read_text("utf-8")).get("_name_or_path", ""))
    except (OSError, ValueError, AttributeError):
        return None
    return noted if HUB_ID.fullmatch(noted) and not noted.startswith(".") and not Path(noted).exists() else None


def public_name(source: str) -> str:
    """Return a model's source without what only this machine knows: of a local path, the last part."""
    if source.startswith(PACKAGE_SCHEME) or not Path(source).expanduser().exists():
        return source
    return hub_name(source) or Path(source).expanduser().resolve().name


def checked_hub_name(name: str, option: str) -> str:
    """Return ``name`` where it can be that of a repository on the hub.

    Raises:
        UserError: it cannot.
    """
    if not HUB_ID.fullmatch(name) or ".." in name or "--" in name or name.endswith(".git"):
        raise UserError(f"{option} '{name}' is no name on the hub; write OWNER/NAME, such as Qwen/Qwen2.5-7B-Instruct")
    return name
