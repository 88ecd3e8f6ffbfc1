"""The contract: in style, every word of it explained, and formatted."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

PROTOS = Path(__file__).resolve().parents[2] / "protos"
BUF = shutil.which("buf", path=sysconfig.get_path("scripts")) or shutil.which("buf")

# Field numbers in descriptor.proto, of which the paths of source locations are made.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED, NESTED_ENUMS, ONEOFS, VALUES, METHODS = 2, 3, 4, 8, 2, 2

Path_ = tuple[int, ...]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    image = tmp_path_factory.mktemp("image") / "taste.binpb"
    assert BUF is not None, "buf is not installed"
    subprocess.run([BUF, "build", str(PROTOS), "-o", str(image)], check=True, timeout=60)
    described = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    return {file.name: file for file in described.file}


def messages(
    found: list[descriptor_pb2.DescriptorProto], path: Path_, scope: str
) -> Iterator[tuple[str, Path_, descriptor_pb2.DescriptorProto]]:
    for index, message in enumerate(found):
        if not message.options.map_entry:
            yield f"{scope}.{message.name}", (*path, index), message
            yield from messages(list(message.nested_type), (*path, index, NESTED), f"{scope}.{message.name}")


def elements(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, Path_]]:
    """Name and source path of everything in `file` that wants a comment."""
    enums = [(file.package, (ENUMS,), list(file.enum_type))]
    for name, path, message in messages(list(file.message_type), (MESSAGES,), file.package):
        yield name, path
        yield from ((f"{name}.{field.name}", (*path, FIELDS, i)) for i, field in enumerate(message.field))
        # protoc makes a oneof of one field for every `optional`; those have no source of their own.
        real = {f.oneof_index for f in message.field if f.HasField("oneof_index") and not f.proto3_optional}
        yield from ((f"{name}.{message.oneof_decl[i].name}", (*path, ONEOFS, i)) for i in sorted(real))
        enums.append((name, (*path, NESTED_ENUMS), list(message.enum_type)))
    for scope, path, group in enums:
        for index, enum in enumerate(group):
            yield f"{scope}.{enum.name}", (*path, index)
            yield from ((value.name, (*path, index, VALUES, i)) for i, value in enumerate(enum.value))
    for index, service in enumerate(file.service):
        yield service.name, (SERVICES, index)
        yield from ((method.name, (SERVICES, index, METHODS, i)) for i, method in enumerate(service.method))


def uncommented(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    comments = {tuple(at.path): at.leading_comments.strip() for at in file.source_code_info.location}
    return [name for name, path in elements(file) if not comments.get(path)]


def test_everything_has_a_comment(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    assert set(files) == {f"taste/v1/{name}.proto" for name in ("common", "taste", "dialogue")}
    assert [name for file in files.values() for name in uncommented(file)] == []


def test_the_comment_check_can_fail(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    file = descriptor_pb2.FileDescriptorProto()
    file.CopyFrom(files["taste/v1/taste.proto"])
    for at in file.source_code_info.location:
        at.ClearField("leading_comments")
    bare = uncommented(file)
    assert len(bare) > 100
    assert {"TasteService", "Detokenize", "taste.v1.DetokenizeRequest.request", "TASTE_LAYOUT_CODES"} <= set(bare)


def test_services_are_those_of_the_contract(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    methods = {
        service.name: {m.name: (m.client_streaming, m.server_streaming) for m in service.method}
        for file in files.values()
        for service in file.service
    }
    assert methods == {
        "TasteService": {
            "GetModelInfo": (False, False),
            "Tokenize": (False, False),
            "Generate": (False, True),
            "Detokenize": (True, True),
        },
        "DialogueService": {"Converse": (True, True), "Reply": (False, True)},
    }


def test_reasons_of_errors_are_in_the_contract(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    from taste_grpc import errors

    enum = next(e for e in files["taste/v1/common.proto"].enum_type if e.name == "ErrorReason")
    known = {value.name for value in enum.value}
    leaves = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.TasteError)]
    assert leaves
    assert {leaf.reason for leaf in leaves} <= known


@pytest.mark.parametrize("command", [["lint"], ["format", "--diff", "--exit-code"]])
def test_buf_has_nothing_to_say(command: list[str]) -> None:
    assert BUF is not None, "buf is not installed"
    done = subprocess.run([BUF, *command, str(PROTOS)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
