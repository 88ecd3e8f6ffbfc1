"""An endpoint that fails in the ways that endpoints do.

`python -m tests.support.odd_endpoint` prints its URL and serves until its standard input ends. The first part of a
path says what happens to the request:

- `/silent`: it is never answered;
- `/stalls`: one piece of an answer, and nothing more;
- `/breaks`: one piece, and the connection is cut in the middle of the answer;
- `/complains`: one piece, and an error in the stream;
- `/garbage`: a stream that is no JSON;
- `/page`: a web page;
- `/500` and other numbers: that status, with a body that repeats the key;
- `/echo`: the request itself is the answer;
- `/asked`: one of the above, which the last message of the request names; it itself is the answer if it names none.

It prints a line for each request, and one once its connection has been closed by the client: `asked PATH`, `gone PATH`.
"""

from __future__ import annotations

import asyncio
import json
import sys

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(value: object) -> bytes:
    return chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def piece(text: str) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return event({"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "odd", "choices": [choice]})


END = chunk(b"data: [DONE]\n\n") + chunk(b"")
_NAMED = ("silent", "stalls", "complains", "garbage", "page", "500")


def plain(status: str, kind: str, body: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body.encode())}\r\n\r\n"
    return (head + body).encode()


def answer(what: str, headers: dict[str, str], body: str) -> bytes:
    """All bytes that are sent; `gone` is up to the client unless the connection is cut."""
    if what == "asked":
        asked = str(json.loads(body)["messages"][-1]["content"])
        named = asked.split("/")[-1]
        return answer(named, headers, body) if named in _NAMED else STREAM + piece(asked) + END
    if what == "silent":
        return b""
    if what in ("stalls", "breaks"):
        return STREAM + piece("Well")
    if what == "complains":
        return STREAM + piece("Well") + event({"error": {"message": "out of memory"}}) + chunk(b"")
    if what == "garbage":
        return STREAM + chunk(b"data: {nothing\n\n") + chunk(b"")
    if what == "page":
        return plain("200 OK", "text/html", "<html><body>Welcome!</body></html>")
    if what == "echo":
        return STREAM + piece(body) + piece("") + END
    error = {"error": {"message": f"no luck with {headers['authorization']}\n\nat all", "type": "odd"}}
    return plain(f"{what} Odd", "application/json", json.dumps(error))


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    path = "nothing"
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode():
            request, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
            path = request.split()[1]
            what = path.split("/")[1]
            print(f"asked {path}", flush=True)
            body = (await reader.readexactly(int(headers["content-length"]))).decode()
            writer.write(answer(what, headers, body))
            await writer.drain()
            if what == "breaks":
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        print(f"gone {path}", flush=True)
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
