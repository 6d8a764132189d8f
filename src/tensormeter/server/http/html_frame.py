"""The frame in which the page shows logged HTML documents, with a separate content policy.

A document in a `srcdoc` frame inherits the policy of the page around it. The page's policy forbids inline styles, which most
documents need, so the page cannot contain such a document itself. It contains this frame, which receives the document as a message
and shows it in an inner frame. The inner frame inherits this frame's policy and is a sandbox without permissions, so the document
runs no scripts, submits no forms, opens no other page and loads nothing from a network.
"""

import base64
import hashlib
from typing import Final

from starlette.responses import Response

__all__ = ["HTML_FRAME", "html_frame"]

HTML_FRAME: Final = "html-frame"
"""Name of the frame among the static files."""

_SCRIPT: Final = """\
addEventListener("message", ({ source, data }) => {
  if (source !== parent || typeof data !== "string") return;
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "");
  frame.srcdoc = data;
  document.body.replaceChildren(frame);
});
"""

_PAGE: Final = f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Logged HTML</title>
<style>html, body, iframe {{ background: #fff; border: 0; display: block; height: 100%; margin: 0; width: 100%; }}</style>
<body></body>
<script>{_SCRIPT}</script>
</html>
"""

_HASH: Final = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()

_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'sha256-{_HASH}'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts"
    ),
    "X-DNS-Prefetch-Control": "off",
}


def html_frame() -> Response:
    """Return the frame."""
    return Response(_PAGE, headers=_HEADERS, media_type="text/html; charset=utf-8")
