"""Put a model's folder on the hub."""

from __future__ import annotations

from pathlib import Path

from skim.errors import SkimError, first_line


def check_repository(name: str) -> None:
    """Refuse what cannot be the name of a repository, before anything else is done."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SkimError(f"push_to_hub={name} cannot be a repository's name: {first_line(error)}.") from error


def push(folder: Path, name: str) -> str:
    """Upload a folder to a model repository; a new one is private. Returns its address.

    Raises:
        SkimError: there is no token, or the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model and card, by skim")
    except Exception as error:  # which HTTP library raises what is the hub client's affair; all of it means "not now"
        raise SkimError(
            f"{folder} was written, and could not be pushed to {name}: {first_line(error)}.\n"
            f"Log in with `hf auth login`, or set HF_TOKEN, on a machine with internet; then: hf upload {name} {folder}"
        ) from error
    return str(address)
