"""Tasks of the reasoning-gym library, each with the entry that its scorer needs."""

import difflib
from dataclasses import fields

from gvm_ray.config.prompts import ReasoningGymSourceConfig
from gvm_ray.envs.task import Task, content_id
from gvm_ray.exceptions import DataError


def reasoning_gym_tasks(config: ReasoningGymSourceConfig) -> list[Task]:
    """`size` tasks, the same for the same seed and parameters.

    `features["reasoning_gym"]` holds the task's name and its entry (question, answer, metadata) with the values as the
    library made them: some scorers tell a tuple from a list.

    Raises:
        DataError: the task is unknown, or refuses its parameters.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if config.task not in DATASETS:
        near = difflib.get_close_matches(config.task, list(DATASETS), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(DATASETS))}"
        raise DataError(f"reasoning-gym has no task {config.task!r}; {hint}")
    if reserved := {"size", "seed"} & config.parameters.keys():
        raise DataError(
            f"parameters of reasoning-gym task {config.task!r} hold {sorted(reserved)}; write them beside parameters"
        )
    try:
        entries = list(
            reasoning_gym.create_dataset(config.task, size=config.size, seed=config.seed, **config.parameters)
        )
    except (TypeError, ValueError, AssertionError) as error:
        known = [field.name for field in fields(DATASETS[config.task][1]) if field.name not in ("size", "seed")]
        raise DataError(
            f"reasoning-gym task {config.task!r} refuses parameters {config.parameters}: {error}; "
            f"it knows {', '.join(known)}"
        ) from error
    return [_task(entry, name=config.task) for entry in entries]


def _task(entry: dict, *, name: str) -> Task:
    question, answer = entry["question"], entry["answer"] or ""  # no single answer: only the scorer knows
    scored = {"task": name, "question": question, "answer": entry["answer"], "metadata": entry["metadata"]}
    return Task(
        prompt_id=content_id(question, answer), problem=question, answer=answer, features={"reasoning_gym": scored}
    )
