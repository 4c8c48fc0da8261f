"""Uploading an exported folder to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub

from deit_tract.common.errors import UserError
from deit_tract.common.text import brief
from deit_tract.results.export import FILES


def hub_token() -> str:
    """Return the person's token. Raises UserError if there is none."""
    token = huggingface_hub.get_token()
    if not token:
        instead = "run `hf auth login`, or set HF_TOKEN"
        raise UserError("--push", "there is no Hugging Face token", instead)
    return token


def push(folder: Path, repository: str, token: str) -> str:
    """Upload a folder as it is and return its address.

    timm.models.push_to_hf_hub would write it again.
    """
    try:
        api = huggingface_hub.HfApi(token=token, library_name="timm")
        created = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            allow_patterns=sorted(FILES),
            commit_message="Add model",
        )
    except Exception as error:  # of the hub and the network
        what = f"the hub refused ({brief(error)})"
        raise UserError(f"--push {repository}", what, f"the export is in {folder}") from None
    return str(created)
