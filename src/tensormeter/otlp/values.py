"""Conversion of attributes, texts and other values to OTLP."""

from collections.abc import Mapping, Sequence

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.otlp.batch import Value

__all__ = ["any_value", "key_values", "plain_text"]


def any_value(value: Value) -> AnyValue:
    """Convert a value to OTLP. Convert integers beyond 64 bits and values of types that OTLP lacks to strings."""
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case int() if -(1 << 63) <= value < 1 << 63:
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=plain_text(value))
        case bytes():
            return AnyValue(bytes_value=value)
        case Mapping():
            return AnyValue(kvlist_value=KeyValueList(values=key_values(value)))
        case Sequence():
            return AnyValue(array_value=ArrayValue(values=[any_value(item) for item in value]))
        case _:
            return AnyValue(string_value=plain_text(str(value)))


def key_values(attributes: Mapping[str, Value]) -> list[KeyValue]:
    """Convert attributes to OTLP."""
    return [KeyValue(key=as_unicode(str(key)), value=any_value(value)) for key, value in attributes.items()]


def plain_text(text: str) -> str:
    """Replace characters that UTF-8 cannot encode with `?`. They occur in file names and environment variables, for example."""
    return text.encode(errors="replace").decode()
