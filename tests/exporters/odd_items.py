"""Every kind of item under odd keys and with odd contents, and what delivers them to one destination.

As a script: `odd_items.py DESTINATION FOLDER OPTIONS`, with options in JSON; prints the lost and the quarantined items.
"""

import gzip
import io
import json
import logging
import math
import sys
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image

from tensormeter.agent.delivery.delivery import Delivery
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Histogram, Temporality
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.media import Alert, Image, Table, Text
from tensormeter.settings import Settings

T0 = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
RESOURCE = {
    "service.name": "odd",
    "service.instance.id": "p0123456789",
    "tensormeter.run.id": "run1",
    "tensormeter.run.name": "a \x00 name\n" * 50,
}

KEYS = [
    "plain", "a/b", "a.b", "a b", "a:b", "a-b", "UPPER", "upper", "0", "None", "NaN",
    "mAP@50", "mAP#50", "mAP%50", "mAP_50", "50%", "a,b=c", "x{a=1}", "<b>", "a*b?", "~", "'", '"', "`", "$HOME", "a|b", "(a)",
    "a//b", "/lead", "lead", "trail/", "trail", "/", "//", ".", "..", "...", "../up", "up", "a/../b", "./a", "a/.", "a/ /b",
    " lead", "trail ", " ", "-a-", "--", "a\\b", "C:\\x", "..\\up",
    "_step", "_timestamp", "_runtime", "_wandb", "tensormeter/step", "config", "state", "alerts", "mlflow.runName",
    "损失", "خسارة", "הפסד", "ошибка", "é", "e\u0301", "ﬁ", "fi", "🔥", "🔥/🧊", "\u202eright to left", "\ufeffbom", "a\u200bb",
    "nul\x00", "nul", "tab\t", "line\nline", "bell\x07", "\x1b[31mred", "del\x7f", "\u2028", "\ud7ff",
    "k" * 100, "k" * 128, "k" * 129, "k" * 250, "k" * 251, "k" * 300, "k" * 1023 + "j", "k" * 1024,
    "n" * 249 + "/tail", "n" * 250 + "/tail", "x" * 300 + "/" + "y" * 300, "d/" * 511 + "e", "损" * 1024, "🔥" * 1024, "/" * 1024,
    "made/mean", "made/count", "name_1a2b3c4d", "q@_1a2b3c4d",
]  # fmt: skip
assert len(set(KEYS)) == len(KEYS)

CONTROLS = 12
"""Values of `control` and texts `control N`, between the others: each of them must arrive."""

CONFIG = {f"{key}": f"value {number}" for number, key in enumerate(KEYS)}
NESTED = {
    "twin": {"a": "value a", "": "value b"},
    "twin.a": "value c",
    "empty": {},
    "list": [1, "a", None],
    "nan": math.nan,
}


def picture(width, form="PNG", mode="RGB"):
    out = io.BytesIO()
    PIL.Image.new(mode, (width, 2), 0).save(out, form)
    return out.getvalue()


def image(key, data, form="png", width=1):
    return Image(key, data, f"image/{form}", width, 2)


def form_of(data):
    """The type that `Run.log` would see."""
    return {b"\xff\xd8": "jpeg", b"GI": "gif", b"RI": "webp"}.get(data[:2], "png")


PNG = picture(500)
GOOD_IMAGES = {
    "png": picture(901), "jpeg": picture(902, "JPEG"), "gif": picture(903, "GIF", "P"), "webp": picture(904, "WEBP"),
    "grey": picture(905, mode="L"), "alpha": picture(906, mode="RGBA"), "bits": picture(907, mode="1"),
    "palette": picture(908, mode="P"), "cmyk": picture(909, "JPEG", "CMYK"), "deep": picture(910, mode="I;16"),
}  # fmt: skip
BAD_IMAGES = {
    "broken": b"\x89PNG\r\n\x1a\nbroken", "header": PNG[:8], "cut": PNG[:-30], "half": PNG[: len(PNG) // 2],
    "jpeg cut": picture(300, "JPEG")[:200], "gif": b"GIF8", "webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ", "wave": b"RIFF\x10\x00\x00\x00WAVEfmt ",
    "text": b"plainly no picture", "empty": b"", "flipped": PNG[:40] + b"\xff\x00" + PNG[42:],
    "bomb": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\x00\x00\x00\x00\x00\x00\x00",
}  # fmt: skip
TABLES = {
    "mixed": (["text", "score"], [["a", 1], ["b", "n/a"]]),
    "missing": (["a", "b"], [[None, 1], [2, None], [None, None]]),
    "booleans": (["a"], [[True], [0], ["no"], [None], [1.5]]),
    "numbers": (["a"], [[1], [2.5], [math.nan], [math.inf], [-math.inf], [1e308], [-(1 << 63)], [(1 << 63) - 1]]),
    "no rows": (["a", "b"], []),
    "no columns": ([], []),
    "twice": (["a", "a", "a (2)"], [[1, 2, 3]]),
    "names": (["", " ", "\x00", "a|b", "损"], [[1, 2, 3, 4, 5]]),
    "texts": (["a"], [[""], ["\x00"], ["|"], ["\u202e"], ["🔥"], ["x" * 10_000]]),
    "pictures": (["a", "b"], [[1, image("", GOOD_IMAGES["png"])], ["x", None], [image("", GOOD_IMAGES["jpeg"], "jpeg"), 2]]),
}  # fmt: skip
BROKEN_CELL = (["a", "b"], [[1, image("", GOOD_IMAGES["png"])], [2, image("", BAD_IMAGES["cut"])], [3, "fine"]])
TEXTS = {
    "empty": "",
    "nul": "\x00",
    "long": "x" * 1_000_000,
    "right to left": "\u202eabc",
    "markdown": "| a | <b>",
    "line": "\r\n",
}
VALUES = {
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "large": 1.7e308, "small": 5e-324, "-0": -0.0,
    "single": 3.5e38, "int": (1 << 63) - 1, "-int": -(1 << 63),
}  # fmt: skip
STEPS = {"least": -(1 << 63), "most": (1 << 63) - 1, "negative": -5}


def gauge(name, at, *values):
    kind = np.int64 if isinstance(values[0], int) else np.float64
    return Gauge(name, np.array([at + n for n in range(len(values))], np.uint64), np.array(values, kind))


def distribution(name, at, *, bounds=(0.0, 1.0), buckets=(1, 1, 1), total=1.0, low=-1.0, high=2.0):
    return Histogram(
        name, np.array([at], np.uint64), np.array([at - 1], np.uint64), np.array([sum(buckets)], np.uint64),
        np.array([total]), np.array([low]), np.array([high]), np.array(bounds, np.float64),
        np.array([buckets], np.uint64).reshape(1, -1), temporality=Temporality.DELTA,
    )  # fmt: skip


ODD_DISTRIBUTIONS = {
    "none": {"bounds": (), "buckets": (0,), "total": 0.0, "low": math.nan, "high": math.nan},
    "one": {"bounds": (), "buckets": (1,), "total": 3.0, "low": 3.0, "high": 3.0},
    "nan": {"total": math.nan, "low": math.nan, "high": math.nan},
    "infinite": {"total": math.inf, "low": -math.inf, "high": math.inf},
    "large": {"bounds": (-1e308, 1e308), "low": -1.7e308, "high": 1.7e308},
    "many": {"bounds": tuple(map(float, range(2000))), "buckets": (1,) * 2001},
}


def metrics(*series):
    return "metrics", encode_metrics([Batch(RESOURCE, list(series))]), sum(len(line.times) for line in series)


def logs(*events):
    return "logs", encode_events(RESOURCE, list(events)), len(events)


def requests():
    """Requests with every item, and controls between them."""
    controls = iter(range(CONTROLS))

    def control():
        number = next(controls)
        at = T0 + number * SECOND
        return [gauge("control", at, number + 0.5), gauge(STEP_METRIC, at, number)]

    def media(items):
        number = next(controls)
        items = list(items)
        events = [item.event(T0 + place + 1, place + 1) for place, item in enumerate(items)]
        middle = len(events) // 2
        word = Text(f"control {number}", f"control {number}").event(T0, number)
        return logs(*events[:middle], word, *events[middle:])

    numbered = list(enumerate(KEYS))
    at = T0 + 100 * SECOND
    yield logs(
        Event(
            "tensormeter.run.start", T0, {"config": CONFIG | NESTED, "tags": KEYS, "notes": "n\x00", "group": "g" * 300}
        )
    )
    yield metrics(
        *control(), *(gauge(key, at, n + 1000.25, n + 1000.75) for n, key in numbered), gauge(STEP_METRIC, at, 1, 2)
    )
    at += SECOND
    grown = [distribution(key, at, buckets=(1, n + 10, 1), high=n + 5000.125) for n, key in numbered]
    yield metrics(*control(), *grown, distribution("made", at, buckets=(1, 5000, 1)), gauge(STEP_METRIC, at, 3))
    yield media(Text(key, f"text {n};") for n, key in numbered)
    yield media(Table(key, ["a"], [[f"table {n};"]]) for n, key in numbered)
    yield media(image(key, picture(n + 1), width=n + 1) for n, key in numbered)
    yield media(Alert(key, f"alert {n};", ("INFO", "WARN", "ERROR")[n % 3]) for n, key in numbered)
    at += SECOND
    odd = [gauge(f"value {name}", at, value) for name, value in VALUES.items()]
    odd += [distribution(f"distribution {name}", at, **shape) for name, shape in ODD_DISTRIBUTIONS.items()]
    yield metrics(*control(), *odd, gauge(STEP_METRIC, at, 4))
    for name, step in STEPS.items():
        at += SECOND
        yield metrics(gauge(f"step {name}", at, 1.0), gauge(STEP_METRIC, at, step))
    yield media(Table(f"table {name}", *shape) for name, shape in TABLES.items())
    yield media([Table("broken cell", *BROKEN_CELL)])
    yield media(Text(f"text {name}", text) for name, text in TEXTS.items())
    yield media(image(f"good {name}", data, form_of(data)) for name, data in GOOD_IMAGES.items())
    yield media(image(f"bad {name}", data, form_of(data)) for name, data in BAD_IMAGES.items())
    yield logs(Event("tensormeter.run.end", T0 + 10**12, {"state": "finished"}))


class Log(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def deliver(destination, folder, options, *, before_it_ends=lambda delivery: None, **settings):
    """Deliver everything as the agent does. Returns the lost items, the quarantined items, and the agent's log."""
    folder.mkdir(parents=True, exist_ok=True)
    log, logger = Log(), logging.getLogger("tensormeter.agent")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    spool = Spool(folder / "spool.sqlite")
    encoded = [Encoded(signal, gzip.compress(body, 1), items) for signal, body, items in requests()]
    spool.put(encoded, [destination], "p", {}, started=True, ended=True)
    resolved = Settings(exporters=(destination,), exporter_options=options, **settings)
    delivery = Delivery(destination, spool.path, resolved, lambda: None, lambda delay: min(delay, 0.01))
    delivery.start()
    deadline = time.monotonic() + 600
    try:
        while spool.pending():
            assert time.monotonic() < deadline, (delivery.error, log.lines[-5:])
            threading.Event().wait(0.02)
        before_it_ends(delivery)
    finally:
        delivery.stop(60)
        logger.removeHandler(log)
    result = {"losses": spool.losses(), "rejections": spool.rejections(), "log": log.lines}
    spool.close()
    return result


if __name__ == "__main__":
    print(json.dumps(deliver(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))))
