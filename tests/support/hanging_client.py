"""`python -m tests.support.hanging_client ADDRESS METHOD`: makes one call, says `ready`, and waits to be killed."""

from __future__ import annotations

import sys
import threading
import time

import grpc

from taste.v1 import taste_pb2_grpc
from tests.support import messages


def requests():
    yield from messages.detokenize_requests()
    time.sleep(3600)


def main() -> None:
    address, method = sys.argv[1:]
    stub = taste_pb2_grpc.TasteServiceStub(grpc.insecure_channel(address))
    if method == "Tokenize":
        call = stub.Tokenize.future(messages.tokenize_request())
    elif method == "Generate":
        call = stub.Generate(messages.generate_request())
    else:
        call = stub.Detokenize(requests())
    print("ready", flush=True)
    threading.Event().wait()
    del call


if __name__ == "__main__":
    main()
