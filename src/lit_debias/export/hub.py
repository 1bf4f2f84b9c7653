"""Uploads a folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants

from lit_debias.errors import UserError
from lit_debias.models.hub_names import checked_hub_name


def check_reachable(name: str) -> HfApi:
    """Return what uploads, before any work is done.

    Args:
        name: OWNER/NAME of the repository.

    Raises:
        UserError: ``name`` is none, the hub is switched off, or there is no token.
    """
    checked_hub_name(name, "--push")
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push uploads to the hub, and HF_HUB_OFFLINE=1 forbids it; unset that, or leave --push out")
    api = HfApi()
    if not (api.token or _saved_token()):
        raise UserError("--push needs a token of the hub; run 'hf auth login', or set HF_TOKEN")
    return api


def _saved_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def upload(api: HfApi, folder: Path, name: str, private: bool) -> str:
    """Upload a folder, and return where it is.

    Args:
        api: What uploads.
        folder: What is uploaded, all of it.
        name: OWNER/NAME; made where it is missing.
        private: Whether a new repository is for its owner alone; one that is there stays as it is.

    Raises:
        UserError: the hub refuses it, or cannot be reached; the folder stays.
    """
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by lit-debias export")
    except Exception as error:  # the client raises many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--push {name}: {reason:.140}; the folder is complete, upload it with 'hf upload {name} {folder}'"
        ) from error
    return f"{api.endpoint}/{name}"
