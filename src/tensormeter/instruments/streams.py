"""Lookup of the streams for an instrument and an attribute set. Streams are interned, and their number is limited."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from tensormeter.instruments.attributes import OVERFLOW, AttributeSet, clean_attributes, equals_by_content
from tensormeter.instruments.registry import LOCK, warn_once
from tensormeter.instruments.views import InstrumentIdentity, Template, Views
from tensormeter.record.dynamo import break_graph, skip_own_files
from tensormeter.record.rows.stream_writer import MeasurementRecorder, StreamWriter
from tensormeter.ring.layout import Stream

__all__ = ["Binder", "Bound", "StreamGroup", "Streams"]

_CACHED: Final = 4
"""Maximum number of attribute sets in an instrument's cache, as a multiple of the cardinality limit."""

_EXACT: Final = frozenset({str})
"""Types whose values are never equal to a value of another type. By contrast, True, 1 and 1.0 are equal dictionary keys."""


class StreamGroup:
    """A group of streams that all receive the same measurements.

    It takes the place of a `StreamWriter` if views define no stream or several streams for an attribute set.
    """

    __slots__ = ("name", "streams")

    def __init__(self, streams: tuple[StreamWriter, ...]) -> None:
        self.name = ""
        self.streams = streams

    def write_float(self, values: Mapping[str, float], step: int) -> None:
        for value in values.values():
            for stream in self.streams:
                stream.write_float({stream.name: value}, step)

    def write_int(self, values: Mapping[str, int], step: int) -> None:
        for value in values.values():
            for stream in self.streams:
                stream.write_int({stream.name: value}, step)

    def record(self, value: Any) -> tuple[memoryview, int] | None:
        place = None
        for stream in self.streams:
            place = stream.record(value) or place
        return place


Bound = StreamWriter | StreamGroup


class Streams:
    """All streams of a meter provider."""

    def __init__(self, views: Views, find: Callable[[], MeasurementRecorder | None], limit: Callable[[], int]) -> None:
        """Create an empty set of streams.

        Args:
            views: The user's views.
            find: Function that returns this process's recorder, or None if measurements are not recorded.
            limit: Function that returns the cardinality limit: the maximum number of attribute sets per instrument and template.
        """
        self.views = views
        self.find = find
        self.limit = limit
        self._writers: dict[tuple[InstrumentIdentity, Template], dict[str, StreamWriter]] = {}

    def writer(self, instrument: InstrumentIdentity, template: Template, attributes: AttributeSet) -> StreamWriter:
        """Return the stream for an attribute set, or the overflow stream at the limit. The caller must hold `LOCK`."""
        writers = self._writers.setdefault((instrument, template), {})
        key = json.dumps(attributes)
        if key not in writers and len(writers) >= self.limit():
            warn_once(
                (Streams, instrument),
                "%r has more than %d attribute sets; recording further ones as otel.metric.overflow (use fewer, or "
                "raise "
                "TENSORMETER_CARDINALITY_LIMIT)",
                instrument.name,
                self.limit(),
            )
            attributes = OVERFLOW
            key = json.dumps(attributes)
        if key not in writers:
            scope = instrument.scope
            stream = Stream(
                template.name,
                template.kind,
                template.unit,
                template.description,
                attributes,
                (scope.name, scope.version, scope.schema_url, scope.attributes),
                template.bounds,
                template.record_min_max,
            )
            minimum = 0.0 if instrument.kind == "counter" else -math.inf
            writers[key] = StreamWriter(stream, self.find, finite=template.kind != "gauge", minimum=minimum)
        return writers[key]

    def reset(self) -> None:
        """Reset all streams, so that each looks up the recorder again on its next measurement."""
        with LOCK:
            for writers in self._writers.values():
                for writer in writers.values():
                    writer.reset()


class Binder:
    """Lookup of the streams for an instrument's measurements, by their attributes.

    Attributes:
        exact: Streams by attribute items, for attributes whose values are all `str`. The fast path uses this dictionary.
    """

    def __init__(self, instrument: InstrumentIdentity, streams: Streams) -> None:
        self.instrument = instrument
        self._streams = streams
        self._out_of_graphs = skip_own_files()
        self.exact: dict[tuple[tuple[str, Any], ...], Bound] = {}
        self._typed: dict[tuple[tuple[tuple[str, Any], ...], tuple[type, ...]], Bound] = {}
        self._templates: dict[frozenset[str], list[tuple[Template, frozenset[str]]]] = {}

    def bind(self, attributes: Any) -> Bound:
        """Return the streams for an attribute set. Never raises."""
        try:
            items = tuple(attributes.items()) if attributes else ()
            # Pass a list, because `tuple` would resize the tuple for a generator, and the garbage collector would count the
            # resized tuple as another object.
            types = tuple([type(value) for value in attributes.values()]) if attributes else ()
            bound = self._typed.get((items, types))
            if bound is not None:
                return bound
            cachable = all(type(key) is str for key in attributes or ()) and all(map(equals_by_content, types))
        except Exception:  # not a mapping, unhashable values, or an exception in the values' own code
            cachable = False
        if not self._out_of_graphs:
            self._out_of_graphs = skip_own_files()
        try:
            bound = self._bind(clean_attributes(attributes))
        except Exception as error:  # raised by the mapping's own code
            warn_once(
                (Binder, self.instrument), "dropped attributes of %r: %s", self.instrument.name, error, error=error
            )
            bound = self._bind(())
        if cachable and len(self._typed) < _CACHED * self._streams.limit():
            self._typed[items, types] = bound
            if _EXACT.issuperset(types):
                self.exact[items] = bound
        return bound

    def _bind(self, attributes: AttributeSet) -> Bound:
        with LOCK:
            limit = self._streams.limit()  # this starts a run if there is none
            keys = frozenset(key for key, _ in attributes)
            templates = self._templates.get(keys)
            if templates is None:
                templates = self._streams.views.resolve(self.instrument, keys)
                if len(self._templates) < limit:
                    self._templates[keys] = templates
            streams = tuple(
                # If two views define the same stream, each measurement is counted only once.
                dict.fromkeys(
                    self._streams.writer(
                        self.instrument, template, tuple(pair for pair in attributes if pair[0] in kept)
                    )
                    for template, kept in templates
                )
            )
        return streams[0] if len(streams) == 1 else StreamGroup(streams)


break_graph(Binder.bind)
