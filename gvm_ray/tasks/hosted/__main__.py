"""The process that reads an environment's prompts: settings from stdin, one JSON line for each prompt to a file.

    python -m gvm_ray.tasks.hosted FILE < settings.json

An error that a user can mend goes to FILE as {"error": ..., "kind": ...}.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from gvm_ray.config.prompts import EnvironmentSourceConfig
from gvm_ray.exceptions import UserError
from gvm_ray.tasks.hosted import hosted_environment


def main() -> None:
    """Write the prompts, or the error."""
    config = EnvironmentSourceConfig.model_validate_json(sys.stdin.read())
    assert config.environment is not None
    try:
        environment = hosted_environment(config.environment)
        entries = environment.entries(split=config.split, size=config.size, seed=config.seed)
        lines = [json.dumps(asdict(entry), allow_nan=False) for entry in entries]
    except UserError as error:
        lines = [json.dumps({"error": str(error), "kind": type(error).__name__})]
    Path(sys.argv[1]).write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
