"""The command line answers at once because these modules import nothing heavy."""

import subprocess
import sys

import pytest

HEAVY = ("datasets", "ray", "torch", "transformers", "vllm")


@pytest.mark.parametrize(
    "module",
    ["gvm_ray", "gvm_ray.cli", "gvm_ray.config", "gvm_ray.exceptions", "gvm_ray.protocols", "gvm_ray.types"],
)
def test_import_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["allocator", "generator", "mailbox", "reward"])
def test_an_actors_process_starts_without_the_libraries_of_models(module: str) -> None:
    script = f"import sys, gvm_ray.actors.{module}; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['ray']"


def test_public_names_load_on_first_use() -> None:
    script = (
        "import sys, gvm_ray; early = 'pydantic' in sys.modules; "
        "gvm_ray.load_config; print(early, 'pydantic' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False True"


def test_unknown_public_name_is_an_attribute_error() -> None:
    import gvm_ray

    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        gvm_ray.trane  # noqa: B018
