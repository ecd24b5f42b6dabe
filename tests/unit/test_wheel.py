"""The wheel holds all that the package needs, and works outside the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a folder of its own, where no earlier build's files lie about."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in [*package_files(), "pyproject.toml", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, str(target), str(source)], check=True, capture_output=True)
    (built,) = target.glob("gvm_ray-*.whl")
    return built


def package_files() -> list[str]:
    """The package's files, without what Python compiled."""
    files = (path for path in (ROOT / "gvm_ray").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [path.relative_to(ROOT).as_posix() for path in files]


def test_it_holds_every_file_of_the_package_but_its_notes(wheel: Path) -> None:
    expected = {name for name in package_files() if not name.endswith(".md")}
    with zipfile.ZipFile(wheel) as files:
        assert {name for name in files.namelist() if name.startswith("gvm_ray/")} == expected


def test_it_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(tmp_path / "site"),
            str(wheel),
        ],
        check=True,
        capture_output=True,
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    program = "import gvm_ray; print(gvm_ray.__file__, gvm_ray.__version__)"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert found.startswith(str(tmp_path / "site"))
    assert found.split()[1] == wheel.name.split("-")[1]
    settings = [sys.executable, "-m", "gvm_ray", "settings", "allocator"]
    printed = subprocess.run(settings, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "uniform" in printed.stdout
