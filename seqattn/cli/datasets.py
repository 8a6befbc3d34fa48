"""The commands about data sets: what is known, downloads, and large tables made ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from seqattn.cli.console import example, note, options, show, stopped

__all__ = ["datasets"]


@click.group(epilog=example("datasets list"))
def datasets() -> None:
    """List, show and download known data sets, and prepare large ones."""


@datasets.command("list", epilog=example("datasets list --json"))
@options()
def list_datasets() -> None:
    """Print what is known and where it is."""
    from seqattn.data.catalog import entries
    from seqattn.report import dataset_facts, table

    facts = [dataset_facts(entry.name) for entry in entries()]
    rows = [
        [
            fact["name"],
            fact["labels"],
            *(fact["counts"].get(split) for split in ("train", "dev", "test")),
            fact["found"] or ("download" if fact["downloadable"] else "not here"),
            fact["title"],
        ]
        for fact in facts
    ]
    show({"datasets": facts}, table(["name", "labels", "train", "dev", "test", "where", "what"], rows))


@datasets.command("show", epilog=example("datasets show taxi"))
@click.argument("name")
@options()
def show_dataset(name: str) -> None:
    """Print what is known of NAME: sizes, licence, source, place."""
    from seqattn.report import dataset_facts, facts_text

    facts = dataset_facts(name)
    show(facts, facts_text(facts))


@datasets.command("get", epilog=example("datasets get taobao"))
@click.argument("name")
@options()
@click.option("--again", is_flag=True, help="Download even if it is there.")
def get_dataset(name: str, again: bool) -> None:
    """Download NAME into the cache folder and check it."""
    from seqattn.data.download import fetch
    from seqattn.report import dataset_facts

    facts = dataset_facts(name)
    if facts["found"] and not again:
        note(f"{facts['name']} is there already ({facts['found']}).")
    else:
        stopped("What was downloaded is kept; the same command goes on.")
        fetch(facts["name"], family=facts["family"], progress=_download_progress(), again=again)
        facts = dataset_facts(name)
    show(facts, str(facts["path"]))


def _download_progress() -> Callable[[str, int, int | None], None]:
    """Return what tells of a download: each tenth of a file."""
    told: dict[str, int] = {}

    def tell(name: str, done: int, total: int | None) -> None:
        step = 10 * done // (total or 100_000_000)
        if told.get(name) != step:
            told[name] = step
            note(f"{name}: {done:,}{f' of {total:,}' if total else ''} bytes")

    return tell


@datasets.command(
    "prepare", epilog=example("datasets prepare events.parquet --output events --read time=when")
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--output", required=True, metavar="FOLDER", help="Folder to write; give it as --data later.")
@options("read")
def prepare_dataset(files: Sequence[str], output: str, read: Sequence[str]) -> None:
    """Turn Parquet FILEs, or a folder of them, into a folder that is used without being loaded.

    Nothing but a piece of the table is in memory at a time, so that it may be larger than that.
    """
    from seqattn.data.readers import TABLE_OPTIONS
    from seqattn.data.sequences import Sequences
    from seqattn.train.config import check_names, parse_pairs

    asked = parse_pairs(read, "--read")
    check_names(asked, (*TABLE_OPTIONS, "piece"), "a reading option")
    data = Sequences.prepare(files[0] if len(files) == 1 else files, output, **asked)
    facts = {
        "output": output,
        "n_sequences": len(data),
        "n_events": data.n_events,
        "n_types": data.n_types,
        "window": data.window,
    }
    text = f"{len(data):,} sequences, {data.n_events:,} events, {data.n_types:,} types: {output}"
    show(facts, text)
