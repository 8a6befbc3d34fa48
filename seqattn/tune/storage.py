"""Where a study is kept, and what keeps two processes from handing out the same trial."""

from __future__ import annotations

import contextlib
import hashlib
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib import util
from pathlib import Path
from typing import Any, TypeVar, cast

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from seqattn.errors import ArtifactError, MissingDependencyError, ParameterError, SeqattnError
from seqattn.train.folder import mend_lines
from seqattn.train.workers import FileLock, undisturbed

__all__ = ["FAILURES", "claims_lock", "explained", "is_begun", "open_storage", "patiently", "shown"]

_Given = TypeVar("_Given")

# What a storage raises when it fails in the middle of a study.
FAILURES = (StorageInternalError, SQLAlchemyError)
_SECRETS = ("password", "sslpassword")
# A client whose machine is gone holds its lock until the server notices, so both sides ask often, in seconds.
_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
# What was sent is given up after a minute without an answer, in milliseconds.
_CONNECTION = {
    **_KEEPALIVES,
    "tcp_user_timeout": 60_000,
    "connect_timeout": 20,
    "application_name": "seqattn tune",
}
# Seconds after which waiting for a lock is an error; a lock is held for the time of one draw.
_PATIENCE = 120
# Seconds between two looks at a lock that somebody else holds: at first, and at most.
_FIRST_LOOK, _LAST_LOOK = 0.005, 0.2
# Seconds within which a server may come back, and between two tries to reach it: at first, and at most.
_ABSENCE = 60.0
_FIRST_TRY, _LAST_TRY = 0.2, 8.0


def open_storage(place: str) -> BaseStorage:
    """Return the storage at a place, made if it is not there.

    Parameters
    ----------
    place
        Path of a journal, or URL of an SQLite file or a PostgreSQL database.

    Raises
    ------
    ArtifactError
        The file is not a journal.
    MissingDependencyError
        The driver of the database is not installed.
    ParameterError
        It cannot be opened.
    """
    return _open_database(place) if "://" in place else _open_journal(Path(place))


def _open_journal(path: Path) -> BaseStorage:
    # Optuna's own locks outlive a process that is killed, and hold the others up.
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock:
            mend_lines(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, lock)))
    except OSError as error:
        raise ParameterError(f"The study cannot be kept in {str(path)!r}: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        raise ArtifactError(f"{str(path)!r} is not a journal of Optuna, or is damaged: {error}") from error


def _open_database(place: str) -> BaseStorage:
    url = _url(place)
    try:
        if not _is_postgres(url):
            return optuna.storages.get_storage(place)
        if util.find_spec("psycopg") is None:
            raise MissingDependencyError("PostgreSQL needs psycopg: pip install 'seqattn[postgres]'.")
        text = url.render_as_string(hide_password=False)
        options = {"connect_args": _CONNECTION, "pool_pre_ping": True}
        engine = sqlalchemy.create_engine(url, connect_args=_CONNECTION, poolclass=sqlalchemy.NullPool)
        # Two that make the tables at once would trip over each other.
        with _database_lock(engine, "tables"):
            database = RDBStorage(text, engine_kwargs=options)
        storage = optuna.storages.get_storage(database)
        weakref.finalize(storage, database.engine.dispose)
        return storage
    except (*FAILURES, ValueError, RuntimeError) as error:
        # Not "from error": a chain of errors may show what the URL hides.
        raise ParameterError(
            f"The storage {shown(place)!r} of the study cannot be opened: {_reason(error, place)}"
        ) from None


def _url(place: str) -> sqlalchemy.URL:
    """Read a URL; PostgreSQL is reached by psycopg whatever the version of SQLAlchemy prefers."""
    try:
        url = sqlalchemy.make_url(place)
    except (SQLAlchemyError, ValueError):
        # Not "from": a chain of errors may show what the URL hides.
        raise ParameterError(
            f"The storage {shown(place)!r} is no URL that can be read. Its form is "
            "postgresql://USER@HOST:PORT/DATABASE; of a password, write characters such as : / @ as %3A %2F %40."
        ) from None
    return url.set(drivername="postgresql+psycopg") if _is_postgres(url) else url


def _is_postgres(url: sqlalchemy.URL) -> bool:
    return url.get_backend_name() in ("postgresql", "postgres")


def shown(place: str) -> str:
    """Return a place as it may be told: without passwords.

    Parameters
    ----------
    place
        A path, or the URL of a database.

    Examples
    --------
    >>> shown("postgresql://ada:secret@host/studies?sslpassword=too")
    'postgresql://ada:***@host/studies?sslpassword=***'
    """
    if "://" not in place:
        return place
    try:
        url = sqlalchemy.make_url(place)
    except (SQLAlchemyError, ValueError):
        return f"{place.partition('://')[0]}://***"
    hidden = {key: "***" for key in _SECRETS if key in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A", "*")


def _reason(error: BaseException, place: str) -> str:
    """Return the first line of what went wrong, without passwords."""
    root = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    text = str(getattr(root, "orig", None) or root).partition("\n")[0]
    if "://" not in place:
        return text
    try:
        url = sqlalchemy.make_url(place)
    except (SQLAlchemyError, ValueError):
        return type(root).__name__
    for secret in filter(None, (url.password, *(url.query.get(key) for key in _SECRETS))):
        text = text.replace(str(secret), "***")
    return text


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn the failure of a storage in the middle of a study into an error that says what to do.

    Parameters
    ----------
    place
        Where the study is kept.

    Raises
    ------
    SeqattnError
        The storage failed.
    """
    try:
        yield
    except FAILURES as error:
        raise SeqattnError(
            f"The storage {shown(place)!r} of the study failed: {_reason(error, place)}. "
            "What is finished is kept there; the same call goes on."
        ) from None


def patiently(call: Callable[[], _Given], say: Callable[[str], None]) -> _Given:
    """Return what a call gives, made again for about a minute while a database cannot be reached.

    Parameters
    ----------
    call
        Reads or writes, and may be made again after a part of it was done.
    say
        Is told when waiting begins.
    """
    pause, end = _FIRST_TRY, time.monotonic() + _ABSENCE
    while True:
        try:
            return call()
        except FAILURES as error:
            root = error.__cause__ if isinstance(error, StorageInternalError) else error
            if not isinstance(root, OperationalError | InterfaceError) or time.monotonic() + pause > end:
                raise
        if pause == _FIRST_TRY:
            say("The storage of the study cannot be reached; trying again for a minute.")
        time.sleep(pause)
        pause = min(2 * pause, _LAST_TRY)


def is_begun(place: str, study: str) -> bool:
    """Return whether a study and its first trials are in a storage; no file is made to find out.

    Parameters
    ----------
    place
        Where the storage is.
    study
        Name of the study.
    """
    file = _file(place)
    if file is not None and not file.exists():
        return False
    storage = open_storage(place)
    try:
        return "about" in storage.get_study_user_attrs(storage.get_study_id_from_name(study))
    except KeyError:
        return False


def _file(place: str) -> Path | None:
    """Return the file that holds a storage; None for a server."""
    if "://" not in place:
        return Path(place)
    url = _url(place)
    return None if _is_postgres(url) else Path(url.database or "")


def claims_lock(place: str, study: str) -> AbstractContextManager[None]:
    """Return what keeps all but one process out while it takes or ends a trial of a study.

    A database keeps the lock itself, so that it holds on every machine, and lifts it when its holder is gone.
    Interruptions end the wait for it; once it is held, they wait until it is released.

    Parameters
    ----------
    place
        Where the study is kept; a file has its lock beside it.
    study
        Name of the study.
    """
    file = _file(place)
    if file is not None:
        return FileLock(f"{file.resolve()}.claims.lock")
    # A connection apart from those of the storage, which end their own transactions.
    return _Repeated(
        sqlalchemy.create_engine(_url(place), connect_args=_CONNECTION, pool_pre_ping=True), study
    )


class _Repeated(AbstractContextManager[None]):
    """A lock of a database that can be taken again and again, though not twice at once."""

    def __init__(self, engine: sqlalchemy.Engine, name: str) -> None:
        self._engine, self._name = engine, name
        weakref.finalize(self, engine.dispose)

    def __enter__(self) -> None:
        self._held = _database_lock(self._engine, self._name)
        self._held.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)


@contextlib.contextmanager
def _database_lock(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    """Hold an advisory lock of PostgreSQL as long as a transaction lasts."""
    digest = hashlib.blake2b(f"seqattn {name}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, signed=True)
    pause, end = _FIRST_LOOK, time.monotonic() + _PATIENCE
    with engine.begin() as connection:
        for setting, value in _KEEPALIVES.items():
            connection.exec_driver_sql(f"SET LOCAL tcp_{setting} = {value}")
        while True:
            with undisturbed():
                if connection.scalar(sqlalchemy.select(sqlalchemy.func.pg_try_advisory_xact_lock(number))):
                    yield
                    return
            if time.monotonic() > end:
                raise StorageInternalError(f"another process has held its lock for {_PATIENCE} s")
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK)
