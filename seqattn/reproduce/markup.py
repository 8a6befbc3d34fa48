"""Pages and tables as text: Markdown, and HTML that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["page_html", "table_html", "table_md"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #ffffff; --soft: #f2f4f7; --line: #d4d9e0; --pale: #5b6470;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --paper: #16191d; --soft: #20252b; --line: #3a414a; --pale: #9aa4b0; --bad: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p, li { max-width: 52rem; } .pale { color: var(--pale); } .bad { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { background: var(--soft); } th:first-child, td:first-child, .text td, .text th { text-align: left; }
tr.theirs td, td.theirs { color: var(--pale); font-style: italic; } tr.first td { border-top: 2px solid var(--line); }
.small { font-size: .8em; color: var(--pale); } code { font-size: .85em; white-space: pre-wrap; }
.text td { white-space: normal; vertical-align: top; } summary { cursor: pointer; } a { color: inherit; }
figure { margin: 1rem 0; overflow-x: auto; } svg { height: auto; min-width: 42rem; } svg text { fill: currentColor; }
"""


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head><body>
"""
_FOOT = "\n</body></html>\n"


def page_html(title: str, parts: Iterable[str]) -> str:
    """Return one page, light or dark, without scripts.

    Parameters
    ----------
    title
        Title of the window.
    parts
        The body, piece by piece; empty ones are left out.
    """
    return _HEAD.format(title=escape(title), style=_STYLE) + "\n".join(filter(None, parts)) + _FOOT


def table_md(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown.

    Parameters
    ----------
    heads
        Titles of the columns.
    rows
        Cells by row; a bar in one becomes a slash.

    Examples
    --------
    >>> print(table_md(["a", "b"], [["1", "x|y"]]))
    | a | b |
    | --- | --- |
    | 1 | x/y |
    """
    every = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in every)


def table_html(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table as HTML.

    Parameters
    ----------
    heads
        Titles of the columns.
    rows
        Cells by row.
    kind
        Class of the table; ``"text"`` wraps what is long.
    """
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
