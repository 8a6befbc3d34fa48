"""What all commands share: options, notes, warnings, errors with their exit codes, and tables as output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import seqattn
from seqattn.errors import DataError, MissingDependencyError, ParameterError, SeqattnError, SeqattnWarning

if TYPE_CHECKING:
    from seqattn.train.config import Run

__all__ = [
    "Commands",
    "example",
    "flag",
    "is_first",
    "note",
    "options",
    "picture",
    "run_of",
    "show",
    "stopped",
    "table_writer",
    "terminate",
]

# Commands whose work several processes share.
_SHARED = ("fit", "predict", "evaluate")


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): as Ctrl-C, what is open is closed and work folders go."""


def terminate(number: int, frame: object) -> NoReturn:
    """Turn the signal SIGTERM into an exception; a second one ends the process at once.

    Parameters
    ----------
    number, frame
        What :func:`signal.signal` passes.
    """
    signal.signal(number, signal.SIG_DFL)
    raise Terminated


def example(line: str) -> str:
    """Return the end of a command's help.

    Parameters
    ----------
    line
        A command line without the name of the program.
    """
    return f"Example:\n\n\b\n  seqattn {line}"


def _is_one_of_many() -> bool:
    """Tell a process of torchrun that has others beside it; asked without importing torch."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def is_first() -> bool:
    """Return whether this process speaks and writes files: the only one, or the first under torchrun."""
    return not _is_one_of_many() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Under torchrun let the processes share scores and forecasts, and silence all but the first."""
    if not _is_one_of_many():
        yield
        return
    from seqattn.train.distributed import together

    with contextlib.ExitStack() as stack:
        stack.enter_context(together())
        if not is_first():
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _complain(tell: Callable[[], None]) -> None:
    """Tell what went wrong; of several processes the one that knows it first does."""
    if not _is_one_of_many():
        tell()
        return
    from seqattn.train.distributed import tell_once

    tell_once(tell)


class Commands(click.Group):
    """A group of commands that turns what goes wrong in one of them into a line and an exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; under torchrun refuse those that would do everything several times."""
        found = super().resolve_command(ctx, args)
        if _is_one_of_many() and found[0] not in _SHARED:
            raise ParameterError(
                f"{found[0]!r} runs in one process: start it without torchrun. "
                f"Under torchrun run {', '.join(_SHARED)}."
            )
        return found

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
                with _one_voice():
                    return super().invoke(ctx)
            except (click.exceptions.Exit, click.Abort):
                raise
            except click.ClickException as error:
                _complain(error.show)
                ctx.exit(error.exit_code)
            except BrokenPipeError:
                # Whoever read the output has enough of it; Python must not complain once more when it closes.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                ctx.exit(0)
            except KeyboardInterrupt as stop:
                text = f"\nStopped. {ctx.meta.get('stopped', '')}".rstrip()
                _complain(lambda: click.echo(text, err=True))
                ctx.exit(143 if isinstance(stop, Terminated) else 130)
            except Exception as error:  # noqa: BLE001 - a person gets a sentence, and with -v the traceback
                _complain(partial(_tell_of, error, bool(ctx.meta.get("verbose"))))
                ctx.exit(getattr(error, "exit_code", 1))


def _tell_of(error: Exception, is_verbose: bool) -> None:
    if is_verbose:
        traceback.print_exception(error, file=sys.stderr)
    click.echo(f"Error: {_sentence(error)}", err=True)


def _sentence(error: Exception) -> str:
    if isinstance(error, SeqattnError):
        is_column = isinstance(error, DataError) and " is not in the table. Columns: " in str(error)
        return f"{error}{' Name yours with --read, for example --read time=when.' if is_column else ''}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename!r}." if error.filename else f"{error.strerror}."
    if isinstance(error, MemoryError):
        return "The memory is not enough. Try a smaller batch_size, or cut long sequences."
    return f"{type(error).__name__}: {error}\nThis was not foreseen; -v shows where it happened."


def run_of(config: str | None, task: str, settings: Sequence[str], read: Sequence[str], **given: Any) -> Run:
    """Return what is run: the options, over the configuration file, over the task's defaults.

    Parameters
    ----------
    config
        A configuration file or the name of a preset, or None.
    task
        Name of the task.
    settings, read
        Texts ``key=value``.
    given
        Further options; None where one was not given.
    """
    from seqattn.train.config import Run

    module = seqattn.task(task)
    run = Run.of_options(config, task, settings, read, **given)
    if not run.data:
        note(f"No --data: using {module.DEFAULT_DATA!r}, the small set of this task.")
    return replace(run, data=run.data or module.DEFAULT_DATA, model=run.model or next(iter(module.MODELS)))


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
    """Draw if matplotlib is installed, and say so if it is not; of several processes the first one draws.

    Parameters
    ----------
    draw
        What draws.
    """
    if not is_first():
        return
    from seqattn.train.distributed import alone

    try:
        with alone():
            draw()
    except MissingDependencyError as error:
        note(str(error))


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.meta[str(parameter.name)] = value


def _switch(*names: str, text: str) -> Callable[..., Any]:
    return click.option(*names, is_flag=True, expose_value=False, callback=_remember, help=text)


def _many(*names: str, text: str) -> Callable[..., Any]:
    return click.option(*names, multiple=True, metavar="KEY=VALUE", help=text)


_READ = _many("--read", text="How files are read, such as time=when, window=max or sort=true.")
_GROUPS: dict[str, list[Callable[..., Any]]] = {
    "every": [
        _switch("--json", text="Print one JSON object instead of text."),
        _switch("--quiet", text="No progress and no notes."),
        _switch("-v", "--verbose", text="Tracebacks and all warnings."),
    ],
    "data": [
        click.option("--data", metavar="D", help="Known name, file, or folder with train, dev, test files."),
        _READ,
    ],
    "read": [_READ],
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
        Any of ``"data"``, ``"read"``, ``"split"``, ``"training"``, ``"machine"``.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for name in ("every", *reversed(groups)):
            for option in reversed(_GROUPS[name]):
                command = option(command)
        return command

    return add


def table_writer(output: str | None) -> Callable[[Iterable[Any]], int]:
    """Return what writes tables one below the other to a file, by the ending of its name, and counts their rows.

    The folder is made at once; the file takes its name only when it is complete.

    Parameters
    ----------
    output
        The file; None stands for standard output, as CSV.

    Raises
    ------
    ParameterError
        The ending is not known, the file is a folder, or its folder cannot be written to.
    """
    from seqattn.data.table import WRITERS, write_frames
    from seqattn.train.folder import make_folder

    if output is None:
        return _to_screen
    ending = Path(output).suffix.lower()
    if ending not in WRITERS:
        raise ParameterError(f"--output {output!r} ends in {ending!r}. Use one of {', '.join(WRITERS)}.")
    if Path(output).is_dir():
        raise ParameterError(f"--output {output!r} is a folder. Name a file.")
    if not is_first():
        return lambda frames: sum(len(frame) for frame in frames)
    make_folder(Path(output).parent)
    return lambda frames: write_frames(output, frames)


def _to_screen(frames: Iterable[Any]) -> int:
    rows = 0
    for number, frame in enumerate(frames):
        click.echo(frame.write_csv(include_header=not number), nl=False)
        rows += len(frame)
    return rows
