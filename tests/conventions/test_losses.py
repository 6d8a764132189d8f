"""Every reason for a loss has words, in warnings, in the documentation and on the page."""

import re
from pathlib import Path

from tensormeter.conventions import limits
from tensormeter.conventions.losses import REASONS, describe_losses
from tensormeter.ring.format import Drop, SpoolLoss

ROOT = Path(__file__).parents[2]

OF_OUTPUT = {"console_full", "console_limit"}
"""Reasons that are counted in console files (see `ConsoleFile.drops`)."""

EARLIER = {"too_many_layouts"}
"""Reasons that only earlier versions counted. Their runs are still shown."""


def test_every_reason_that_is_counted_has_words():
    counted = {reason.name.lower() for reason in (*Drop, *SpoolLoss)} | OF_OUTPUT
    assert set(REASONS) == counted | EARLIER
    page = (ROOT / "ui/src/widgets/lossSummary.ts").read_text()
    documented = (ROOT / "docs/api.md").read_text()
    for reason in counted | EARLIER:
        assert re.search(rf"^  {reason}: \[", page, re.MULTILINE), reason
        assert reason in EARLIER or f"`{reason}`" in documented, reason


def test_sentences():
    assert describe_losses({"image_too_large": 3, "refused": 1, "refused_later": 2}) == [
        "3 images: larger than 16 MiB in encoded form, or more than 256 in one list; log smaller ones, JPEGs, or fewer at a time",
        "1 point or event: refused by the receiver",
        "2 items: refused later",
    ]
    assert describe_losses({"unsupported_value": 2_000}, {"unsupported_value": ["'a'"]}) == [
        "2,000 values ('a', ...): unsupported type or name; earlier warnings name up to 1,000 keys"
    ]
    assert describe_losses({"refused": 2}) == ["2 points or events: refused by the receiver"]
    assert describe_losses({}) == []


def test_the_documentation_names_the_limits():
    table = (ROOT / "docs/server.md").read_text().partition("## Item limits")[2].partition("## States")[0]
    rows = {cells[1].strip(): cells[2] for line in table.splitlines() if len(cells := line.split("|")) == 5}
    mib = {name: f"{getattr(limits, name) >> 20} MiB" for name in limits.__all__ if name.endswith("_BYTES")}
    assert mib["TEXT_BYTES"] in rows["text"]
    for name in ("TABLE_BYTES", "IMAGE_BYTES", "PIXEL_BYTES"):
        assert mib[name] in rows["table"]
    assert f"{limits.TABLE_CELLS:,} cells" in rows["table"]
    assert f"{limits.TABLE_IMAGES} images" in rows["table"]
    assert mib["IMAGE_BYTES"] in rows["image"]
    assert mib["PIXEL_BYTES"] in rows["image"]
    assert f"{limits.TABLE_IMAGES} images" in rows["list or batch of images"]
    assert mib["MEDIA_BYTES"] in rows["audio, video"]
    assert mib["TEXT_BYTES"] in rows["HTML, Plotly figure"]
    assert mib["CONFIG_BYTES"] in rows["configuration"]
    assert f"{limits.TITLE_CHARACTERS:,} characters" in rows["alert"]
    assert f"{limits.ALERT_CHARACTERS:,} of text" in rows["alert"]
    assert (
        f"{limits.CAPTION_CHARACTERS:,} characters"
        in rows["caption of an image, a video, an audio clip or an HTML document"]
    )
    assert mib["EVENT_BYTES"] in rows["any other log record"]
