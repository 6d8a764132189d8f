"""Generator of the reference of loggable values: ``python -m tensormeter.cli.logging_reference > docs/logging.md``."""

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Final, NamedTuple

from tensormeter.conventions.limits import REPEATED_TEXT_CHARACTERS

__all__ = ["DESTINATIONS", "KINDS", "LOGGABLE", "Loggable", "page"]


class Loggable(NamedTuple):
    """A type of values that `log` accepts.

    Attributes:
        value: The values, in Markdown.
        kind: Kind of the item that they are recorded as, one of `KINDS`, "number", "distribution" or "values".
        notes: Further explanation, in Markdown.
    """

    value: str
    kind: str
    notes: str = ""


KINDS: Final = ("text", "table", "image", "images", "video", "audio", "figure", "html")
"""Kinds of media. The event of a kind is named `tensormeter.KIND`."""

LOGGABLE: Final = (
    Loggable("Python and NumPy numbers, booleans, `Decimal`, `Fraction`", "number", "integers are exact up to 64 bits"),
    Loggable(
        "tensor or array with one element (torch, NumPy, JAX), list or series with one number",
        "number",
        "CUDA tensors are copied asynchronously, in stream order",
    ),
    Loggable(
        "mapping", "values", '`{"train": {"loss": 1}}` is recorded as `train/loss`; mappings may be nested 32 times'
    ),
    Loggable("NumPy array, tensor, `array.array`, `range`, pandas or polars series of numbers", "distribution"),
    Loggable("list or tuple of numbers, or of lists of numbers with the same length", "distribution"),
    Loggable("`tensormeter.Histogram`", "distribution"),
    Loggable(
        "`str`",
        "text",
        f"a text of up to {REPEATED_TEXT_CHARACTERS} characters that is logged again without a change is stored once, with its "
        "first step, its last step and their number. If the process is killed, only the first step is known",
    ),
    Loggable("`tensormeter.Text(text, markdown=)`", "text"),
    Loggable("`tensormeter.Image(data, caption, dataformats=)`", "image", "[details](#images)"),
    Loggable("PIL image", "image"),
    Loggable(
        "Matplotlib figure, axes, or the module `pyplot`",
        "image",
        "rendered as a PNG by the log call, as `savefig` does",
    ),
    Loggable("`bytes` of a PNG, JPEG, GIF or WebP", "image"),
    Loggable(
        "uint8 array or tensor with the shape of an RGB or RGBA image of at least 8 by 8 pixels",
        "image",
        "for another array, use `Image(array)`",
    ),
    Loggable(
        "list or tuple of images, figures, or arrays of (height, width, channels)",
        "images",
        "shown as a grid; at most 256",
    ),
    Loggable(
        "array or tensor of (images, height, width, channels) or (images, channels, height, width) with 1, 3 or 4 "
        "channels and at least 8 by 8 pixels, or `Image` of one",
        "images",
        "smaller ones, such as kernels, and parameters are distributions",
    ),
    Loggable(
        "`tensormeter.Video(data, fps, caption, dataformats=)`",
        "video",
        "a path or bytes of MP4, WebM or GIF, or an array of frames: MP4 with `tensormeter[video]`, else GIF",
    ),
    Loggable("`bytes` of an MP4 or WebM", "video"),
    Loggable(
        "`tensormeter.Audio(data, sample_rate, caption)`",
        "audio",
        "a path or bytes of WAV, MP3, OGG or FLAC, or an array of samples, which becomes a WAV",
    ),
    Loggable("`bytes` of a WAV, MP3, OGG or FLAC", "audio"),
    Loggable("Plotly figure", "figure", "stored as its JSON; the page draws common traces itself"),
    Loggable(
        "`tensormeter.Html(data, caption)`", "html", "text or a file; shown without scripts, links and network access"
    ),
    Loggable("`tensormeter.Table(columns, data)`, `Table(dataframe=)`", "table", "[details](#tables)"),
    Loggable("`Table(columns, data, chart=)`", "table", "drawn as a chart, [details](#charts)"),
    Loggable("pandas or polars frame, Arrow table", "table"),
    Loggable("list of mappings, or of texts", "table"),
    Loggable(
        "list of `Video`, `Audio` or `Html` items, or of Plotly figures",
        "values",
        "recorded as `KEY/0`, `KEY/1` and so on; at most 64",
    ),
    Loggable("`None`", "nothing", "counted as `none_value`, without a warning during training"),
)

DESTINATIONS: Final = ("experiment", "otlp", "jsonl", "console", "mlflow", "tensorboard", "wandb", "prometheus", "otel")

_HEAD: Final = """\
# Loggable values

`run.log` accepts the values in this table. It never raises for what is in a value. Values that cannot be recorded are counted,
and one warning per key names what to log instead. If one value of a call cannot be recorded, the others still are.

This page is generated. To update it, run `python -m tensormeter.cli.logging_reference > docs/logging.md`.

"""

_DETAILS: Final = """
Text, images and other media are copied when the object is created (`Image(array)`) or, if you pass the value itself, by the log
call. You may change the original afterwards. A `Histogram`, and arrays that become distributions, are counted by the log call.
Log calls only copy media; the agent encodes them.

## Images

- **Sources.** Arrays, tensors, PIL images, Matplotlib figures, paths, the bytes of a PNG, JPEG, GIF or WebP, and lists of
  these. A tensor on a GPU is copied in stream order without waiting, and recorded once the copy has arrived, by a later log call
  or `finish`. In a table, pass a copy on the CPU (`image.cpu()`).
- **Order of dimensions.** `Image(array, dataformats="CHW")` states the order, as in TensorBoard: N for images, C for channels, H
  for height, W for width. Without it, arrays are read as (height, width), (height, width, channels) or, if only this is possible,
  (channels, height, width). For tensors, channels come first if both are possible.
- **Channels.** 1 (gray), 2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha). Transparency is kept.
- **Values.** uint8 and booleans stay as they are. Integers that are only 0 and 1 are a mask, and become black and white. Floats
  are read as 0 to 1 or, if their maximum is above 2, as 0 to 255. Other integers are read as 0 to 255 and, if they are uint16 with
  larger values, as 0 to 65,535. Other values are scaled so that the smallest becomes black and the largest white, with one
  warning. All images of a batch have one scale.
- **16 bits.** Gray images with 16 bits keep them. PIL images of all modes are accepted.
- **NaN.** Pixels with NaN become magenta. Infinities become black or white.

## Tables

`Table(columns, data)` takes rows of cells. `Table(dataframe=frame)` and `Table(frame)` take frames of pandas and polars, Arrow
tables, and mappings of column names to cells. `Table(data=rows)` takes a two-dimensional array, or rows that are mappings.
`table.add_row(...)`, `add_data(...)` and `add(...)` add a row.

- Cells are numbers, strings, booleans, None, and images (`Image`, PIL images, Matplotlib figures). Other objects become text.
- An index with a name becomes the first column; other indexes are left out. Missing values become None, except in columns of
  plain floats.

## Charts

`Table(columns, data, chart={...})` is drawn as a chart. The button "Table" shows the rows, and the slider selects the step, as for
other media:

```python
import tensormeter

run = tensormeter.init(project="charts")
curve = tensormeter.Table(
    ["class", "recall", "precision"],
    [["cat", 0.0, 1.0], ["cat", 0.5, 0.9], ["cat", 1.0, 0.6], ["dog", 0.0, 1.0], ["dog", 1.0, 0.8]],
    chart={"kind": "pr_curve", "x": "recall", "y": "precision", "series": "class", "title": "Validation"},
)
run.log({"validation/curve": curve}, step=100)
run.finish()
```

`kind` is one of those below. `x`, `y` and `series` are names of columns, and `title` is a text.

| kind | `x` | `y` | `series` (optional) | drawing |
|---|---|---|---|---|
| `line` | numbers, ISO 8601 dates or names | numbers; a column or a list of up to 50 columns | one line for each value | points are connected in order of `x`, and with names in order of the rows; a missing number interrupts the line |
| `scatter` | numbers, ISO 8601 dates or names | numbers; a column or a list of up to 50 columns | one color for each value | one point for each row |
| `bar` | names | numbers; a column or a list of up to 50 columns | bars next to each other | one bar for each value of `x`; rows with the same `x` are added. Bars with long names are horizontal |
| `histogram` | numbers or names | optional: the number of values that a row stands for | one histogram for each value | about 30 bins, which all series share |
| `confusion_matrix` | predicted classes | actual classes | the number of samples that a row stands for; without it, each row is one sample | a heat map, shaded by the share of the actual class |
| `pr_curve` | recall | precision | one curve for each class | with the average precision (AP), as in scikit-learn |
| `roc_curve` | false positive rate | true positive rate | one curve for each class | with the area under the curve (AUC) and the line of chance |

- The axes of lines and points are logarithmic if their values are positive, span a factor of 1,000 or more, and have a median below
  a tenth of the highest value.
- If a chart has more than 20,000 points, the page draws the lowest and the highest of each stretch. The table keeps all rows.
- An invalid chart, such as one with the name of a missing column, causes one warning per key. The table is recorded without it.
- `Client` returns the chart as `RecordedTable.chart`. `tensormeter export --media` and the destination `mlflow` write it to the
  table's JSON file. The destinations `wandb` and `tensorboard` store only the rows.

## Destinations

`tensormeter.KIND` is the name of the event, which is an OTLP log record. A destination that cannot store a kind counts such items as
refused, with one warning per kind. Numbers and distributions reach every destination ([destinations.md](destinations.md)).

"""


def page() -> str:
    """Return the page as Markdown."""
    return _HEAD + "\n".join([*_values(), ""]) + _DETAILS + "\n".join([*_destinations(), ""])


def _values() -> Iterator[str]:
    yield "| value | recorded as | notes |"
    yield "|---|---|---|"
    for value, kind, notes in LOGGABLE:
        yield f"| {value} | {kind} | {notes} |"


def _destinations() -> Iterator[str]:
    media = {name: _media_of(name) for name in DESTINATIONS}
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, forms in media.items():
        groups.setdefault(tuple(sorted(forms.items())), []).append(name)
    columns = [dict(forms) for forms in groups]
    titles = [", ".join(f"`{name}`" for name in names) for names in groups.values()]
    yield f"| kind | {' | '.join(titles)} |"
    yield f"|---|{'---|' * len(titles)}"
    for kind in KINDS:
        cells = [forms.get(kind, "no") for forms in columns]
        yield f"| {kind} | {' | '.join(cells)} |"


def _media_of(destination: str) -> dict[str, str]:
    (entry_point,) = entry_points(group="tensormeter_exporter", name=destination)
    return dict(getattr(entry_point.load(), "media", {}))


if __name__ == "__main__":
    print(page(), end="")
