"""A PostgreSQL server of its own for a test: made in a temporary folder, reached by a socket in it, stopped."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PASSWORD = "swordfish&more"


def programs() -> Path | None:
    """Return the folder with the newest server that is installed."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = shutil.which("initdb")
    return places[-1].parent if places else Path(found).parent if found else None


def _owner() -> str | None:
    """Return who runs the server in place of root, which it refuses to run as."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def missing() -> str | None:
    """Return why there can be no server here."""
    if programs() is None:
        return "the Debian package postgresql is not installed"
    if _owner() and not shutil.which("runuser"):
        return "root needs runuser to start a server"
    return None


def _call(folder: Path, *words: str | Path) -> None:
    owner = _owner()
    as_owner = ["runuser", "-u", owner, "--"] if owner else []
    done = subprocess.run(
        [*as_owner, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


def control(folder: Path, order: str) -> None:
    """Start or stop the server in a folder; it stops as if the power failed."""
    bin_ = programs()
    assert bin_ is not None
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    how = {"start": ("-l", folder / "log", "-o", options), "stop": ("-m", "immediate")}[order]
    _call(folder, bin_ / "pg_ctl", "-D", folder / "data", "-w", "-t", "300", *how, order)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run a server, and give the URL of its database with a password."""
    # The path of a socket may have 107 characters, which a test's own folder would use up.
    with tempfile.TemporaryDirectory(prefix="pg") as place:
        folder, owner, bin_ = Path(place), _owner(), programs()
        assert bin_ is not None
        if owner:
            shutil.chown(folder, owner)
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        login = ["--username=ada", "--auth=scram-sha-256", f"--pwfile={secret}"]
        more = ("--no-sync", "--encoding=UTF8", "--locale=C")
        _call(folder, bin_ / "initdb", "-D", folder / "data", *login, *more)
        control(folder, "start")
        try:
            yield f"postgresql://ada:{PASSWORD.replace('&', '%26')}@/postgres?host={folder}"
        finally:
            control(folder, "stop")
