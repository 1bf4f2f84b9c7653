"""What all who talk to an OpenAI-compatible endpoint share: checks of its address, the key, and what a status means.

The key is read from the environment when it is used, and kept nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from lit_debias.errors import UserError
from lit_debias.support.redaction import check_no_secrets

VARIABLE = re.compile("[A-Z][A-Z0-9_]*")
NO_KEY = "none"
"""What is sent where there is no key: clients want one, a local server does not."""


def check_endpoint(who: str, url: str, api_key_env: str, options: Mapping[str, Any] | None = None) -> None:
    """Check what a configuration says of an endpoint.

    Args:
        who: Whose it is, for the message.
        url: Address up to the version, such as ``http://localhost:8000/v1``.
        api_key_env: Name of the environment variable that holds the key.
        options: Further fields of each request.

    Raises:
        UserError: the address is none, or the variable's name is none, or there is a password or key in one of them or
            in the options. It repeats none.
    """
    if not url.startswith(("http://", "https://")) or set(url) & set("@?#"):  # it is written to files
        raise UserError(f"{who}: url is no plain address; write one like http://localhost:8000/v1")
    if not VARIABLE.fullmatch(api_key_env):  # perhaps the key itself
        raise UserError(f"{who}: api_key_env is no name of a variable; write its name in capitals, like OPENAI_API_KEY")
    check_no_secrets({who: {"options": options}})


def api_key(variable: str) -> str:
    """Return the key in an environment variable, or :data:`NO_KEY`."""
    return os.environ.get(variable) or NO_KEY


def is_busy(status: int) -> bool:
    """Return whether an HTTP status says that the same request may succeed later."""
    return status in (408, 409, 429) or status >= 500


def refusal(who: str, url: str, model: str, api_key_env: str, status: int) -> UserError:
    """Return what to raise when the endpoint refuses; without the server's own words, which may repeat the key."""
    return UserError(
        f"{who}: {url} refuses model '{model}' with status {status}; check url, model and the key in ${api_key_env}"
    )
