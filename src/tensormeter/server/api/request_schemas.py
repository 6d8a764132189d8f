"""Classes of request bodies and parameters.

The server validates requests against these classes. Together with `schemas`, they are the source of `openapi.json` and
the page's types.
"""

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from tensormeter.conventions.attempt_number import MAX_ATTEMPT
from tensormeter.server.store import MAX_READ_POINTS

MAX_RUNS: Final = 200
"""Maximum number of runs in one request."""

MAX_METRICS: Final = 200
MAX_FULL_METRICS: Final = 1000
"""Maximum number of metrics in a request for every point. Metrics with few points need many names per request."""

MAX_POINTS: Final = 100_000
MAX_DISTRIBUTIONS: Final = 20_000
MAX_EVENTS: Final = 10_000
MAX_LINES: Final = 10_000
MAX_LINE: Final = 4 << 20
"""Maximum number of characters in a log line; the server accepts no longer ones."""

MAX_PAGE: Final = 1000
MAX_NAMES: Final = 10_000
"""Maximum number of names on a page of metrics, sections or fields."""

MAX_SEARCH: Final = 1024
"""Maximum number of characters of a prefix or a search."""

MIN_INTEGER: Final = -(1 << 63)
MAX_INTEGER: Final = (1 << 63) - 1
"""Highest integer that a store can search for; `MIN_INTEGER` is the lowest."""

MAX_NUMBER: Final = 1e30

_MAX_TEXT: Final = 65_536

Int64 = Annotated[int, Meta(ge=MIN_INTEGER, le=MAX_INTEGER)]
Coordinate = Annotated[float, Meta(gt=-MAX_NUMBER, lt=MAX_NUMBER)]
Count = Annotated[int, Meta(ge=0, le=MAX_ATTEMPT)]
AttemptNumber = Annotated[int, Meta(ge=1, le=MAX_ATTEMPT)]
AttemptChoice = Annotated[int, Meta(ge=1, le=999_999_999)] | Literal["all"]

_AXIS: Final = Meta(
    description="Axis of the points: `step`, `time`, `relative` or `metric:NAME`.",
    extra_json_schema={"pattern": "^(step|time|relative|metric:.+)$"},
)
_START: Final = Meta(description="Lowest x of the points, in units of the axis.")
_STOP: Final = Meta(description="Upper bound of x, in units of the axis; the bound itself is excluded.")
_FIRST_TIME: Final = Meta(description="Earliest time, in nanoseconds since the Unix epoch.")
_LAST_TIME: Final = Meta(
    description="Upper bound of the time, in nanoseconds since the Unix epoch; the bound itself is excluded."
)
_ORDER: Final = Meta(description="Order of the points, and unit of `start` and `stop`.")
_FIRST: Final = Meta(description="Lowest step, or earliest time in nanoseconds.")
_LAST: Final = Meta(description="Upper bound of the step, or of the time in nanoseconds; the bound itself is excluded.")
_READ: Final = Meta(ge=1, le=MAX_READ_POINTS, description="Maximum number of points to read.")
_ATTEMPT: Final = Meta(
    description="Number of the attempt, or `all`. Default: all attempts, without points that a later one repeats."
)
_SECTION: Final = Meta(
    max_length=MAX_SEARCH,
    description="Section whose sections are returned, with a slash at its end; empty for the top level.",
    extra_json_schema={"pattern": "^(.*/)?$"},
)
_PREFIX: Final = Meta(max_length=MAX_SEARCH, description="Beginning of the names.")
_SEARCH: Final = Meta(
    max_length=MAX_SEARCH,
    description="Regular expression that the names contain, or text if it is not a valid one; case is ignored.",
)
_SYSTEM: Final = Meta(
    description="True for metrics that sensors and libraries record, such as `system.*`; false for the others."
    " Default: all metrics."
)
_NAMES: Final = Meta(ge=1, le=MAX_NAMES, description="Maximum number of names.")
_NEXT: Final = Meta(description="Value of `next` of the previous page.")
_DIGITS: Final = f"([0-9]{{1,18}}|[1-8][0-9]{{18}}|9[01][0-9]{{17}}|{MAX_INTEGER})"
"""Pattern of integers up to `MAX_INTEGER`, with a gap below it."""

_PLACE: Final = {"pattern": f"^{_DIGITS}-{_DIGITS}$"}
_PROJECT: Final = Meta(description="Project of the run.")
_PROJECTS: Final = Meta(description="Project of the runs that are given without a project.")
_PROCESS: Final = Meta(description="ID of the process to read.")
_ATTRIBUTES: Final = Meta(description="Attributes that the series must have.")
_SCOPE: Final = Meta(description="Name of the instrumentation scope.")
_UNIT: Final = Meta(description="Unit of the metric.")
_KIND: Final = Meta(description="Kind of the metric.")
_TEMPORALITY: Final = Meta(description="Temporality of the metric.")


# Bodies


class Query(Struct, kw_only=True):
    """A query for sampled series of runs."""

    runs: Annotated[
        list[str],
        Meta(min_length=1, description="Runs, each as `id` or `project/id`.", extra_json_schema={"maxItems": MAX_RUNS}),
    ]
    metrics: Annotated[
        list[str],
        Meta(min_length=1, description="Names of the metrics.", extra_json_schema={"maxItems": MAX_METRICS}),
    ]
    project: Annotated[str | None, _PROJECTS] = None
    x: Annotated[str | None, _AXIS] = "step"
    start: Annotated[Coordinate | None, _START] = None
    stop: Annotated[Coordinate | None, _STOP] = None
    max_points: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_POINTS,
            description="Maximum number of points per series; 0 disables sampling.",
            extra={"expected": f"0 (all) or an integer from 4 to {MAX_POINTS}"},
            extra_json_schema={"anyOf": [{"const": 0}, {"minimum": 4}]},
        ),
    ] = 1000
    process: Annotated[str | None, Meta(description="ID of the process to read, or `all`.")] = None
    attributes: Annotated[dict[str, Any] | None, _ATTRIBUTES] = None
    after: Annotated[
        str | None, Meta(description="Cursor of an earlier result; only points that arrived after it are returned.")
    ] = None
    attempt: Annotated[AttemptChoice | None, _ATTEMPT] = None
    scope: Annotated[str | None, _SCOPE] = None
    unit: Annotated[str | None, _UNIT] = None
    kind: Annotated[str | None, _KIND] = None
    temporality: Annotated[str | None, _TEMPORALITY] = None
    parents: Annotated[
        bool,
        Meta(description="Whether to add the series of the parents of forked runs, up to the fork. Requires x = step."),
    ] = False


class SeriesQuery(Struct, kw_only=True):
    """A query for every point of several metrics of a run."""

    metrics: Annotated[
        list[str],
        Meta(min_length=1, description="Names of the metrics.", extra_json_schema={"maxItems": MAX_FULL_METRICS}),
    ]
    x: Annotated[Literal["step", "time"], _ORDER] = "step"
    process: Annotated[str | None, _PROCESS] = None
    start: Annotated[Int64 | None, _FIRST] = None
    stop: Annotated[Int64 | None, _LAST] = None
    limit: Annotated[int, _READ] = MAX_READ_POINTS
    attempt: Annotated[AttemptChoice | None, _ATTEMPT] = None


class RunChanges(Struct, kw_only=True):
    """Changes to a run by its users. A field that is null or missing stays as it is."""

    name: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    tags: Annotated[list[Annotated[str, Meta(min_length=1, max_length=128)]], Meta(max_length=100)] | None = None
    notes: Annotated[str, Meta(max_length=_MAX_TEXT)] | None = None
    group: Annotated[str, Meta(max_length=_MAX_TEXT)] | None = None
    job_type: Annotated[str, Meta(max_length=_MAX_TEXT)] | None = None
    archived: bool | None = None


# Parameters


class RunParameters(Struct, kw_only=True):
    project: Annotated[str | None, _PROJECT] = None


class RunDetailsParameters(RunParameters, kw_only=True):
    fields: Annotated[
        str | None,
        Meta(
            description="Comma-separated parts to return: `config`, `config.KEY`, `summary` or `summary.METRIC`."
            " Default: all."
        ),
    ] = None


class RunsParameters(Struct, kw_only=True):
    project: Annotated[str | None, Meta(description="Project to list. Default: all.")] = None
    filter: Annotated[str, Meta(description="Condition that selects runs; see docs/api.md.")] = ""
    sort: Annotated[
        str, Meta(description="Comma-separated fields to sort by; a leading `-` means descending order.")
    ] = ""
    fields: Annotated[
        str | None,
        Meta(
            description="Comma-separated parts to return: `config`, `config.KEY`, `summary` or `summary.METRIC`."
            " Default: `config`."
        ),
    ] = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE, description="Maximum number of runs.")] = 100
    offset: Annotated[int, Meta(ge=0, le=1 << 62, description="Number of runs to skip.")] = 0


class AttemptParameters(RunParameters, kw_only=True):
    process: Annotated[str, Meta(max_length=1024, description="ID of the process.")] = ""
    launch: Annotated[str, Meta(max_length=1024, description="ID of the launch that started the process.")] = ""
    rank: Annotated[Count | None, Meta(description="Rank of the process.")] = None
    world_size: Annotated[Count | None, Meta(description="Number of ranks.")] = None
    least: Annotated[AttemptNumber, Meta(description="Lowest number that the attempt can have.")] = 1
    number: Annotated[AttemptNumber | None, Meta(description="Number of the attempt, if it is known.")] = None
    resume: Annotated[bool, Meta(description="Whether the process resumes an earlier attempt.")] = False


class AttemptsParameters(RunParameters, kw_only=True):
    system: Annotated[bool | None, _SYSTEM] = None
    after: Annotated[str | None, _NEXT] = None


_RUN_LIST: Final = Meta(
    description=f"1 to {MAX_RUNS} comma-separated runs, each as `id` or `project/id`.",
    extra={"expected": f"1 to {MAX_RUNS} comma-separated IDs"},
    extra_json_schema={"pattern": f"^[^,]+(,[^,]+){{0,{MAX_RUNS - 1}}}$"},
)


class RunListParameters(Struct, kw_only=True):
    runs: Annotated[str, _RUN_LIST]
    project: Annotated[str | None, _PROJECTS] = None


class MetricListParameters(Struct, kw_only=True):
    prefix: Annotated[str, _PREFIX] = ""
    search: Annotated[str, _SEARCH] = ""
    kind: Annotated[
        Literal["number", "distribution"] | None, Meta(description="Kind of the metrics. Default: all kinds.")
    ] = None
    system: Annotated[bool | None, _SYSTEM] = None
    direct: Annotated[bool, Meta(description="Whether to omit names with a slash after the prefix.")] = False
    limit: Annotated[int, _NAMES] = 1000
    after: Annotated[str | None, _NEXT] = None


class MetricsParameters(MetricListParameters, kw_only=True):
    project: Annotated[str | None, _PROJECT] = None


class MetricsOfRunsParameters(MetricListParameters, kw_only=True):
    runs: Annotated[str, _RUN_LIST]
    project: Annotated[str | None, _PROJECTS] = None


class SectionsParameters(MetricsParameters, kw_only=True):
    prefix: Annotated[str, _SECTION] = ""


class SectionsOfRunsParameters(MetricsOfRunsParameters, kw_only=True):
    prefix: Annotated[str, _SECTION] = ""


class FieldsParameters(Struct, kw_only=True):
    project: Annotated[str | None, Meta(description="Project of the fields. Default: all.")] = None
    prefix: Annotated[str, _PREFIX] = ""
    search: Annotated[str, _SEARCH] = ""
    kind: Annotated[Literal["config", "summary"] | None, Meta(description="Group of the fields. Default: both.")] = None
    limit: Annotated[int, _NAMES] = 1000
    after: Annotated[str | None, _NEXT] = None


class StreamParameters(RunListParameters, kw_only=True):
    after: Annotated[str | None, Meta(description="Cursor to continue from. Default: now.")] = None


class EventsParameters(RunParameters, kw_only=True):
    name: Annotated[str | None, Meta(description="Name of the events; a trailing `*` matches any ending.")] = None
    key: Annotated[str | None, Meta(description="Key that the events were logged under.")] = None
    start: Annotated[Int64 | None, _FIRST_TIME] = None
    stop: Annotated[Int64 | None, _LAST_TIME] = None
    limit: Annotated[int, Meta(ge=1, le=MAX_EVENTS, description="Maximum number of events.")] = 1000
    before: Annotated[
        str | None,
        Meta(description="Value of `next` of the previous page.", extra_json_schema=_PLACE),
    ] = None
    max_body: Annotated[
        Int64 | None, Meta(description="Maximum length of a body in characters; longer bodies are replaced by null.")
    ] = None


class LogsParameters(RunParameters, kw_only=True):
    before: Annotated[
        str | None,
        Meta(
            description="Position after the lines: `older` of a page, or the `id` of a line.", extra_json_schema=_PLACE
        ),
    ] = None
    after: Annotated[
        str | None,
        Meta(
            description="Position before the lines: `newer` of a page, or the `id` of a line. The oldest lines after it"
            " are returned; without it, the newest lines.",
            extra_json_schema=_PLACE,
        ),
    ] = None
    since: Annotated[
        str | None,
        Meta(
            description="Value of `cursor` of a page; only lines that arrived after it are returned, and `before` and"
            " `after` are ignored."
        ),
    ] = None
    limit: Annotated[int, Meta(ge=1, le=MAX_LINES, description="Maximum number of lines.")] = 1000
    rank: Annotated[Count | None, Meta(description="Rank of the process.")] = None
    process: Annotated[str | None, _PROCESS] = None
    stream: Annotated[Literal["stdout", "stderr"] | None, Meta(description="Console stream. Default: all lines.")] = (
        None
    )
    severity: Annotated[int, Meta(ge=0, le=24, description="Lowest severity number, such as 13 for warnings.")] = 0
    search: Annotated[
        str,
        Meta(max_length=MAX_SEARCH, description="Text that the lines contain. The case of ASCII letters is ignored."),
    ] = ""
    start: Annotated[Int64 | None, _FIRST_TIME] = None
    stop: Annotated[Int64 | None, _LAST_TIME] = None
    max_text: Annotated[
        int, Meta(ge=1, le=MAX_LINE, description="Maximum length of a text in characters; longer texts are truncated.")
    ] = 8192


class _MetricParameters(RunParameters, kw_only=True):
    metric: Annotated[
        str,
        Meta(
            min_length=1,
            description="Name of the metric.",
            extra={"expected": "the name of a metric; /metrics lists them"},
        ),
    ]
    attempt: Annotated[AttemptChoice | None, _ATTEMPT] = None


class SeriesParameters(_MetricParameters, kw_only=True):
    x: Annotated[Literal["step", "time"], _ORDER] = "step"
    process: Annotated[str | None, _PROCESS] = None
    start: Annotated[Int64 | None, _FIRST] = None
    stop: Annotated[Int64 | None, _LAST] = None
    limit: Annotated[int, _READ] = MAX_READ_POINTS


class DistributionsParameters(_MetricParameters, kw_only=True):
    process: Annotated[str | None, _PROCESS] = None
    start: Annotated[Int64 | None, _FIRST_TIME] = None
    stop: Annotated[Int64 | None, _LAST_TIME] = None
    limit: Annotated[int, Meta(ge=1, le=MAX_DISTRIBUTIONS, description="Maximum number of distributions to read.")] = (
        2000
    )
    exact: Annotated[
        bool, Meta(description="Whether to return buckets as they were sent, and the start of each period.")
    ] = False


class _VariantParameters(_MetricParameters, kw_only=True):
    x: Annotated[str, _AXIS] = "step"
    start: Annotated[Coordinate | None, _START] = None
    stop: Annotated[Coordinate | None, _STOP] = None
    scope: Annotated[str | None, _SCOPE] = None
    unit: Annotated[str | None, _UNIT] = None
    kind: Annotated[str | None, _KIND] = None
    temporality: Annotated[str | None, _TEMPORALITY] = None


class RanksParameters(_VariantParameters, kw_only=True):
    max_points: Annotated[int, Meta(ge=1, le=MAX_POINTS, description="Maximum number of x values.")] = 500


class HistogramsParameters(_VariantParameters, kw_only=True):
    process: Annotated[str | None, _PROCESS] = None
    attributes: Annotated[dict[str, Any] | None, _ATTRIBUTES] = None
    max_points: Annotated[int, Meta(ge=2, le=2000, description="Maximum number of distributions.")] = 200
