"""Lists of all users in one Parquet file, written while they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqattn.data.interactions import Interactions
from seqattn.data.table import write_frames
from seqattn.errors import ParameterError
from seqattn.recommend.lists import list_table
from seqattn.recommend.ranking import Scorer, check_size, top_items

__all__ = ["export_lists"]

_LONGEST = np.iinfo(np.int16).max


def export_lists(
    path: Path,
    scorer: Scorer,
    history: Interactions,
    users: NDArray[np.int64],
    k: int,
    exclude_seen: bool,
    exclude: NDArray[np.int64],
    user_batch: int,
    about: Mapping[str, str],
) -> Path:
    """Write the best items of users to a Parquet file, a row group per batch of users.

    Parameters
    ----------
    path
        File that ends in .parquet.
    scorer
        What scores the items.
    history
        All users with their rows.
    users
        Codes of the users wanted.
    k
        Length of the lists, at most 32,767.
    exclude_seen
        Whether items of the history are left out.
    exclude
        Codes of items that nobody gets.
    user_batch
        Users per row group.
    about
        Further metadata of the schema.

    Returns
    -------
    The path.

    Raises
    ------
    ParameterError
        The file has another ending, or a size is not allowed.
    """
    if path.suffix.lower() != ".parquet":
        raise ParameterError(f"{str(path)!r} ends in {path.suffix!r}. Lists are exported to .parquet.")
    for name, size in (("k", k), ("user_batch", user_batch)):
        check_size(name, size)
    if k > _LONGEST:
        raise ParameterError(f"k={k!r} is more than {_LONGEST:,}. Give a smaller one.")
    until = (
        ""
        if history.times is None or not history.n_rows
        else str(history.clock.series([history.times.max()])[0])
    )
    metadata = {**about, "k": str(k), "exclude_seen": str(exclude_seen).lower(), "training_until": until}
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = _frames(scorer, history, users, k, exclude_seen, exclude, user_batch)
    write_frames(path, frames, metadata=metadata, group_rows=user_batch * k)
    return path


def _frames(
    scorer: Scorer,
    history: Interactions,
    users: NDArray[np.int64],
    k: int,
    exclude_seen: bool,
    exclude: NDArray[np.int64],
    user_batch: int,
) -> Iterator[pl.DataFrame]:
    for begin in range(0, max(len(users), 1), user_batch):
        part = history.select(users[begin : begin + user_batch])
        items, scores = top_items(scorer, part, k, exclude_seen=exclude_seen, exclude=exclude)
        table = _plain(list_table(part.user_ids, history.item_ids, items, scores))
        counts: Any = (items >= 0).sum(axis=1)
        flag = pl.Series("fallback", np.repeat(part.lengths == 0, counts))
        yield table.select(
            "user_id", pl.col("rank").cast(pl.Int16), "item_id", pl.col("score").cast(pl.Float32), flag
        )


def _plain(table: pl.DataFrame) -> pl.DataFrame:
    """Write ids that only Python can hold, such as tuples, as text."""
    odd = [name for name in ("user_id", "item_id") if table.schema[name] == pl.Object]
    texts = [pl.Series(name, [str(key) for key in table[name].to_list()], dtype=pl.String) for name in odd]
    return table.with_columns(texts)
