"""Reading a dataset through `datasets.load_dataset`: from the hub, its cache, or a folder in the hub's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import httpx

from common.data.config import HubSource
from common.data.tables import Table, from_arrow
from common.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


def read_hub(origin: HubSource, split: str, wanted: Sequence[str], class_names: Sequence[str] = ()) -> Table:
    """The wanted columns of one split.

    Args:
        origin: which dataset.
        split: the hub's name for the split, slices allowed (``train[:10%]``).
        wanted: columns.
        class_names: the task's classes. A column of the dataset that knows its own class names gives
            names instead of ids when they are the same set, so a different id order does no harm.

    Raises:
        DataError: the dataset cannot be had (what was tried, what to do), or lacks a column.
    """
    source = f"hub dataset {origin.hub}" + (f" ({origin.config})" if origin.config else "") + f", split {split}"
    dataset = _load(origin, split, source)
    table: pa.Table = dataset.with_format("arrow")[:]
    found = from_arrow(table, wanted, source)
    columns = dict(found.columns)
    for name in wanted:
        names = getattr(dataset.features.get(name), "names", None)
        if names and set(names) == set(class_names):
            columns[name] = [names[i] if isinstance(i, int) and 0 <= i < len(names) else i for i in columns[name]]
    return Table(columns, source)


def _load(origin: HubSource, split: str, source: str) -> Dataset:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(origin.hub, origin.config, split=split, revision=origin.revision)
    except (OSError, ValueError, RuntimeError, ImportError, httpx.HTTPError, DatasetsError) as error:
        arguments = f"{origin.hub!r}, {origin.config!r}, split={split!r}, revision={origin.revision!r}"
        raise DataError(
            f"{source}: cannot be loaded. Tried datasets.load_dataset({arguments}): {type(error).__name__}: {error}. "
            "Check the name, the config and the split; without a network, load it once where there is one and copy the "
            "datasets cache, or give local files (`data: {train: PATH, validation: PATH}`, or --data on the client)"
        ) from error
