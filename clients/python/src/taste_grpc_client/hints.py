"""What gRPC's words about a failed connection mean."""

from __future__ import annotations

import re

import grpc

_VERIFY = re.compile(r"certificate_verify_failed: ([^:]*)", re.IGNORECASE)


def hint(code: grpc.StatusCode, details: str, target: str, *, tls: bool) -> str:
    """A sentence that helps, or an empty one. `tls`: whether the client speaks TLS."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and details == "Deadline Exceeded":
        return "the call took longer than its timeout_s"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"what answers at {target} does not offer this method"
    if code is not grpc.StatusCode.UNAVAILABLE:
        return ""
    return _of_connection(details, target, tls)


def _of_connection(details: str, target: str, tls: bool) -> str:
    words = details.lower()
    if found := _VERIFY.search(details):
        return f"the certificate of {target} is not accepted: {found[1].strip()}; Tls(ca_file=...) names authorities"
    if "hostname verification" in words:
        return f"the certificate of {target} is for another name; Tls(server_name=...) says which"
    if "wrong_version_number" in words:
        return f"{target} does not speak TLS"
    if "security handshaker" in words:
        return "the files of `tls` cannot be used"
    if "connection refused" in words or "no such file or directory" in words:
        return f"nothing listens at {target}; is the server running?"
    if "errors resolving" in words or "name resolution" in words:
        return f"the host of {target} is not known"
    if "failed to connect" in words and ("socket closed" in words or "connection reset" in words):
        wish = "a client certificate, Tls(cert_file=..., key_file=...)" if tls else "TLS, tls=True or Tls(...)"
        return f"{target} hung up at once; perhaps it wants {wish}"
    return ""
