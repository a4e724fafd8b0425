"""Upload the files of a model to a hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sam4ir.errors import first_line
from sam4ir.priors.zoo.download import WeightsError
from sam4ir.priors.zoo.hub import EXTRA, endpoint, hub_errors, unreachable_errors, without_tokens


def upload(files: Sequence[Path], model: str, *, private: bool, message: str) -> str:
    """Upload files in one commit, under their own names; return the address of the commit.

    The model is made where the hub has none; an existing one keeps its visibility. Raises WeightsError where the hub
    refuses or cannot be reached; no message holds the token.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi, get_token
    except ImportError:
        raise WeightsError(EXTRA) from None
    if get_token() is None:
        raise WeightsError(
            f"hf:{model}: the hub asks for a token that may write; give it by `hf auth login` or HF_TOKEN"
        )
    hub = HfApi(endpoint=endpoint(), library_name="sam4ir")
    operations = []
    for file in files:
        operations.append(CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file)))
    try:
        with hub_errors(model):
            hub.create_repo(model, private=private, exist_ok=True)
            commit = hub.create_commit(model, operations, commit_message=message)
    except unreachable_errors() as error:
        reason = without_tokens(first_line(error))
        raise WeightsError(f"hf:{model}: the hub cannot be reached ({reason}); nothing was published") from None
    return str(commit.commit_url)
