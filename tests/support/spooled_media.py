"""Media items in a spool."""

import gzip
import io

import numpy as np
import PIL.Image

from support.spools import take_requests
from tensormeter.otlp.decode import decode_events
from tensormeter.otlp.media import media_of


def media_in(spool):
    """(media, step) of everything in the spool, which is emptied."""
    media_items = []
    for request in take_requests(spool):
        if request.signal == "logs":
            for _, events in decode_events(gzip.decompress(request.body)):
                media_items += [media for event in events if (media := media_of(event)) is not None]
    return media_items


def pixels(image):
    return np.asarray(PIL.Image.open(io.BytesIO(image.data)))
