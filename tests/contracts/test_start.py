"""Starting costs little: neither ``import seqattn`` nor ``seqattn --help`` loads the libraries that do the work."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "pandas", "polars", "scipy", "sklearn", "optuna", "matplotlib", "jaxtyping")
REPORT = (
    "import json, sys\n"
    f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
)
HELP = """
import sys
from seqattn.cli import main
sys.argv = ["seqattn", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
STARTS = {"import seqattn": "import seqattn", "seqattn --help": HELP}


@pytest.mark.parametrize("start", STARTS)
def test_a_start_loads_no_heavy_library(run_python, start):
    done = run_python(f"{STARTS[start]}\n{REPORT}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr) == []


def test_help_names_every_verb_and_task_on_stdout(run_python):
    text = run_python(HELP).stdout
    missing = [
        verb for verb in ("datasets", "fit", "predict", "evaluate", "tune", "doctor") if verb not in text
    ]
    assert not missing, text


def processor_seconds(code: str) -> float:
    """Measure one fresh process. Processor time, since the wall clock counts what else the machine does."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        timeout=100,
    )
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_a_start_adds_less_than_three_tenths_of_a_second(start):
    added = [processor_seconds(STARTS[start]) - processor_seconds("pass") for _ in range(5)]
    assert statistics.median(added) < 0.3, added
