"""Origins of a result beyond its settings: the model's files and the prompts; and the differences between two records.

Stored beside results that took long to compute, so that they are never continued or reported as another model's.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from gvm_ray.config import RunConfig
from gvm_ray.config.model import PretrainedModelConfig
from gvm_ray.model_files import model_files
from gvm_ray.tasks.prompt_set import PromptSets
from gvm_ray.types import Prompt


def run_origins(config: RunConfig, prompts: PromptSets) -> dict[str, Any]:
    """A run's origins as JSON: digests of the model's files, and of the prompts as the model reads them.

    The prompts' digest changes with data files, tokenizer and template. A scratch model has no files: the settings
    determine it.

    Raises:
        ModelError: a hub id's commit can't be determined.
    """
    model = config.model
    files = model_files(model.path, revision=model.revision) if isinstance(model, PretrainedModelConfig) else {}
    return {
        "model": files,
        "prompts": {"train": prompts_digest(prompts.train), "eval": prompts_digest(prompts.eval)},
    }


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """16 hex digits that identify the prompts and their order."""
    return hashlib.sha256("".join(map(prompt_digest, prompts)).encode()).hexdigest()[:16]


def prompt_digest(prompt: Prompt) -> str:
    """16 hex digits that identify a prompt: its id, text, tokens and gold answer."""
    digest = hashlib.sha256(prompt.token_ids.astype("<i4").tobytes())
    for text in (prompt.prompt_id, prompt.text, prompt.answer):
        digest.update(b"\0" + text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`NAME was BEFORE and is AFTER` for every value that differs; values in nested mappings have dotted names."""
    found: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name}.{each}" for each in differences(old, new)]
        elif old != new:
            found.append(f"{name} was {old!r} and is {new!r}")
    return found
