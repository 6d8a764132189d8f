"""Redaction of addresses: users, passwords, parameters and webhook paths.

Addresses are URLs, connection strings such as `postgresql://...`, and the forms that git and ssh use
(`user@host:path`). Strings such as `Server=...;Password=...` are not treated as addresses. Addresses need not be valid,
because passwords often contain `@`, `/` or `#`.
"""

import re
from typing import Final
from urllib.parse import unquote

from tensormeter.redaction.names import Suspicion, suspect
from tensormeter.redaction.values import MASK, is_secret, mask_tokens

__all__ = ["mask_address", "mask_addresses", "strip_address"]

_URL: Final = re.compile(r"(?P<scheme>(?:[A-Za-z][A-Za-z0-9+.-]{0,40}:){0,3}//)(?P<rest>.*)", re.DOTALL)
_IN_TEXT: Final = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,40}://[^\s\"'<>`]+")
_SHORT: Final = re.compile(
    r"(?P<user>[^\s/]+)@(?P<host>\[[0-9a-fA-F:.]{1,64}\]|[\w.-]{1,253})(?P<rest>(?:[:/].*)?)", re.DOTALL
)
"""`user@host:path`, as in scp, and connection strings without a scheme."""

_NO_USER: Final = re.compile(r"(?i:mailto|sips?|acct|xmpp|npm|sha\d+):.*|.*[(\[{=].*", re.DOTALL)
_NO_HOST: Final = re.compile(r"sha\d+|md5|latest|main|master|HEAD|\d+(\.\d+){0,2}")
_PORT: Final = re.compile(r"[^:]*:\d{0,5}|\[[^\]]*\](:\d{0,5})?")
_HOST: Final = re.compile(r"localhost|[\w-]+(\.[\w-]+)+|\[[^\]]*\]")
_BY_HTTP: Final = re.compile(r"(?i:([\w-]+\+)?(https?|wss?):)?//")
_BY_SSH: Final = re.compile(r"(?i:(git\+|svn\+|bzr\+)?(ssh|sftp|scp|rsync)(\+git)?:)?//")

_PARAMETER: Final = re.compile(r"(?P<before>[?&;#])(?P<name>[^=&;#?/]{1,256})=(?P<value>[^&;#]*)")
_PARAMETERS: Final = frozenset((
    *("key", "sig", "signature", "hmac", "code", "auth", "access", "pass", "sid", "session", "sessionid"),
    *("session_id", "jsessionid", "phpsessid", "awsaccesskeyid", "googleaccessid", "subscription-key"),
    *("x-amz-signature", "x-amz-credential", "x-amz-security-token", "x-goog-signature", "x-goog-credential"),
))  # fmt: skip
"""Names of parameters whose values are secret only in addresses."""

_DEEPEST: Final = 3
"""Maximum nesting depth of addresses within parameters. Deeper addresses are masked completely."""

_HOOK_HOST: Final = re.compile(r"(.*\.)?(web)?hooks?(-\w+)?\..*", re.IGNORECASE)
_TOKEN_SCHEMES: Final = re.compile(
    r"(slack|discord|tgram|telegram|msteams|teams|pover|pushover|pbul|gotifys?|ntfys?|mmosts?|rockets?|pagerduty|ifttt|matrixs?)://",
    re.IGNORECASE,
)
"""Schemes of Apprise and shoutrrr whose addresses consist of tokens."""

_ORACLE: Final = re.compile(r"(?P<kept>jdbc:oracle:\w+:)[^/@\s]+/\S+@")
_HOOK_PATH: Final = re.compile(
    r"(?P<kept>/(?:(?:incoming-?)?(?:web)?hooks?(?:b2|-test)?|integration)/)[^?#]+", re.IGNORECASE
)
_SERVICE_PATH: Final = re.compile(r"(?P<kept>/(?:[a-z-]+2?/)?)[^/?#][^?#]*")
_BOT: Final = re.compile(r"(?P<kept>/bot)\d+:[^/?#]+")
_KEY_IN_PATH: Final = re.compile(r"(?P<kept>/(?:key|keys|token|tokens|api[-_]?keys?)/)[^/?#]{10,}", re.IGNORECASE)
_PING: Final = re.compile(r"(?P<kept>/)[^?#]+")
_PING_HOSTS: Final = frozenset((
    *("hc-ping.com", "nosnch.in", "api.day.app", "sctapi.ftqq.com", "sc.ftqq.com", "xizhi.qqoq.net", "cronitor.link"),
    "heartbeat.uptimerobot.com",
))  # fmt: skip
"""Hosts of services that accept messages from anyone who has the path."""


def mask_addresses(text: str) -> str:
    """Mask the secrets in all addresses in a string."""
    stripped = text.strip()
    if stripped.startswith("?"):
        return _mask_parameters(text, 0)
    if (
        stripped
        and (_URL.fullmatch(stripped) or _SHORT.fullmatch(stripped) or _ORACLE.match(stripped))
        and not re.search(r"\s\w+://", stripped)
    ):
        return text.replace(stripped, mask_address(stripped))
    return _IN_TEXT.sub(lambda match: mask_address(match[0]), text)


def mask_address(address: str) -> str:
    """Replace the secrets in an address with `***`, and keep its host, path and other parameters.

    Args:
        address: Address in any form. Other strings are returned unchanged.
    """
    return _mask_address(address, 0)


def _mask_address(address: str, level: int) -> str:
    if _ORACLE.match(address):
        return _ORACLE.sub(rf"\g<kept>{MASK}@", address)
    parts = _URL.fullmatch(address)
    if parts is None:
        user, rest = _split_short(address)
        return f"{_mask_user(user, keep_name=True)}{rest}"
    scheme = parts["scheme"]
    if _TOKEN_SCHEMES.fullmatch(scheme):
        return f"{scheme}{MASK}"
    user, host, rest = _split(parts["rest"])
    masked_user = _mask_user(user, keep_name=not _BY_HTTP.fullmatch(scheme))
    return f"{scheme}{masked_user}{host}{_mask_parameters(_mask_path(host, rest), level)}"


def strip_address(address: str) -> str:
    """Remove all parts of an address that can be secret: user, password, parameters and fragment.

    An ssh user without a password (`git@host:path`) is kept, because it is part of the address.

    Args:
        address: Repository address, in any form that git accepts.
    """
    helper, colons, rest = address.partition("::")  # `hg::https://...`, `ext::command`
    if colons and re.fullmatch(r"[A-Za-z][\w+.-]*", helper):
        return f"{helper}::{MASK if helper == 'ext' else strip_address(rest)}"  # `ext` is followed by a command
    parts = _URL.fullmatch(address)
    if parts is None:
        user, rest = _split_short(address)
        return mask_tokens(f"{user if _mask_user(user, keep_name=True) == user else ''}{rest}")
    user, host, rest = _split(parts["rest"])
    kept = user if _BY_SSH.fullmatch(parts["scheme"]) and _mask_user(user, keep_name=True) == user else ""
    return mask_tokens(f"{parts['scheme']}{kept}{host}{re.split('[?#]', rest, maxsplit=1)[0]}")


def _split(rest: str) -> tuple[str, str, str]:
    """Split an address without its scheme into the user (with its `@`), the host and the rest."""
    end = re.search(r"[/?#\\]", rest)
    authority = rest[: end.start()] if end else rest
    before, at, host = authority.rpartition("@")
    if not at:
        authority = authority.partition(";")[0]  # `jdbc:sqlserver://host;password=...`
        if ":" in authority and not _PORT.fullmatch(authority) and "@" in rest:  # a password that contains a slash
            cut = rest.rindex("@") + 1
            return rest[:cut], *_divide(rest[cut:])
        return "", authority, rest[len(authority) :]
    behind = rest[len(authority) :]
    further = re.match(r"[^\s]*@(?=[\w.-]{1,253}(:\d{1,5})?/)", behind)
    if ":" in before and further and not _HOST.fullmatch(host.partition(":")[0]):  # `user:pa@ss/word@host/path`
        cut = len(authority) + further.end()
        return rest[:cut], *_divide(rest[cut:])
    return f"{before}@", host, behind


def _divide(text: str) -> tuple[str, str]:
    end = re.search(r"[/?#]", text)
    return (text[: end.start()], text[end.start() :]) if end else (text, "")


def _split_short(address: str) -> tuple[str, str]:
    """Split `user@host:path` into the user (with its `@`) and the rest. For other forms, the user is empty."""
    parts = _SHORT.fullmatch(address)
    if parts is None or _NO_USER.fullmatch(parts["user"]) or _NO_HOST.fullmatch(parts["host"]):
        return "", address
    if not parts["rest"] and (":" not in parts["user"] or not _HOST.fullmatch(parts["host"])):
        return "", address  # an email address, or `name:tag@version`
    return f"{parts['user']}@", f"{parts['host']}{parts['rest']}"


def _mask_user(user: str, *, keep_name: bool) -> str:
    """Mask `user:password@`. Over HTTP, a user alone can be a token (`https://TOKEN@host`); elsewhere, it is a name."""
    name = user.removesuffix("@")
    if not name or name.strip(":") == "":
        return user
    if keep_name and ":" not in name and mask_tokens(name) == name and not is_secret(name, Suspicion.RANDOM):
        return user
    return f"{MASK}@"


def _mask_path(host: str, rest: str) -> str:
    name = host.partition(":")[0].lower()
    if name in _PING_HOSTS:
        return _PING.sub(rf"\g<kept>{MASK}", rest, count=1)
    if _HOOK_HOST.fullmatch(name):
        return _SERVICE_PATH.sub(rf"\g<kept>{MASK}", rest, count=1)
    path, *query = re.split(r"(?=[?#])", rest, maxsplit=1)
    for pattern in (_HOOK_PATH, _BOT, _KEY_IN_PATH):
        path = pattern.sub(rf"\g<kept>{MASK}", path, count=1)
    return "".join([path, *query])


def _mask_parameters(rest: str, level: int) -> str:
    def mask(match: re.Match[str]) -> str:
        name, value = unquote(match["name"]), unquote(match["value"])
        suspicion = Suspicion.SECRET if name.lower() in _PARAMETERS else suspect(name)
        secret = is_secret(value, suspicion) or mask_tokens(value) != value
        if not secret and "://" in value:  # an address within an address
            secret = level >= _DEEPEST or _IN_TEXT.sub(lambda part: _mask_address(part[0], level + 1), value) != value
        return f"{match['before']}{match['name']}={MASK if secret else match['value']}"

    return _PARAMETER.sub(mask, rest)
