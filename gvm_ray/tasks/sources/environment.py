"""Tasks from an environment of another library, read in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvm_ray import exceptions
from gvm_ray.config.prompts import EnvironmentSourceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.tasks.rows import Task, content_id

_SHOWN_LINES = 8  # of what the process printed before it failed


def environment_tasks(config: EnvironmentSourceConfig) -> list[Task]:
    """The tasks of the environment's prompts, in its order.

    `features["environment"]` holds all that starts the episode again.

    Raises:
        ConfigError: the environment isn't there, or doesn't fit.
        DataError: it has no prompts, or failed while they were read.
    """
    assert config.environment is not None, "RunConfig fills it in from [environment]"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        done = subprocess.run(
            [sys.executable, "-m", "gvm_ray.tasks.hosted", str(file)],
            input=config.model_dump_json(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not file.is_file():
            printed = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_SHOWN_LINES:])
            raise DataError(f"environment {config.environment.id!r} failed while its prompts were read:\n{printed}")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if rows and "error" in rows[0]:
        raise getattr(exceptions, rows[0]["kind"])(rows[0]["error"])
    return [_task(row) for row in rows]


def _task(row: Mapping[str, Any]) -> Task:
    chat = row["messages"]
    problem = chat if isinstance(chat, str) else "\n\n".join(message["content"] for message in chat)
    return Task(
        prompt_id=content_id(problem, row["answer"]),
        problem=problem,
        answer=row["answer"],
        features={"environment": row["start"]},
        messages=None if isinstance(chat, str) else tuple(chat),
    )
