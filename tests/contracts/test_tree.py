"""What the working tree may hold: nothing of one machine, no code among the data, no file or function out of hand."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "seqattn").rglob("*.py"))
OWN_FOLDERS = ("seqattn", "tests", "datasets", "tuning", "benchmarks", ".ci")

# In pieces, so that this file may be searched like any other.
PLACES = "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers", "o" + "pt"))
MACHINE_PATHS = re.compile(rf"(?<![\w.~)\]}}])/(?:{PLACES})/")
REGISTRIES = re.compile(
    "|".join(("index" + "-url", "find" + "-links", r"py" + r"pi\.org", r"python" + "hosted"))
)
UNFINISHED = re.compile(
    rf"\b(?:{'TO' + 'DO'}|{'FIX' + 'ME'}|{'XX' + 'X'})\b|{'Not' + 'Implemented' + 'Error'}"
)


def tracked() -> list[Path]:
    """List what git tracks or would track; in an unpacked archive, the files of the project's own folders."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        files = [path for folder in OWN_FOLDERS for path in (ROOT / folder).rglob("*")]
        files += ROOT.glob("*.*")
    return sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts)


TRACKED = tracked()


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts() -> list[tuple[str, str]]:
    found = []
    for path in TRACKED:
        try:
            found.append((relative(path), path.read_text()))
        except UnicodeDecodeError:
            continue
    return found


def test_there_are_files_to_look_at():
    names = {relative(path) for path in TRACKED}
    assert {"README.md", "pyproject.toml", "seqattn/__init__.py"} <= names


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES], ids=["machine paths", "registries"])
def test_no_file_names_a_machine_or_a_registry(pattern):
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("path = '/wo" + "rk/data'", True),
        ("see /ho" + "me/someone/x", True),
        ("../wo" + "rk/other", False),
        ("$(VENV)/wo" + "rk/x", False),
        ("frame" + "wo" + "rk/x", False),
    ],
)
def test_the_search_for_machine_paths_finds_absolute_ones(line, is_found):
    assert bool(MACHINE_PATHS.search(line)) is is_found


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_left_unfinished(path):
    found = [line.strip() for line in path.read_text().splitlines() if UNFINISHED.search(line)]
    assert not found


@pytest.mark.parametrize("folder", ["datasets", "tuning"])
def test_data_folders_hold_no_code(folder):
    files = [path for path in TRACKED if relative(path).startswith(folder + "/")]
    assert files
    assert [
        relative(path) for path in files if path.suffix in {".py", ".pyc", ".pkl", ".pickle", ".pt", ".so"}
    ] == []


def test_no_file_is_larger_than_a_megabyte():
    assert [relative(path) for path in TRACKED if path.stat().st_size > 1_000_000] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_stay_below_500_lines(path):
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_fit_a_screen(path):
    found = [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := body_length(node)) > 60
    ]
    assert not found


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines after the signature, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_the_constraints_pin_every_line_to_one_version():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines
    assert [
        line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*(?:; .+)?", line)
    ] == []
