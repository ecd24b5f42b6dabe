"""The origins of a result besides its settings, the model's files and the prompts, and how two records of them differ.

Kept beside what took long to make, so that it is never gone on with, or reported, as another model's.
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
    """What a run is made of, as JSON: its model's files, and a digest of its prompts as the model reads them.

    The latter changes with data files, tokenizer and template. A model from scratch is all in the settings.

    Raises:
        ModelError: a hub id's commit can't be told.
    """
    model = config.model
    files = model_files(model.path, revision=model.revision) if isinstance(model, PretrainedModelConfig) else {}
    return {
        "model": files,
        "prompts": {"train": prompts_digest(prompts.train), "eval": prompts_digest(prompts.eval)},
    }


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """16 hex digits of prompts in their order."""
    return hashlib.sha256("".join(map(prompt_digest, prompts)).encode()).hexdigest()[:16]


def prompt_digest(prompt: Prompt) -> str:
    """16 hex digits of a prompt: its id, text, tokens and gold answer."""
    digest = hashlib.sha256(prompt.token_ids.astype("<i4").tobytes())
    for text in (prompt.prompt_id, prompt.text, prompt.answer):
        digest.update(b"\0" + text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`NAME was BEFORE and is AFTER` for every value that differs; of nested mappings by dotted name."""
    found: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name}.{each}" for each in differences(old, new)]
        elif old != new:
            found.append(f"{name} was {old!r} and is {new!r}")
    return found
