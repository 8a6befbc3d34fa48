"""The wheel and the source archive: pure Python, complete, and able to find their data away from the working tree."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = {
    path.relative_to(ROOT).as_posix()
    for folder in ("datasets", "tuning")
    for path in (ROOT / folder).rglob("*")
    if path.is_file()
}
USE = """
import seqattn, sys
from pathlib import Path
from seqattn.data.catalog import entries, resource
place = Path(sys.argv[1])
assert Path(seqattn.__file__).is_relative_to(place), seqattn.__file__
assert resource("datasets").is_relative_to(place), resource("datasets")
assert resource("tuning").is_relative_to(place), resource("tuning")
assert "taxi" in [entry.name for entry in entries("tpp")]
print(seqattn.load_dataset("taxi", split="test").n_events)
"""

pytestmark = pytest.mark.slow


def run(*command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    run(sys.executable, "-m", "hatchling", "build", "--directory", str(folder), folder=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    (path,) = archives.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own, as pip does it, and return the folder."""
    place = tmp_path_factory.mktemp("installed")
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(place),
    )
    run(*pip, str(wheel), folder=place.parent)
    return place


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_is_pure_python(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_wheel_holds_every_module_and_its_types(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "seqattn").rglob("*.py")}
    assert modules | {"seqattn/py.typed"} <= names_in(wheel)


def test_the_wheel_holds_all_data_under_the_package(wheel):
    held = {name.removeprefix("seqattn/_resources/") for name in names_in(wheel) if "/_resources/" in name}
    assert held == DATA


def test_the_wheel_holds_nothing_else(wheel):
    assert {name.split("/")[0] for name in names_in(wheel)} == {
        "seqattn",
        wheel.name.rsplit("-", 3)[0] + ".dist-info",
    }


def test_the_wheel_names_its_licence_and_its_command(wheel):
    info = wheel.name.rsplit("-", 3)[0] + ".dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert "License-Expression: Apache-2.0" in archive.read(f"{info}/METADATA").decode()
        assert "seqattn = seqattn.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()


def test_an_installed_wheel_finds_its_data(installed, tmp_path):
    surroundings = {"PYTHONPATH": str(installed), "SEQATTN_DATA": "", "SEQATTN_CACHE": str(tmp_path)}
    assert int(run(sys.executable, "-c", USE, str(installed), folder=tmp_path, **surroundings)) > 0


def test_the_source_archive_builds_the_same_wheel(archives, wheel, tmp_path):
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(tmp_path),
        folder=source,
    )
    (again,) = tmp_path.glob("*.whl")
    assert names_in(again) == names_in(wheel)
