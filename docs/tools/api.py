"""Prints docs/api.md: the reference of the gRPC API, out of the comments in protos/.

`make docs` runs it, and `make check` compares what it prints with the file. The comments are the
text; nothing is said here that does not stand there.
"""

import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc  # type: ignore[import-untyped]  # It carries no types.

_ROOT = Path(__file__).parent.parent.parent / "protos"
_FILES = ("policyd/v1/policy.proto", "policyd/v1/admin.proto", "policyd/v1/local.proto")
_PACKAGE = ".policyd.v1."
_GOOGLE = ".google.protobuf."
_WELL_KNOWN = "https://protobuf.dev/reference/protobuf/google.protobuf/#"
_HEAD = """\
<!-- Generated from protos/ by `make docs`. Do not edit: change the comments there. -->

# The gRPC API

Package `policyd.v1`. [PolicyService](#policyservice) is for gateways, on the address of
`policyd serve --grpc`; [AdminService](#adminservice) is for administrators, on that of `--admin`;
[LocalDecisionService](#localdecisionservice) is for gateways that decide by themselves, on that of
`--grpc`, where policyd is served with `--local-token-file`.
Both addresses also serve reflection and `grpc.health.v1` (see
[operations](operations.md#health-and-readiness)). What is answered over HTTP is in
[the HTTP endpoints](http.md).
"""
_MESSAGE = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
_ENUM = FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER
_SERVICE = FileDescriptorProto.SERVICE_FIELD_NUMBER
_MEMBER = 2
"""The number of `field` in a message, of `value` in an enumeration and of `method` in a service."""
_SCALARS = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}


class Comments:
    """The comments of one file, by the path of what they stand before."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._by_path = {
            tuple(location.path): location.leading_comments
            for location in file.source_code_info.location
        }

    def lines(self, *path: int) -> list[str]:
        """The comment's lines. Everything has one, or there is nothing to print."""
        found = self._by_path.get(path, "")
        if not found.strip():
            sys.exit(f"something in protos/ has no comment: {path}")
        return [line.removeprefix(" ").rstrip() for line in found.rstrip("\n").split("\n")]

    def text(self, *path: int) -> str:
        """The comment in one line, for a cell of a table."""
        return _escaped(" ".join(self.lines(*path)))

    def paragraphs(self, *path: int) -> str:
        """The comment in paragraphs. What is indented in it is a table of its own."""
        return "\n".join(_paragraphs(self.lines(*path)))


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    in_code = False
    for line in lines:
        is_code = line.startswith("  ")
        if is_code != in_code:
            yield "\n```" if is_code else "```\n"
            in_code = is_code
        yield line.removeprefix("  ") if is_code else _escaped(line)
    if in_code:
        yield "```"


def _escaped(text: str) -> str:
    text = text.replace("|", "\\|").replace("<", "&lt;")
    # An underscore within a word is none of Markdown's; a star would be.
    return text.replace("*", "\\*")


def load() -> list[FileDescriptorProto]:
    """The files with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        include = Path(protoc.__file__).parent / "_proto"
        arguments = ["protoc", f"-I{_ROOT}", f"-I{include}", "--include_source_info"]
        if protoc.main([*arguments, f"--descriptor_set_out={out}", *_FILES]) != 0:
            sys.exit("protoc has failed")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def page(files: list[FileDescriptorProto]) -> str:
    """The whole page."""
    parts = [_HEAD]
    for file in files:
        comments = Comments(file)
        parts += [_service(one, comments, at) for at, one in enumerate(file.service)]
    parts.append("## Messages and enumerations\n")
    for file in files:
        comments = Comments(file)
        parts += [_message(one, comments, at) for at, one in enumerate(file.message_type)]
        parts += [_enum(one, comments, at) for at, one in enumerate(file.enum_type)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip("\n") + "\n"


def _service(service: ServiceDescriptorProto, comments: Comments, at: int) -> str:
    rows = [
        f"| `{method.name}` | {_type(method.input_type)} | {_type(method.output_type)} | "
        f"{comments.text(_SERVICE, at, _MEMBER, number)} |"
        for number, method in enumerate(service.method)
    ]
    head = f"## {service.name}\n\n{comments.paragraphs(_SERVICE, at)}\n"
    return "\n".join([head, "| method | takes | gives | |", "|---|---|---|---|", *rows, ""])


def _message(message: DescriptorProto, comments: Comments, at: int) -> str:
    head = f"### {message.name}\n\n{comments.paragraphs(_MESSAGE, at)}\n"
    if not message.field:
        return head
    rows = [
        f"| {field.number} | `{field.name}` | {_field_type(field, message)} | "
        f"{comments.text(_MESSAGE, at, _MEMBER, number)} |"
        for number, field in enumerate(message.field)
    ]
    return "\n".join([head, "| | field | type | |", "|---|---|---|---|", *rows, ""])


def _enum(enum: EnumDescriptorProto, comments: Comments, at: int) -> str:
    rows = [
        f"| {value.number} | `{value.name}` | {comments.text(_ENUM, at, _MEMBER, number)} |"
        for number, value in enumerate(enum.value)
    ]
    head = f"### {enum.name}\n\n{comments.paragraphs(_ENUM, at)}\n"
    return "\n".join([head, "| | value | |", "|---|---|---|", *rows, ""])


def _field_type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    for entry in message.nested_type:
        if entry.options.map_entry and field.type_name.endswith(f".{entry.name}"):
            key, value = entry.field
            return f"map from {_field_type(key, entry)} to {_field_type(value, entry)}"
    name = _type(field.type_name) if field.type_name else f"`{_SCALARS[field.type]}`"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name} (one of `{message.oneof_decl[field.oneof_index].name}`)"
    return name


def _type(name: str) -> str:
    if name.startswith(_PACKAGE):
        short = name.removeprefix(_PACKAGE)
        return f"[{short}](#{short.lower()})"
    short = name.removeprefix(_GOOGLE)
    anchor = re.sub(r"(?<!^)(?=[A-Z])", "-", short).lower()
    return f"[{short}]({_WELL_KNOWN}{anchor})"


if __name__ == "__main__":
    sys.stdout.write(page(load()))
