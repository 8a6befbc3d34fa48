"""The figures of the paper on training dynamics as files: pictures, CSV, Markdown, and one HTML page."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from seqattn.errors import MissingDependencyError
from seqattn.reproduce.figure_pictures import draw
from seqattn.reproduce.figures import TITLES, Claim, Figure, Figures
from seqattn.reproduce.markup import page_html, table_html, table_md
from seqattn.reproduce.summary import COLUMNS

__all__ = ["figure_lines", "figure_remarks", "write_figures"]

_TITLE = "Scan and snap: figures 3 to 10"
_HEADS = ("figure", "row", "quantity", "mean", "std", "seeds", "published", "difference")
_ABOUT = (
    "Each figure of the paper as this machine makes it: mean and standard deviation over seeds, with published values "
    "where there are any. Theory runs once."
)


def figure_lines(found: Figures) -> tuple[list[str], list[list[Any]]]:
    """Return headers and rows of the table on the screen.

    Parameters
    ----------
    found
        What came of the figures.
    """
    rows = []
    for row in found.rows():
        gap = None if row["published"] is None else row["mean"] - row["published"]
        named = [row[name] for name in ("dataset", "model", "metric", "mean", "std", "n_seeds", "published")]
        rows.append([*named, gap])
    return list(_HEADS), rows


def figure_remarks(found: Figures) -> dict[str, list[str]]:
    """Return what a reader must know beside the table, by title; only what there is.

    Parameters
    ----------
    found
        What came of the figures.
    """
    gaps = [abs(row["mean"] - row["published"]) for row in found.rows() if row["published"] is not None]
    of_gaps = (
        [f"{len(gaps)} values: mean distance {sum(gaps) / len(gaps):.4f}, largest {max(gaps):.4f}."]
        if gaps
        else []
    )
    every = {
        "Against published values": of_gaps,
        "What the paper says": [
            f"{figure.name}: {line}" for figure in found.figures for line in _checked(found, figure)
        ],
        "What differs": [f"{figure.name}: {figure.differs}" for figure in found.figures if figure.differs],
        "Failed": [f"{each['dataset']}, {each['model']}: {each['reason']}" for each in found.failed],
        "Skipped": [f"{name}: {reason}" for name, reason in found.skipped.items()],
    }
    return {title: lines for title, lines in every.items() if lines}


def _checked(found: Figures, figure: Figure) -> Iterator[str]:
    """Say of each claim on a figure whether our means, and those of each seed, are in that order."""
    for claim in figure.claims:
        values = _values(found, figure, claim)
        if len(values) < 2:
            continue
        sign = -1 if claim.order == "falls" else 1
        means = [float(np.mean(list(own.values()))) for own in values]
        wrong = sum(sign * (after - before) <= 0 for before, after in pairwise(means))
        seeds = set.intersection(*(set(own) for own in values))
        kept = sum(
            all(sign * (after[seed] - before[seed]) > 0 for before, after in pairwise(values))
            for seed in seeds
        )
        ends = "" if sign * (means[-1] - means[0]) > 0 else ", and not from the first to the last"
        told = "holds" if not wrong else f"does not hold in {wrong} of {len(means) - 1} steps{ends}"
        shown = ", ".join(f"{mean:.3g}" for mean in means)
        yield f"{claim.says}: {told}; means {shown}; in this order in {kept} of {len(seeds)} seeds."


def _values(found: Figures, figure: Figure, claim: Claim) -> list[dict[int, float]]:
    """Values by seed for each row of a claim that was run."""
    by_row: dict[str, dict[int, float]] = {row: {} for row in claim.rows}
    for record in found.complete:
        for each in record["values"] if record["dataset"] == figure.name else ():
            if each["row"] in by_row and each["metric"] == claim.metric and each["value"] is not None:
                by_row[each["row"]][each["seed"]] = each["value"]
    return [own for own in by_row.values() if own]


def write_figures(found: Figures, folder: str | Path) -> list[Path]:
    """Write pictures, ``table.csv``, ``table.md`` and ``table.html``, and return their paths.

    Parameters
    ----------
    found
        What came of the figures.
    folder
        A folder that exists.

    Returns
    -------
    The files. Without matplotlib there are no pictures, and the page says so.
    """
    place = Path(folder)
    pictures, missing = dict[str, Path](), ""
    for figure in found.figures:
        curves = found.curves(figure.name)
        if len(curves):
            try:
                pictures[figure.name] = draw(figure, curves, place / f"{figure.name}.png")
            except MissingDependencyError as error:
                missing = str(error)
    files = [place / f"table.{ending}" for ending in ("csv", "md", "html")]
    with files[0].open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found.rows())
    files[1].write_text(_markdown(found, pictures), encoding="utf-8")
    files[2].write_text(_html(found, pictures, missing), encoding="utf-8")
    return [*files, *pictures.values()]


def _cells(found: Figures, figure: Figure) -> list[list[str]]:
    rows = []
    for _, row, metric, mean, std, count, published, gap in (
        line for line in figure_lines(found)[1] if line[0] == figure.name
    ):
        shown = f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"
        beside = ["", ""] if published is None else [f"{published:.4f}", f"{gap:+.4f}"]
        rows.append([row, TITLES.get(metric, metric), shown, str(count), *beside])
    return rows


_COLUMNS = ("row", "quantity", "ours", "seeds", "published", "difference")


def _told(figure: Figure) -> list[str]:
    other = " Settings are not those of the paper." if figure.is_changed else ""
    source = (
        f"Published: {figure.source}." if figure.source else "The paper has a picture only, without values."
    )
    return [f"Made as: {figure.protocol}.{other}", source, f"What differs: {figure.differs}"]


def _name(figure: Figure) -> str:
    return f"Figure {figure.name.removeprefix('figure')}: {figure.title.lower()}"


def _markdown(found: Figures, pictures: dict[str, Path]) -> str:
    parts = [f"# {_TITLE}", _ABOUT]
    for figure in found.figures:
        parts.append(f"## {_name(figure)}")
        if figure.name in pictures:
            parts.append(f"![{figure.title}]({pictures[figure.name].name})")
        parts += [*_told(figure), table_md(_COLUMNS, _cells(found, figure))]
    for title, lines in _short(found).items():
        parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _html(found: Figures, pictures: dict[str, Path], missing: str) -> str:
    parts = [f"<h1>{escape(_TITLE)}</h1><p>{escape(_ABOUT)}</p>"]
    parts.append(f'<p class="pale">No pictures. {escape(missing)}</p>' if missing else "")
    for figure in found.figures:
        parts.append(f"<h2>{escape(_name(figure))}</h2>")
        if figure.name in pictures:
            code = base64.b64encode(pictures[figure.name].read_bytes()).decode()
            image = f'<img alt="{escape(figure.title)}" src="data:image/png;base64,{code}" style="max-width:100%">'
            parts.append(f"<figure>{image}</figure>")
        parts += [f"<p>{escape(line)}</p>" for line in _told(figure)]
        parts.append(table_html(_COLUMNS, _cells(found, figure)))
    for title, lines in _short(found).items():
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        parts.append(f"<h2>{escape(title)}</h2><ul>{items}</ul>")
    parts.append(_runs(found))
    return page_html(_TITLE, parts)


def _short(found: Figures) -> dict[str, list[str]]:
    """Remarks that do not stand beside a figure already."""
    return {title: lines for title, lines in figure_remarks(found).items() if title != "What differs"}


def _runs(found: Figures) -> str:
    every: Sequence[dict[str, Any]] = [*found.complete, *found.failed]
    rows = [
        [
            each["dataset"],
            each["model"],
            each["status"],
            str(each.get("seconds", "")),
            each["ended"],
            each["command"],
        ]
        for each in every
    ]
    heads = ("figure", "part", "status", "seconds", "ended", "command")
    table = table_html(heads, rows, "text")
    return f"<h2>Runs</h2><details><summary>{len(rows)} parts with seconds and commands</summary>{table}</details>"
