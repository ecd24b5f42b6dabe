"""The wheel holds all that the package needs, and works outside the repository."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a release, made in one where no earlier build's files lie about: the wheel comes of the sdist."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("release")
    for name in [*package_files(), "pyproject.toml", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("gvm_ray-*.whl")
    return wheel


def package_files() -> list[str]:
    """The package's files, without what Python compiled."""
    files = (path for path in (ROOT / "gvm_ray").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [path.relative_to(ROOT).as_posix() for path in files]


def test_its_version_is_the_one_that_is_cited_and_whose_changes_are_listed(wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(
        r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert newest is not None
    assert newest.groups() == (version, str(cited["date-released"]))
    assert cited["version"] == version


def test_the_source_distribution_holds_what_the_wheel_is_made_of(built: Path) -> None:
    (sdist,) = built.glob("gvm_ray-*.tar.gz")
    with tarfile.open(sdist) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert names >= {name for name in package_files() if not name.endswith(".md")} | {"README.md", "LICENSE"}


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
