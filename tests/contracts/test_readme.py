"""The README is true: its Python runs, its commands run, its targets and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
SHELL = [text for kind, text in BLOCKS if kind in ("console", "sh")]
RUN = "import sys; from seqattn.cli import main; sys.argv[0] = 'seqattn'; sys.exit(main())"


def commands(text: str) -> list[list[str]]:
    """Split a block into commands: continued lines are joined, prompts, comments and output are left out."""
    lines = text.replace("\\\n", " ").splitlines()
    prompts = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [parts for line in prompts or lines if (parts := shlex.split(line, comments=True))]


SEQATTN = [parts[1:] for text in SHELL for parts in commands(text) if parts[0] == "seqattn"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the blocks run one after the other: later ones use what earlier ones wrote."""
    return tmp_path_factory.mktemp("readme")


@pytest.mark.slow
def test_the_python_blocks_run_in_their_order_without_a_warning(run_python, folder):
    assert PYTHON
    for text in PYTHON:
        done = run_python(text, folder=folder, options=("-W", "error"), SEQATTN_DATA="")
        assert done.returncode == 0, f"{text}\n{done.stderr}"


@pytest.mark.slow
def test_the_commands_run_in_their_order(run_python, folder):
    assert SEQATTN
    for arguments in SEQATTN:
        done = run_python(RUN, *arguments, folder=folder, SEQATTN_DATA="")
        assert done.returncode == 0, f"seqattn {shlex.join(arguments)}\n{done.stderr}"


def test_every_target_of_make_in_the_readme_exists():
    targets = re.findall(r"\bmake ([a-z]+)", "\n".join(SHELL))
    defined = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {"demo", "test"} <= set(targets)
    assert set(targets) <= set(defined)


def test_links_within_the_project_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_links_within_the_page_lead_to_a_heading():
    titles = re.findall(r"^#+ (.+)$", README, re.M)
    headings = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", README) if link not in headings] == []


def test_the_reader_of_commands_joins_lines_and_drops_comments():
    assert commands("# first\nseqattn fit hawkes \\\n  --seed 1  # why\nls\n") == [
        ["seqattn", "fit", "hawkes", "--seed", "1"],
        ["ls"],
    ]
    assert commands("$ seqattn doctor\nversion 1\n") == [["seqattn", "doctor"]]
