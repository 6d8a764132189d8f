"""Conversion of rows of `distributions` to series."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.archive.series_rows import SeriesKey
from tensormeter.importers.registry import SourceError
from tensormeter.otlp.batch import Buckets, ExponentialHistogram, Histogram, Series, Summary

__all__ = ["distribution_series"]

Row = Mapping[str, Any]


def distribution_series(key: SeriesKey, rows: Sequence[Row], description: str) -> Iterator[Series]:
    """Yield the distributions of one series. Those with equal bounds or quantiles are in the same object.

    Args:
        key: Identity of the series.
        rows: Rows in order of time, as mappings from columns to Python values, but with times as integers.
        description: Description of the metric.

    Raises:
        SourceError: The kind is unknown, or numbers are missing or out of range.
    """
    fields = key.fields(description)
    try:
        for _, group in groupby(rows, _shape):
            yield _series(key, [*group], fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise SourceError(f"metric {key.metric!r}: invalid distribution ({error})") from None


def _shape(row: Row) -> tuple[Any, ...]:
    quantiles = tuple(pair["quantile"] for pair in row["quantiles"] or ())
    return tuple(row["bounds"] or ()), len(row["counts"] or ()), quantiles


def _series(key: SeriesKey, rows: Sequence[Row], fields: dict[str, Any]) -> Series:
    times, starts = (np.array([row[name] or 0 for row in rows], np.uint64) for name in ("time", "start_time"))
    counts = np.array([row["count"] for row in rows], np.uint64)
    if key.kind == "summary":
        pairs = [row["quantiles"] or [] for row in rows]
        quantiles = np.array([pair["quantile"] for pair in pairs[0]], np.float64)
        values = np.array([[pair["value"] for pair in of_row] for of_row in pairs], np.float64)
        return Summary(key.metric, times, starts, counts, _floats(rows, "sum"), quantiles, values, **fields)
    statistics = times, starts, counts, _floats(rows, "sum"), _floats(rows, "min"), _floats(rows, "max")
    if key.kind == "histogram":
        bounds = np.array(rows[0]["bounds"] or [], np.float64)
        buckets = np.array([row["counts"] or [] for row in rows], np.uint64)
        return Histogram(key.metric, *statistics, bounds, buckets, temporality=key.period(), **fields)
    if key.kind == "exponential_histogram":
        positive, negative = (
            Buckets(
                np.array([row[f"{side}_offset"] or 0 for row in rows], np.int64),
                [np.array(row[f"{side}_counts"] or [], np.uint64) for row in rows],
            )
            for side in ("positive", "negative")
        )
        return ExponentialHistogram(
            key.metric,
            *statistics,
            scales=np.array([row["scale"] for row in rows], np.int64),
            zero_counts=np.array([row["zero_count"] or 0 for row in rows], np.uint64),
            zero_thresholds=np.array([row["zero_threshold"] or 0.0 for row in rows], np.float64),
            positive=positive,
            negative=negative,
            temporality=key.period(),
            **fields,
        )
    raise SourceError(f"metric {key.metric!r}: expected a kind of distribution, got {key.kind!r}")


def _floats(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)
