"""A table as files: CSV with all digits, Markdown, and one HTML page that needs nothing but itself."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from seqattn.errors import MissingDependencyError
from seqattn.reproduce import standing
from seqattn.reproduce.contest import Contest
from seqattn.reproduce.grid import Metric, Published
from seqattn.reproduce.markup import page_html, table_html, table_md
from seqattn.reproduce.summary import COLUMNS, Summary

__all__ = ["html", "introduction", "lines", "markdown", "remarks", "write"]

# The mean over data sets that have a figure, as a column beside them.
_MEAN = "mean (data sets)"
# Above so many data sets tables have one in each line.
_MANY = 10


def _value(value: float | None, decimals: int = 4) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def lines(summary: Summary) -> tuple[list[str], list[list[Any]]]:
    """Return headers and rows of the table on the screen: the first metric, and published figures beside it.

    Parameters
    ----------
    summary
        What is told of the cells.
    """
    chosen = [row for row in summary.rows() if row["metric"] == summary.main.name]
    names = ("dataset", "model", "mean", "std", "n_seeds", "published")
    heads = ["data", "model", summary.main.title, "std", "seeds", "published"]
    rows = [[row[name] for name in names] for row in chosen]
    if not summary.result.failed:
        return heads, rows
    failed = [_failures(summary, row["dataset"], row["model"]) or None for row in chosen]
    return [*heads, "failed"], [[*row, count] for row, count in zip(rows, failed, strict=True)]


def write(summary: Summary, folder: str | Path) -> list[Path]:
    """Write ``table.csv``, ``table.md`` and ``table.html``, and return their paths.

    Parameters
    ----------
    summary
        What is told of the cells.
    folder
        A folder that exists.
    """
    paths = [Path(folder) / f"table.{ending}" for ending in ("csv", "md", "html")]
    with paths[0].open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(summary.rows())
    paths[1].write_text(markdown(summary), encoding="utf-8")
    paths[2].write_text(html(summary), encoding="utf-8")
    return paths


def _pivot(summary: Summary, metric: Metric) -> list[tuple[str, bool, list[str]]]:
    """Return one row per model: its name, whether it is published only, and its cells by data set, then the mean."""
    rows = [
        (model.name, False, [_ours(summary, dataset, model.name, metric) for dataset in summary.datasets])
        for model in summary.grid.models
    ]
    names = dict.fromkeys(name for model in summary.grid.models if (name := model.published))
    for name in (*names, *summary.others):
        found = [summary.published(dataset, name, metric.name) for dataset in summary.datasets]
        if any(found):
            rows.append((name, True, [_value(each[0], 3) if each else "" for each in found]))
    if summary.grid.is_averaged:
        rows = [
            (name, theirs, [*cells, _mean(summary, name, theirs, metric)]) for name, theirs, cells in rows
        ]
    return rows


def _columns(summary: Summary) -> list[str]:
    return [*summary.datasets, *([_MEAN] if summary.grid.is_averaged else [])]


def _mean(summary: Summary, name: str, theirs: bool, metric: Metric) -> str:
    """Return the mean over the data sets that have a figure, and their number."""
    values = [_shown(summary, dataset, name, theirs, metric) for dataset in summary.datasets]
    there = [value for value in values if value is not None]
    return f"{sum(there) / len(there):.4f} ({len(there)})" if there else ""


def _shown(summary: Summary, dataset: str, name: str, theirs: bool, metric: Metric) -> float | None:
    if theirs:
        figure = summary.published(dataset, name, metric.name)
        return None if figure is None else figure[0]
    found = summary.of(dataset, name, metric.name)
    return None if found is None else found.mean


def _is_long(summary: Summary) -> bool:
    """Tell whether data sets are so many that they go down the page instead of across."""
    return len(summary.datasets) > _MANY


def _ours(summary: Summary, dataset: str, model: str, metric: Metric) -> str:
    found = summary.of(dataset, model, metric.name)
    if found is None:
        return "failed" if _failures(summary, dataset, model) else ""
    return f"{_value(found.mean)} ± {_value(found.std)}" if found.std is not None else _value(found.mean)


def _failures(summary: Summary, dataset: str, model: str) -> int:
    places = [(record["dataset"], record["model"]) for record in summary.result.failed]
    return places.count((dataset, model))


def markdown(summary: Summary) -> str:
    """Return the table as Markdown: models by data sets, comparisons, ranks, failures and sources.

    Parameters
    ----------
    summary
        What is told of the cells.
    """
    parts = [f"# {summary.grid.title}", " ".join(introduction(summary))]
    rows = [
        [_published_md(name) if theirs else name, *_bold(summary, name, cells, theirs)]
        for name, theirs, cells in _pivot(summary, summary.main)
    ]
    heads = [summary.main.title, *_columns(summary)]
    turned = list(map(list, zip(heads, *rows, strict=True)))
    parts.append(table_md(turned[0], turned[1:]) if _is_long(summary) else table_md(heads, rows))
    if summary.comparisons:
        parts += [f"## {_COMPARED}", _comparison_text(summary), table_md(*_comparison_rows(summary))]
    parts.append("## Ranks")
    for each in summary.contests:
        parts += [standing.text(summary.grid, each), table_md(*standing.rows(summary.grid, each))]
        parts += filter(None, [standing.groups(each)])
    if not summary.contests:
        parts.append(standing.NONE)
    for title, found in remarks(summary).items():
        parts += [f"## {title}", "\n".join(f"- {line}" for line in found)]
    return "\n\n".join(parts) + "\n"


def _published_md(name: str) -> str:
    shown = name.replace("*", "\\*")
    return f"*{shown}* (published)"


def _bold(summary: Summary, name: str, cells: Sequence[str], theirs: bool) -> list[str]:
    return [
        f"**{cell}**" if cell and not theirs and name in summary.best(dataset) else cell
        for dataset, cell in zip(_columns(summary), cells, strict=True)
    ]


_COMPARED = "Against the best baseline, case by case"


def introduction(summary: Summary) -> list[str]:
    """Return what the figures mean, in sentences.

    Parameters
    ----------
    summary
        What is told of the cells.
    """
    better = "higher is better" if summary.main.higher_is_better else "lower is better"
    return [
        f"{summary.main.title.capitalize()} in {summary.main.unit}, {better}.",
        f"Protocol: {summary.grid.protocol}. {summary.grid.protocol_text}",
        summary.grid.training_text,
        "Mean ± standard deviation over seeds; models without a random draw run once.",
    ]


def _comparison_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    heads = ["data", "best baseline", "difference", "95 % interval", "cases", "share better", "p", "p (Holm)"]
    rows = [
        [
            each.dataset,
            each.second,
            f"{each.paired.difference:+.4f}",
            f"{each.paired.low:+.4f} to {each.paired.high:+.4f}",
            f"{each.paired.n_cases:,}",
            f"{each.paired.share:.0%}",
            standing.pvalue(each.paired.pvalue),
            standing.pvalue(each.pvalue),
        ]
        for each in summary.comparisons
    ]
    return heads, rows


def _comparison_text(summary: Summary) -> str:
    return (
        f"{summary.grid.reference} (mean over its seeds) minus the baseline that is best on the same test data, in "
        f"{summary.main.unit}. Interval: bootstrap over the test cases; p: paired t test over the test cases. They say "
        "how far another test sample could have come out otherwise, not another training run."
    )


def remarks(summary: Summary) -> dict[str, list[str]]:
    """Return what a reader must know beside the figures, by title; only what there is.

    Parameters
    ----------
    summary
        What is told of the cells.
    """
    result, grid = summary.result, summary.grid
    errors = sorted(
        {(record["dataset"], record["model"]) for record in result.complete if _is_coarse(record["metrics"])}
    )
    every = {
        "Failed": [f"{_place(record)}: {record['reason']}" for record in result.failed],
        "Skipped": [f"{name}: {reason}" for name, reason in result.skipped.items()],
        "Data": _data_remarks(summary),
        "Quadrature": [f"{', '.join(place)}: the integral is off by more than 0.1 %." for place in errors],
        "Published figures": [
            _source(each) for each in grid.published if each.figures.keys() & set(summary.datasets)
        ],
    }
    return {title: found for title, found in every.items() if found}


def _data_remarks(summary: Summary) -> list[str]:
    result, usual = summary.result, summary.grid.protocol
    found = [
        f"{name}: {text.removeprefix(usual).lstrip('; ')}."
        for name, text in result.protocols.items()
        if text != usual
    ]
    return found + [
        f"{name}: the copy that comes with the package, {'a part' if name in result.partial else 'complete'}."
        for name in sorted(result.embedded)
    ]


def _source(each: Published) -> str:
    return " ".join(filter(None, [f"{each.source}; protocol {each.protocol}.", each.text]))


def _is_coarse(metrics: dict[str, Any]) -> bool:
    return (metrics.get("integral_error") or 0.0) > 1e-3


def _place(record: dict[str, Any]) -> str:
    return f"{record['dataset']}, {record['model']}, seed {record['seed']}"


def html(summary: Summary) -> str:
    """Return one page: table, plots, statistics, failures, versions and commands; light or dark, without scripts.

    Parameters
    ----------
    summary
        What is told of the cells.
    """
    parts = [
        f"<h1>{escape(summary.grid.title)}</h1>",
        *(f"<p>{escape(each)}</p>" for each in introduction(summary)),
    ]
    parts += [_failed_html(summary), _pivot_html(summary, summary.main), *_plots(summary)]
    if summary.comparisons:
        parts += [f"<h2>{_COMPARED}</h2><p>{escape(_comparison_text(summary))}</p>"]
        parts += [table_html(*_comparison_rows(summary)), _picture(summary, "differences")]
    parts += ["<h2>Ranks</h2>", _contests_html(summary, summary.main) or f"<p>{standing.NONE}</p>"]
    parts += [
        "<h2>Further metrics</h2>",
        *(_further_html(summary, each) for each in summary.grid.metrics[1:]),
    ]
    for title, found in remarks(summary).items():
        items = "".join(f"<li>{escape(line)}</li>" for line in found)
        parts.append(f'<h2 id="{title.lower().replace(" ", "-")}">{title}</h2><ul>{items}</ul>')
    parts += [_runs_html(summary), _versions_html(summary)]
    return page_html(summary.grid.title, parts)


def _contests_html(summary: Summary, metric: Metric) -> str:
    parts = []
    for place, each in enumerate(summary.contests_by(metric)):
        parts += [f"<p>{escape(standing.text(summary.grid, each))}</p>"]
        parts += [table_html(*standing.rows(summary.grid, each))]
        if each.is_tested:
            parts.append(_drawn(partial(_ranks_drawn, found=each, name=f"{metric.name}{place}")))
            parts.append(f"<p>{escape(standing.groups(each))}</p>")
    return "\n".join(parts)


def _ranks_drawn(pictures: ModuleType, found: Contest, name: str) -> str:
    return str(pictures.ranks(found, name))


def _further_html(summary: Summary, metric: Metric) -> str:
    better = "higher" if metric.higher_is_better else "lower"
    title = escape(f"{metric.title} ({metric.unit}, {better} is better)")
    told = f"<p>Protocol: {escape(metric.protocol)}.</p>" if metric.protocol else ""
    tables = f"{_pivot_html(summary, metric)}{_contests_html(summary, metric)}"
    return f"<details><summary>{title}</summary>{told}{tables}</details>"


def _failed_html(summary: Summary) -> str:
    n_failed = len(summary.result.failed)
    if not n_failed:
        return ""
    what = "1 cell failed and is" if n_failed == 1 else f"{n_failed} cells failed and are"
    return f'<p class="bad">{what} not in the figures: <a href="#failed">reasons</a>.</p>'


def _pivot_html(summary: Summary, metric: Metric) -> str:
    pivot = _pivot(summary, metric)
    heads = [f"<th>{escape(each)}</th>" for each in [metric.title, *_columns(summary)]]
    lines = []
    for name, theirs, cells in pivot:
        label = f"{escape(name)} <span class=small>published</span>" if theirs else escape(name)
        filled = [
            _cell_html(summary, dataset, name, cell, theirs, metric)
            for dataset, cell in zip(_columns(summary), cells, strict=True)
        ]
        tag = "th" if _is_long(summary) else "td"
        lines.append([f"<{tag}>{label}</{tag}>", *filled])
    if _is_long(summary):
        heads, *lines = map(list, zip(heads, *lines, strict=True))
        rows = [
            f"<tr>{''.join(line).replace('<th>', '<td>').replace('</th>', '</td>')}</tr>" for line in lines
        ]
    else:
        n_ours = [theirs for _, theirs, _ in pivot].count(False)
        kinds = [
            "theirs" * theirs + " first" * (place == n_ours) for place, (_, theirs, _) in enumerate(pivot)
        ]
        rows = [f'<tr class="{kind}">{"".join(line)}</tr>' for kind, line in zip(kinds, lines, strict=True)]
    body = f"<tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table><thead><tr>{"".join(heads)}</tr></thead>{body}</table></div>'


def _cell_html(summary: Summary, dataset: str, model: str, text: str, theirs: bool, metric: Metric) -> str:
    shown = escape(text)
    if text == "failed":
        return '<td class="bad"><a class="bad" href="#failed">failed</a></td>'
    if not theirs and metric == summary.main and text and model in summary.best(dataset):
        shown = f"<b>{shown}</b>"
    if theirs:
        return f'<td class="theirs">{shown}</td>'
    found = summary.of(dataset, model, metric.name)
    if found is not None and found.n > 1:
        shown += f" <span class=small>n={found.n}</span>"
    if found is not None and _failures(summary, dataset, model):
        shown += f' <a class="bad" href="#failed">{_failures(summary, dataset, model)} failed</a>'
    if found is None or found.low is None:
        return f"<td>{shown}</td>"
    return f'<td title="95 % interval over seeds: {_value(found.low)} to {_value(found.high)}">{shown}</td>'


def _plots(summary: Summary) -> list[str]:
    if not summary.spreads:
        return ["<p>No cell is complete.</p>"]
    return ["<h2>Figures by data set</h2>", _picture(summary, "values")]


def _picture(summary: Summary, name: str) -> str:
    return _drawn(lambda pictures: getattr(pictures, name)(summary))


def _drawn(draw: Callable[[ModuleType], str]) -> str:
    from seqattn.reproduce import pictures

    try:
        return f"<figure>{draw(pictures)}</figure>"
    except MissingDependencyError as error:
        return f'<p class="pale">No plot. {escape(str(error))}</p>'


def _runs_html(summary: Summary) -> str:
    rows = [
        [
            record["dataset"],
            record["model"],
            str(record["seed"]),
            _value(record["metrics"].get(summary.main.name)) if record["status"] == "complete" else "failed",
            f"{record['seconds']:.1f}" if "seconds" in record else "",
            f"{record['best_epoch']} of {record['epochs']}" if record.get("best_epoch") else "",
            record["ended"],
            record["command"],
        ]
        for record in [*summary.result.complete, *summary.result.failed]
    ]
    heads = ["data", "model", "seed", summary.main.title, "seconds", "best epoch", "ended", "command"]
    table = table_html(heads, rows, "text")
    return f"<h2>Runs</h2><details><summary>{len(rows)} cells with seconds and commands</summary>{table}</details>"


def _versions_html(summary: Summary) -> str:
    found: dict[str, list[str]] = {}
    for record in [*summary.result.complete, *summary.result.failed]:
        for name, version in record["versions"].items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    text = ", ".join(f"{name} {' and '.join(every)}" for name, every in found.items())
    return f"<h2>Versions</h2><p>{escape(text)}</p>"
