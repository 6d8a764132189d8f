"""Redaction of command lines and of nested configurations."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from tensormeter.redaction.names import Suspicion, passed_on, suspect, suspect_member
from tensormeter.redaction.text import mask_text
from tensormeter.redaction.values import MASK, is_secret

__all__ = ["mask_arguments", "mask_config"]

_OPTION: Final = re.compile(r"--?[A-Za-z][\w.+:-]*")
_ASSIGNMENT: Final = re.compile(r"(?P<name>[-+~]{0,2}[A-Za-z_][\w.+:@/-]*)=(?P<value>.*)", re.DOTALL)
_HEADER: Final = re.compile(r"(?P<name>[A-Za-z][\w-]*):")
_SCHEME: Final = re.compile(r"(?i:bearer|basic|token|digest|apikey|negotiate)")
_USER: Final = re.compile(r"-u|--?([\w.-]*[-_.])?(user|login)", re.IGNORECASE)
_USER_PASSWORD: Final = re.compile(r"(?P<user>[^\s:/]+):(?!\d+$)[^\s/]\S*")
"""`curl --user name:password`, but not numbers as in `docker run --user 1000:1000`."""

_NAMING: Final = re.compile(
    r"(?i:k|(?:.*[_-])?(?:name|key|id|var|variable|param|parameter|option|setting|header|field|property|attribute))|.*Name|.*Key"
)
_NAMED: Final = re.compile(r"(?i:v|(?:.*[_-])?(?:value|val|values))|.*Value")
"""`{"name": "HF_TOKEN", "value": "..."}`, as in Kubernetes, in upper or lower case."""

_SEVERAL: Final = re.compile(r"(?i:.*(keys|tokens|secrets|passwords|credentials|cookies|headers?))")


def mask_config(config: Mapping[str, Any], known: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Replace secrets with `***`: strings whose names indicate a secret, and secrets within other strings.

    Numbers, Booleans and null are kept, except integers whose name indicates a password (`password`, `pwd`,
    `passphrase`).

    Args:
        config: JSON values, or attributes of a resource. The mapping is not changed.
        known: Known secrets, which are masked everywhere.

    Returns:
        A masked copy, and the dotted names of the masked values, such as `service.api_key`.
    """
    masking = _Masking(known)
    return masking.mapping(config, "", "", Suspicion.NONE), list(dict.fromkeys(masking.masked))


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace secrets in a command line with `***`: the values of suspicious options, and secrets in other text."""
    result = []
    suspicion, several = Suspicion.NONE, False  # for the values after an option
    for before, argument in zip(["", *arguments], arguments, strict=False):
        user = _USER_PASSWORD.fullmatch(argument) if _USER.fullmatch(before) else None
        if user:
            result.append(f"{user['user']}:{MASK}")
            continue
        if suspicion and not argument.startswith("--") and not (several and argument.startswith("-")):
            if _SCHEME.fullmatch(argument):  # the next argument is the secret: `--header Authorization: Bearer X`
                result.append(argument)
                continue
            result.append(MASK if is_secret(argument, suspicion) else _mask_text(argument, ""))
            if not several:
                suspicion = Suspicion.NONE
            continue
        suspicion, several = Suspicion.NONE, False
        assignment = _ASSIGNMENT.fullmatch(argument)
        if assignment:
            value = assignment["value"]
            secret = is_secret(value.strip("\"'"), suspect(assignment["name"]))
            user = _USER_PASSWORD.fullmatch(value) if _USER.fullmatch(assignment["name"]) else None
            masked = f"{user['user']}:{MASK}" if user else MASK if secret else _mask_text(value, assignment["name"])
            result.append(argument if masked == value else f"{assignment['name']}={masked}")
            continue
        if _OPTION.fullmatch(argument) or _HEADER.fullmatch(argument):
            suspicion, several = suspect(argument), bool(_SEVERAL.fullmatch(argument))
        result.append(_mask_text(argument, ""))
    return result


class _Masking:
    """A single masking pass over a configuration.

    Attributes:
        masked: Dotted names of the masked values.
    """

    def __init__(self, known: Collection[str]) -> None:
        self.masked: list[str] = []
        self._known = known

    def mapping(self, mapping: Mapping[str, Any], path: str, parent: str, inherited: Suspicion) -> dict[str, Any]:
        result: dict[str, Any] = {}
        named = max(
            (
                _judge(text, self._text(text, ""))
                for key, text in mapping.items()
                if isinstance(text, str) and _NAMING.fullmatch(key)
            ),
            default=Suspicion.NONE,
        )
        for key, value in mapping.items():
            name = self._text(key, "")
            suspicion = _judge(key, name, parent, inherited)
            if named and _NAMED.fullmatch(key):
                suspicion = max(suspicion, named)
            while name != key and name in result:
                name += "*"
            result[name] = self.value(value, f"{path}.{name}" if path else name, name, suspicion)
        return result

    def value(self, value: Any, path: str, name: str, suspicion: Suspicion) -> Any:
        """Mask the secrets in one value.

        Args:
            value: JSON value.
            path: Dotted name of the value.
            name: Name of the value, or of the list that contains it.
            suspicion: Suspicion derived from the name.
        """
        if isinstance(value, str):
            masked: Any = MASK if is_secret(value, suspicion) else self._text(value, name)
        elif isinstance(value, Mapping):
            return self.mapping(value, path, name, passed_on(name, suspicion))
        elif isinstance(value, tuple):
            return tuple(self.value([*value], path, name, suspicion))
        elif isinstance(value, list):
            if suspicion is Suspicion.NONE and value and all(isinstance(item, str) for item in value):
                masked = [self._replace_known(item) for item in mask_arguments(value)]
            elif value and all(
                isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) for item in value
            ):
                return [self._pair(key, item, path, name, suspicion) for key, item in value]
            else:
                return [self.value(item, path, name, suspicion) for item in value]
        elif suspicion is Suspicion.PASSWORD and isinstance(value, int) and not isinstance(value, bool):
            masked = MASK
        else:
            return value
        if masked != value:
            self.masked.append(path)
        return masked

    def _pair(self, key: str, value: Any, path: str, parent: str, inherited: Suspicion) -> list[Any]:
        name = self._text(key, "")
        if name != key:
            self.masked.append(path)
        return [name, self.value(value, path, name, _judge(key, name, parent, inherited))]

    def _text(self, text: str, name: str) -> str:
        return self._replace_known(_mask_text(text, name))

    def _replace_known(self, text: str) -> str:
        for secret in self._known:
            text = text.replace(secret, MASK)
        return text


def _judge(name: str, masked: str, parent: str = "", inherited: Suspicion = Suspicion.NONE) -> Suspicion:
    """Judge a name and its masked form, so that masking a masked configuration again changes nothing."""
    suspicion = suspect_member(name, parent, inherited)
    return suspicion if masked == name else max(suspicion, suspect_member(masked, parent, inherited))


def _mask_text(text: str, parent: str) -> str:
    """Mask the secrets in a string, which may contain JSON."""
    if text.lstrip()[:1] in ("{", "[", '"'):  # a JSON string may contain JSON in turn
        try:
            document = json.loads(text)
            masked = _Masking(()).value(document, "", parent, Suspicion.NONE)
            return text if masked == document else json.dumps(masked, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return mask_text(text)
