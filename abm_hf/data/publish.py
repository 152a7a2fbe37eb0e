"""Prepared data sets to the Hugging Face Hub."""

import os
from pathlib import Path

from huggingface_hub import HfApi

# HTTPError is that of the library that huggingface_hub speaks HTTP with, which its versions differ in.
from huggingface_hub.errors import HFValidationError, HTTPError

from .prepare import is_prepared
from .source import PrepareError


def push_prepared(
    folder: str | os.PathLike[str], repo_id: str, *, private: bool = True, endpoint: str | None = None
) -> str:
    """Uploads a prepared folder to the Hub, creating the repository where it is not there.

    Args:
        folder: From `prepare_dataset`.
        repo_id: `name` or `organisation/name`.
        private: Whether a new repository is private; one that is there stays as it is.
        endpoint: Address of the Hub; by default that of the environment variable `HF_ENDPOINT`, or the public one.

    Returns:
        `str`: Its address.

    Raises:
        PrepareError: The folder is not finished, or the Hub refused.
    """
    if not is_prepared(folder):
        raise PrepareError(f"{folder} is no finished data set: run `abm-hf prepare` first")
    try:
        api = HfApi(endpoint=endpoint)
        address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=Path(folder),
            ignore_patterns=[".*", "data/.*"],
            delete_patterns="data/*",
            commit_message="Upload a prepared data set",
        )
    except (HTTPError, HFValidationError, OSError, ValueError) as error:
        raise PrepareError(f"the upload to {repo_id} failed: {error}") from error
    return str(address)
