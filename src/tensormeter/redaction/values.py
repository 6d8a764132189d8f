"""Recognition of secrets by form. Tokens with a known form are secrets; placeholders and YAML keywords are not."""

import re
from itertools import pairwise
from typing import Final

from tensormeter.redaction.names import Suspicion

__all__ = ["MASK", "is_secret", "mask_tokens"]

MASK: Final = "***"

_TOKEN: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|sk-[\w-]{16,}|[sr]k_(?:live|test)_\w{10,}|whsec_\w{16,}"  # OpenAI, Anthropic, Stripe
    r"|gh[pousr]_\w{16,}|github_pat_\w{16,}|gl(?:pat|dt|rt|ptt|ft|soat|agent)-[\w-]{16,}"  # GitHub, GitLab
    r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{16,}"  # Slack
    r"|A[KS]IA[A-Z0-9]{12,}|AIza[\w-]{30,}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,}"  # AWS, Google
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"  # JSON Web Tokens
    r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|dop_v1_[a-f0-9]{32,}|dckr_pat_[\w-]{16,}|hv[sb]\.[\w-]{16,}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|r8_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{30,}|nvapi-[\w-]{30,}|xai-[A-Za-z0-9]{30,}"
    r"|dapi[a-f0-9]{32}|lsv2_[a-z]{2}_\w{16,}|pplx-[A-Za-z0-9]{30,}|shp(?:at|ss|ca)_[a-fA-F0-9]{16,}|tskey-[\w-]{16,}"
    r"|AGE-SECRET-KEY-[A-Z0-9]{16,}|wandb_v1_\w{16,}"
    r"|(?i:bearer)\s{1,4}(?=[\w.~+/=-]{0,256}[\d.])[\w.~+/=-]{8,}|Basic\s{1,4}(?=[\w+/]{0,256}[\dA-Z=])[\w+/]{8,}={0,2}"
    r")",
)
"""Tokens with a characteristic form and sufficient length, and schemes of the HTTP header `Authorization`."""

_SCHEME: Final = re.compile(r"(?i:bearer|basic)\s+")

_PLAIN: Final = re.compile(
    r"\s*|true|false|yes|no|on|off|none|null|nil|undefined|n/?a|auto|default|required|optional|enabled|disabled"
    r"|basic|bearer|digest|oauth2?|token|password|kerberos|ntlm|ldap|iam|sso|negotiate|env|env_var|environment|keyring|netrc"
    r"|-?\d{1,3}(?:\.\d+)?",
    re.IGNORECASE,
)
_PLACEHOLDER: Final = re.compile(
    r"\*+|<[A-Z0-9_ -]+>|\$\{(?:oc\.env:|env:)?\w+\}|\$[A-Z][A-Z0-9]*_[A-Z0-9_]+|\$\{\{[^{}]*\}\}|\{\{[^{}]*\}\}|\{[A-Za-z_]\w*\}|%\(\w+\)s"
)
_EXAMPLE: Final = re.compile(
    r"[<\[{]?(?:your|insert|enter)[ _-](?:[a-z]+[ _-]){0,4}(?:key|token|password|passphrase|secret|credentials?|id|here)[>\]}]?|x{3,}"
    r"|<(?:[a-z]+[ _-]){0,4}(?:key|token|password|passphrase|secret|credentials?)>",
    re.IGNORECASE,
)
"""Example secrets in instructions and prompts: `your key`, `YOUR_API_KEY`, `insert-token-here`."""

_PATTERN: Final = re.compile(
    r"\^?\(?(?:\?:|\?P<\w{1,40}>)?(?:\\[wdsWDS]|\.|\[[^\[\]\s]{1,40}\])(?:[*+]\??|\{\d{0,4},?\d{0,4}\})\)?\$?"
)
"""Regular expressions, which match secrets but are not secrets themselves."""

_PART_OF_TEXT: Final = re.compile(r"<[^<>\s]{1,40}>|\[[A-Z0-9_ ]{1,20}\]|\W{0,3}|(?:\\[nrtfv])+")
"""Special tokens of language models, such as `</s>` and `[MASK]`, and a line feed written as `\\n`."""

_ABSENT: Final = re.compile(r"true|false|none|null", re.IGNORECASE)

_FILE: Final = re.compile(
    r"(?:~|\.{1,2})?(?:/[\w.@+ -]+)+\.(?:json|pem|key|pub|crt|txt|ya?ml|toml|cfg|ini|env|token)|(?:~|\.{1,2})/[\w./@+-]+"
)
"""Path of a file, which may contain a secret but is not one."""

_PIN: Final = re.compile(r"\d{4,}")

_SHORTEST_RANDOM: Final = 10
_LONG_RANDOM: Final = 20
_RANDOM: Final = re.compile(r"[A-Za-z0-9_+/=%-]+")
_SIZE: Final = re.compile(r"(?<![A-Za-z0-9])\d+x\d+[a-z]?(?![A-Za-z0-9])")
"""Part of a model's name, as in `ResNeXt101_32x8d`."""

_HEXADECIMAL: Final = re.compile(r"(?=.*\d)(?=.*[a-f])[0-9a-f]{16,}")
_RANDOM_SHARE: Final = 0.6
_LONG_RANDOM_SHARE: Final = 0.45
"""Minimum share of adjacent characters that differ in kind (upper case, lower case, digit) in a random string.

Random strings average 0.6. Strings of at least 20 letters and digits need only 0.45, because their share varies less.
"""


def is_secret(text: str, suspicion: Suspicion) -> bool:
    """Return whether a string is a secret, given the suspicion derived from its name."""
    if suspicion is Suspicion.NONE or any(form.fullmatch(text) for form in (_PLACEHOLDER, _EXAMPLE, _PATTERN)):
        return False
    if suspicion is Suspicion.PASSWORD:
        return bool(text.strip()) and not _ABSENT.fullmatch(text)
    if _PLAIN.fullmatch(text) or _PART_OF_TEXT.fullmatch(text) or _FILE.fullmatch(text):
        return False
    if suspicion is Suspicion.PIN and _PIN.fullmatch(text):
        return True
    return suspicion is Suspicion.SECRET or _looks_random(text)


def mask_tokens(text: str) -> str:
    """Replace tokens of a known form with `***`."""
    return _TOKEN.sub(lambda match: f"{scheme[0]}{MASK}" if (scheme := _SCHEME.match(match[0])) else MASK, text)


def _looks_random(text: str) -> bool:
    if len(text) < _SHORTEST_RANDOM or not _RANDOM.fullmatch(text) or _SIZE.search(text):
        return False
    if _HEXADECIMAL.fullmatch(text):
        return True
    kinds = ["d" if letter.isdigit() else "u" if letter.isupper() else "l" for letter in text if letter.isalnum()]
    changes = sum(first != second for first, second in pairwise(kinds))
    return "d" in kinds and changes >= (_RANDOM_SHARE if len(kinds) < _LONG_RANDOM else _LONG_RANDOM_SHARE) * (
        len(kinds) - 1
    )
