"""What gRPC's words about a failed connection are taken to mean."""

from __future__ import annotations

import socket

import grpc
import pytest

from taste_grpc_client.hints import hint

REFUSED = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:{}: "
    "Failed to connect to remote host: Connection refused"
)
"""Of a name with two addresses, the other one of which may have hung up."""


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "dns:localhost", "dns:///localhost"])
def test_that_one_address_of_localhost_refuses_does_not_mean_that_nobody_listens(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        target, details = f"{name}:{port}", REFUSED.format(port)
        plain = hint(grpc.StatusCode.UNAVAILABLE, details, target, tls=False)
        encrypted = hint(grpc.StatusCode.UNAVAILABLE, details, target, tls=True)
        elsewhere = hint(grpc.StatusCode.UNAVAILABLE, details, f"127.0.0.1:{port}", tls=False)
    assert plain.text == f"{target} hung up at once; perhaps it wants TLS, tls=True or Tls(...)"
    assert encrypted.text.startswith(f"the handshake with {target} failed; 127.0.0.1")
    assert elsewhere.text.startswith("nothing listens at 127.0.0.1")
    # nobody any more
    gone = hint(grpc.StatusCode.UNAVAILABLE, details, target, tls=False)
    assert gone.text == f"nothing listens at {target}; is the server running?"


@pytest.mark.parametrize(
    "target", ["localhost", "localhost:", "localhost:99999", "localhost:http", "the given channel"]
)
def test_what_names_no_port_is_not_asked(target: str) -> None:
    assert hint(grpc.StatusCode.UNAVAILABLE, REFUSED.format(1), target, tls=False).text.startswith("nothing listens")
