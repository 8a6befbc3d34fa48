"""What all commands share: options, notes, warnings, errors with their exit codes, and tables as output."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from seqattn.errors import DataError, MissingDependencyError, ParameterError, SeqattnError, SeqattnWarning

__all__ = ["Commands", "example", "flag", "note", "options", "picture", "show", "stopped", "table_writer"]

_WRITERS = {".csv": "write_csv", ".parquet": "write_parquet", ".jsonl": "write_ndjson"}


def example(line: str) -> str:
    """Return the end of a command's help.

    Parameters
    ----------
    line
        A command line without the name of the program.
    """
    return f"Example:\n\n\b\n  seqattn {line}"


class Commands(click.Group):
    """A group of commands that turns what goes wrong in one of them into a line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command.

        Parameters
        ----------
        ctx
            Context of the group.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.simplefilter("always", SeqattnWarning)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except BrokenPipeError:
                # Whoever read the output has enough of it; Python must not complain once more when it closes.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                ctx.exit(0)
            except KeyboardInterrupt:
                click.echo(f"\nStopped. {ctx.meta.get('stopped', '')}".rstrip(), err=True)
                ctx.exit(130)
            except Exception as error:  # noqa: BLE001 - a person gets a sentence, and with -v the traceback
                if ctx.meta.get("verbose"):
                    traceback.print_exc(file=sys.stderr)
                click.echo(f"Error: {_sentence(error)}", err=True)
                ctx.exit(getattr(error, "exit_code", 1))


def _sentence(error: Exception) -> str:
    if isinstance(error, SeqattnError):
        is_column = isinstance(error, DataError) and str(error).startswith("Column ")
        return f"{error}{' Name yours with --read, for example --read time=when.' if is_column else ''}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename!r}." if error.filename else f"{error.strerror}."
    if isinstance(error, MemoryError):
        return "The memory is not enough. Try a smaller batch_size, or cut long sequences."
    return f"{type(error).__name__}: {error}\nThis was not foreseen; -v shows where it happened."


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if issubclass(category, SeqattnWarning) or flag("verbose"):
        click.echo(f"Warning: {message}", err=True)


def flag(name: str) -> bool:
    """Return whether one of the switches ``json``, ``quiet`` and ``verbose`` was given.

    Parameters
    ----------
    name
        Which one.
    """
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.meta.get(name))


def note(text: str) -> None:
    """Tell something on standard error, unless ``--quiet`` was given.

    Parameters
    ----------
    text
        What is told.
    """
    if not flag("quiet"):
        click.echo(text, err=True)


def show(values: Mapping[str, Any], text: str) -> None:
    """Print a result: as text, or as one JSON object if that was asked for.

    Parameters
    ----------
    values
        The result by name.
    text
        The same for a person.
    """
    from seqattn.report import to_json

    click.echo(to_json(values) if flag("json") else text)


def stopped(text: str) -> None:
    """Set what is said when the command is interrupted.

    Parameters
    ----------
    text
        A sentence or more.
    """
    click.get_current_context().meta["stopped"] = text


def picture(draw: Callable[[], Any]) -> None:
    """Draw if matplotlib is installed, and say so if it is not.

    Parameters
    ----------
    draw
        What draws.
    """
    try:
        draw()
    except MissingDependencyError as error:
        note(str(error))


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.meta[str(parameter.name)] = value


def _switch(*names: str, text: str) -> Callable[..., Any]:
    return click.option(*names, is_flag=True, expose_value=False, callback=_remember, help=text)


def _many(*names: str, text: str) -> Callable[..., Any]:
    return click.option(*names, multiple=True, metavar="KEY=VALUE", help=text)


_GROUPS: dict[str, list[Callable[..., Any]]] = {
    "every": [
        _switch("--json", text="Print one JSON object instead of text."),
        _switch("--quiet", text="No progress and no notes."),
        _switch("-v", "--verbose", text="Tracebacks and all warnings."),
    ],
    "data": [
        click.option("--data", metavar="D", help="Known name, file, or folder with train, dev, test files."),
        _many("--read", text="How files are read, such as time=when, window=max or sort=true."),
    ],
    "split": [
        click.option("--split", default="test", show_default=True, help="Part of a known data set or folder.")
    ],
    "training": [_many("--set", "settings", text="Setting of the model, such as epochs=10.")],
    "machine": [
        click.option("--seed", type=click.IntRange(0), help="Seed of every random draw.  [default: 0]"),
        click.option("--device", help="auto, cpu, cuda or cuda:1."),
    ],
}


def options(*groups: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds groups of options to a command, and those that all commands have.

    Parameters
    ----------
    groups
        Any of ``"data"``, ``"split"``, ``"training"``, ``"machine"``.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for name in ("every", *reversed(groups)):
            for option in reversed(_GROUPS[name]):
                command = option(command)
        return command

    return add


def table_writer(output: str | None) -> Callable[[Any], None]:
    """Return what writes a table to a file, by the ending of its name; the folder is made at once.

    Parameters
    ----------
    output
        The file; None stands for standard output, as CSV.

    Raises
    ------
    ParameterError
        The ending is not known, or the folder cannot be written to.
    """
    from seqattn.train.folder import make_folder

    if output is None:
        return lambda frame: click.echo(frame.write_csv(), nl=False)
    ending = Path(output).suffix.lower()
    if ending not in _WRITERS:
        raise ParameterError(f"--output {output!r} ends in {ending!r}. Use one of {', '.join(_WRITERS)}.")
    make_folder(Path(output).parent)
    return lambda frame: getattr(frame, _WRITERS[ending])(output)
