r"""The parser for all JSON documents from external sources.

JSON permits text that UTF-8 cannot encode: unpaired surrogates such as "\ud800". The parser rejects documents with
unpaired surrogates, so no other code has to handle such text. The parser is thread-safe and does not block.
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
        data: JSON document. Bytes must be UTF-8, with or without a byte order mark.
        object_hook: Function that receives each object and returns its replacement.

    Raises:
        EncodingError: The data is not JSON, or contains invalid UTF-8, an unpaired surrogate, an integer with more than
            4300 digits, or too many levels of nesting.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        document = json.loads(text, object_hook=object_hook)
        if isinstance(data, str):
            data.encode()
        if _SURROGATE.search(text):
            # The parser has combined each surrogate pair into one character, so encoding fails only for unpaired surrogates.
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except UnicodeEncodeError:
        raise EncodingError("not Unicode text: contains a lone surrogate (\\ud800 to \\udfff)") from None
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"not JSON: {type(error).__name__}: {str(error)[:500]}") from None
