"""Protobuf messages with a subset of another program's fields, without its package."""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

__all__ = ["build_messages"]

_TYPES: Final = {"double": 1, "float": 2, "int64": 3, "int32": 5, "bool": 8, "string": 9, "bytes": 12, "uint32": 13}
"""Numbers of scalar types in `FieldDescriptorProto.Type`."""


def build_messages(package: str, messages: Mapping[str, str], *, syntax: str = "proto3") -> dict[str, Any]:
    """Return the classes of messages by name. They use Protobuf's parser, which skips all fields that are not listed.

    Args:
        package: Name of the Protobuf package. The messages belong to a separate pool, so they cannot clash with others.
        messages: Fields by name of the message, such as ``"1 tag string, 2 items Item*"``: number, name and type of each. The
            type is a scalar type or a message, and a `*` marks a repeated field.
        syntax: "proto3", or "proto2" for messages whose fields of scalar types must show whether they are set. Texts that are
            not UTF-8 are then bytes.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax=syntax)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for entry in fields.split(", "):
            number, field_name, kind = entry.split()
            field = message.field.add(name=field_name, number=int(number))
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            base = kind.removesuffix("*")
            if base in _TYPES:
                field.type = _TYPES[base]  # type: ignore[assignment]
            else:
                field.type = field.TYPE_MESSAGE
                field.type_name = f".{package}.{base}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}
