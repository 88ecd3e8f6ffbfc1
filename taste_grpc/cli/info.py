"""`taste-grpc info`."""

from __future__ import annotations

import json
from typing import Any

import typer

from taste_grpc.cli.connection import JsonOption, ServerOptions, connected
from taste_grpc.cli.progress import ProgressLine


def info(server: ServerOptions, as_json: JsonOption = False) -> None:
    """Show what a server has loaded, which parts are random, and its limits."""
    from google.protobuf.json_format import MessageToDict

    with ProgressLine(shown=not as_json) as progress, connected(server, progress) as client:
        described = client.model_info()
    content = MessageToDict(described, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
    else:
        _print(content)


def _print(content: dict[str, Any]) -> None:
    from taste_grpc.cli.output import show, table

    rows = []
    for name, value in content.items():
        if name == "parts":
            value = ", ".join(f"{part['name']} {'trained' if part['trained'] else 'RANDOM'}" for part in value)
        elif name == "special_tokens":
            value = ", ".join(f"{token['name']} {token['id']}" for token in value)
        elif name == "limits":
            value = "\n".join(f"{limit} {bound}" for limit, bound in value.items())
        rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    show(table(rows))
