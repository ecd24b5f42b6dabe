"""Exported models on the Hugging Face Hub: the login before a run, and the upload after it."""

from pathlib import Path
from typing import Any

from gvm_ray.exceptions import ConfigError, SystemFailure


def check_push(repo_id: str) -> None:
    """Check that a model could be pushed: the repository's name, the login, and that the Hub answers.

    Args:
        repo_id: `owner/name`.

    Raises:
        ConfigError: what is missing, and what to do.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo_id!r} isn't the name of a repository: {error}") from error
    if "/" not in repo_id:
        raise ConfigError(f"--push-to-hub {repo_id!r} has no owner; write --push-to-hub OWNER/{repo_id}")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("--push-to-hub needs the Hub, and HF_HUB_OFFLINE is set; unset it, or leave the option out")
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise ConfigError(
            "--push-to-hub needs a login at the Hugging Face Hub; run `hf auth login`, or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        raise ConfigError(
            f"--push-to-hub: the Hub doesn't take the login ({_in_short(error)}); run `hf auth login` again, or set "
            "HF_TOKEN to a token that can write"
        ) from error
    except (HTTPError, OSError) as error:  # no answer at all
        raise ConfigError(f"--push-to-hub: {_unreachable(error)}; leave the option out, and push later") from error


def push_model(folder: Path, repo_id: str) -> str:
    """Upload a model's folder as one commit, and return its address. A repository that doesn't exist is made, private.

    Raises:
        SystemFailure: the Hub refuses it or can't be reached; the folder is as it was.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        hub.create_repo(repo_id, private=True, exist_ok=True)
        done: Any = hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Model trained with gvm_ray")
    except HfHubHTTPError as error:
        raise SystemFailure(
            f"the Hub doesn't take the model ({_in_short(error)}); {_again(folder, repo_id)}"
        ) from error
    except (HTTPError, OSError) as error:
        raise SystemFailure(f"{_unreachable(error)}; {_again(folder, repo_id)}") from error
    return str(done.commit_url)


def _again(folder: Path, repo_id: str) -> str:
    return f"the model is in {str(folder)!r}: `hf upload {repo_id} {folder}`, or the command again with --resume"


def _unreachable(error: Exception) -> str:
    return f"the Hugging Face Hub can't be reached ({_in_short(error)})"


def _in_short(error: Exception) -> str:
    """The last line of the message: huggingface_hub puts the server's reason there, after status and request id."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
