"""First commands in a new checkout: `make` installs what is asked for and no more, `pytest` alone finds every test."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands(target: str, *, venv: Path) -> str:
    """What `make` would run."""
    result = subprocess.run(
        ["make", "--no-print-directory", "-n", f"VENV={venv}", f"PYTHON={sys.executable}", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def finish_installs(target: str, *, venv: Path) -> None:
    """Leave the marks that the target's installs leave."""
    for line in commands(target, venv=venv).splitlines():
        if line.startswith("touch "):
            (venv / line.removeprefix("touch ")).touch()


def new_venv(path: Path) -> Path:
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").touch()
    return path


def test_the_main_job_is_installed_without_the_developers_tools(tmp_path: Path) -> None:
    venv = new_venv(tmp_path / "venv")
    for target in ("quickstart", "install"):
        assert "pip install" in commands(target, venv=venv)
        assert "dev]" not in commands(target, venv=venv)
    finish_installs("quickstart", venv=venv)
    assert "pip install" not in commands("quickstart", venv=venv)
    assert commands("unit", venv=venv).count("pip install") == 1
    assert "-e '.[dev]'" in commands("unit", venv=venv)


def test_what_tests_is_enough_for_the_main_job(tmp_path: Path) -> None:
    venv = new_venv(tmp_path / "venv")
    finish_installs("test", venv=venv)
    for target in ("quickstart", "unit", "check", "dev"):
        assert "pip install" not in commands(target, venv=venv)


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = (line for line in makefile.splitlines() if line.startswith(".PHONY:"))
    targets = set(phony.removeprefix(".PHONY:").split())
    named = {line.split()[1] for line in commands("help", venv=ROOT / ".venv").replace('echo "', "").splitlines()}
    assert named == targets - {"help"}


def test_no_two_test_files_have_one_name() -> None:
    """Without packages pytest knows a file by its name alone, and stops at the second."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, num in names.items() if num > 1] == []


def test_pytest_finds_what_tests_share() -> None:
    """As `pytest`, which unlike `python -m pytest` doesn't look for modules in the folder that it is started in."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "--collect-only", "tests/unit/test_data_layouts.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "test_data_layouts.py" in result.stdout


def test_the_package_is_a_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gvm_ray", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "prepare training data" in result.stdout
