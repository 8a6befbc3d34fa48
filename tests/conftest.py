"""What every test relies on: a cache of its own, plots without a screen, examples that do not change from run to run.

seqattn is imported inside fixtures only: pytest must switch the runtime checks of shapes on before the first import.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before torch is imported: with several processes at work, threads that spin while they wait slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("seqattn", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("seqattn")


@pytest.fixture(autouse=True, scope="session")
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests away from the user's cache and screen, in this process and in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQATTN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MPLBACKEND", "Agg")
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder that holds the package, its data and its documentation."""
    return ROOT


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Python code in a fresh process, in a temporary folder, as a user would."""

    def run(
        code: str,
        *arguments: str,
        folder: Path | None = None,
        options: tuple[str, ...] = (),
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *options, "-c", code, *arguments],
            cwd=folder or tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    return run
