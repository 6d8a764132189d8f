r"""JSON documents from outside: the one place where JSON text comes in.

JSON allows what no other part can keep: half of a surrogate pair ("\ud800"), which has no encoding in UTF-8. A document with one
is refused here, so nothing behind has to expect it. Blocks on nothing; safe on any thread.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final

from tensormeter.errors import EncodingError

__all__ = ["parse_document"]

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def parse_document(data: bytes | str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse JSON.

    Args:
        data: The document; bytes are UTF-8, with or without a byte order mark.
        object_hook: Called with each object; its result replaces the object.

    Raises:
        EncodingError: The data is not JSON, or cannot be kept: invalid UTF-8, half of a surrogate pair, a number of more than
            4300 digits, or too many levels.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        document = json.loads(text, object_hook=object_hook)
        if isinstance(data, str):
            data.encode()
        if _SURROGATE.search(text):
            # Whole pairs have become one character by now; writing the document finds the halves.
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except UnicodeEncodeError:
        raise EncodingError("not Unicode text: it has half of a surrogate pair (\\ud800 to \\udfff)") from None
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"not JSON: {type(error).__name__}: {str(error)[:500]}") from None
