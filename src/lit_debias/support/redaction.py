"""Keeps passwords and keys out of what is written: a configuration must hold none, and a text shows none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_debias.errors import UserError

MASK = "REDACTED"
_NAME = (
    r"(?:token|(?:[\w.-]*[_.-])?(?:(?:api|access|auth|account|private|secret|bearer|hf|hub)[_-]?(?:keys?|tokens?)"
    r"|password|passwd|passphrase|secret|credentials?|authorization))"
)
SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
"""Names of options whose value is a secret; ``api_key_env``, ``max_tokens`` and ``eos_token`` are none."""
_PATTERNS = [
    re.compile(r"(?P<keep>\b[\w+.-]+://)[^/\s@'\"]+(?=@)"),  # https://user:password@host
    re.compile(rf"(?P<keep>[?&](?:{_NAME}|key|sig|signature)=)[^&\s'\"]+", re.IGNORECASE),
    re.compile(
        r"(?P<keep>)\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
        r"|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,})"
    ),
]
"""What is a secret by its form: in an address, or as well-known services issue them."""
_ASSIGNMENT = re.compile(rf"(?P<keep>\b{_NAME}['\"]?\s*[:=]\s*)(?!null\b|none\b|['\"]{{2}})\S.*", re.IGNORECASE)


def redact(text: str) -> str:
    """Return a text with ``REDACTED`` for each secret that is known by its form."""
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<keep>{MASK}", text)
    return text


def redact_config(text: str) -> str:
    """Return YAML with ``REDACTED`` also for what stands behind a name such as ``api_key:``."""
    return redact(_ASSIGNMENT.sub(rf"\g<keep>{MASK}", text))


def is_secret_name(name: str) -> bool:
    """Return whether an option or attribute of this name holds a secret."""
    return SECRET_NAME.fullmatch(name.lstrip("_")) is not None


def check_no_secrets(config: Any) -> None:
    """Raise :class:`UserError` where a configuration holds a secret; it says where, and does not repeat it."""
    for where in find_secrets(config):
        raise UserError(
            f"{where or 'a value'} holds a key or password, and configurations are kept in files and shown in reports; "
            "leave it out, and export it in the environment variable that is read for it (such as OPENAI_API_KEY, "
            "HF_TOKEN, COMET_API_KEY)"
        )


def find_secrets(config: Any, where: str = "") -> Iterator[str]:
    """Yield the dotted places of secrets in nested mappings and sequences."""
    if isinstance(config, str):
        if any(pattern.search(config) for pattern in _PATTERNS):
            yield where
    elif isinstance(config, Mapping):
        for name, value in config.items():
            place = f"{where}.{name}".lstrip(".")
            if isinstance(value, str) and value and is_secret_name(str(name)):
                yield place
            else:
                yield from find_secrets(value, place)
    elif isinstance(config, Sequence):
        for number, item in enumerate(config):
            yield from find_secrets(item, f"{where}.{number}".lstrip("."))
