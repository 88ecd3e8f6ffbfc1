"""Around every call: its id, its log line, and what its exceptions become."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from taste.v1 import dialogue_pb2, taste_pb2
from taste_grpc.errors import InvalidInputError, InvalidTypeError, UnauthenticatedError
from taste_grpc.observability import log_event
from taste_grpc.server.auth import Authenticator, certificate_name
from taste_grpc.server.call import REQUEST_ID_KEY, Call, enter_call, request_id
from taste_grpc.server.patience import Patience, in_time
from taste_grpc.server.status import status_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

_QUIET = ("/grpc.health.", "/grpc.reflection.", "/grpc.channelz.")
"""Services whose calls are logged at debug level: probes come every few seconds."""

_DEADLINE_SLACK_S = 0.005
_LINGER_S = 0.1
_METHOD = re.compile(r"/[\w.]{1,128}/\w{1,128}", re.ASCII)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


_STREAMED = frozenset(
    f"/{service.full_name}/{method.name}"
    for file in (taste_pb2, dialogue_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.client_streaming
)
"""Methods whose requests are streams, whether they are offered or not."""


class _Malformed:
    """Stands for a request that is no message of its type."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Asks who calls, gives each call a request id, maps what it raises to a status, logs a line when it has ended.

    A caller that sends no request, or reads nothing of what it was sent, for `max_idle_ms` is let go with IdleError.
    """

    def __init__(self, authenticator: Authenticator | None = None, max_idle_ms: int = 300_000) -> None:
        self._authenticator = authenticator or Authenticator()
        self._max_idle_ms = max_idle_ms

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler with all this around it; None for methods that do not exist."""
        method = str(handler_call_details.method)
        metadata = [(str(key), value) for key, value in handler_call_details.invocation_metadata or ()]
        call_id = request_id(metadata)
        try:
            client = self._authenticator.client_of(method, metadata)
        except UnauthenticatedError as error:
            # Before the method is looked up: whether it exists is none of a stranger's business.
            return self._refused(error, method, call_id)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self._wrap(handler, method, call_id, client=client, linger=handler.request_streaming)

    def _refused(self, error: UnauthenticatedError, method: str, call_id: str) -> Any:
        """A handler that raises `error`; one of streams, so that no request is read first."""

        async def refuse(requests: Any, context: Any) -> None:
            raise error

        handler: Any = grpc.stream_stream_rpc_method_handler(refuse)
        shown = method if _METHOD.fullmatch(method) else "(no method's name)"
        return self._wrap(handler, shown, call_id, client="", linger=method in _STREAMED)

    def _wrap(self, handler: Any, method: str, call_id: str, *, client: str, linger: bool) -> Any:
        inner, make = _behaviour(handler)
        if not (inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)):
            return handler

        async def serve(requests: Any, context: Any) -> Any:
            call = Call(method, unquote(context.peer()), call_id)
            async with _observed(call, context, client or certificate_name(context), linger=linger):
                checked = _checked_stream(requests) if handler.request_streaming else await self._only_request(context)
                if not inspect.isasyncgenfunction(inner):
                    return await inner(checked, context)
                return await self._send(inner(checked, context), context)

        return make(
            serve,
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    async def _send(self, responses: AsyncGenerator[Any], context: Any) -> None:
        write, clock = context.write, time.monotonic
        message = f"the server waited {self._max_idle_ms} ms for the caller to read"
        async with Patience(self._max_idle_ms, message) as patience, aclosing(responses):
            async for response in responses:
                patience.since = clock()
                await write(response)
                patience.since = None

    async def _only_request(self, context: Any) -> Any:
        message = f"the server waited {self._max_idle_ms} ms for the request of the call"
        request = await in_time(context.read(), self._max_idle_ms, message)
        if request is grpc.aio.EOF:
            raise InvalidInputError("", "the call ended before its request")
        return _checked(request)


def _behaviour(handler: Any) -> tuple[Any, Callable[..., Any]]:
    """The function behind a handler, and what makes a handler of its kind of answer.

    Requests are read as a stream in any case: a call that ends without its one request is never answered by gRPC.
    """
    kinds = {
        (False, False): (handler.unary_unary, grpc.stream_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.stream_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    return kinds[handler.request_streaming, handler.response_streaming]


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """`deserialize`, but bytes that are no message become a value: gRPC would end the call with UNKNOWN."""
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, ValueError):
            return _Malformed()

    return read


def _checked(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidInputError("", "the request is no protobuf message of the method's type")
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


@asynccontextmanager
async def _observed(call: Call, context: Any, client: str, *, linger: bool) -> AsyncIterator[None]:
    enter_call(call)
    context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
    code = grpc.StatusCode.OK
    why = ""
    try:
        yield
    except grpc.aio.AbortError:
        code = _code_of(context)
        raise
    except asyncio.CancelledError:
        code = _code_of_a_cancel(context)
        raise
    except Exception as error:
        if isinstance(error, grpc.aio.InternalError):  # a write to a caller that has gone, before gRPC says so
            code = _code_of_a_cancel(context)
            raise asyncio.CancelledError from None
        status = status_of(error, call.request_id, past_deadline=_past_deadline(context))
        code = status.code
        why = str(error) if isinstance(error, UnauthenticatedError) else ""
        _note(call, error, code)
        if linger:
            await _discard_input(context)
        await context.abort(code, status.message, (*status.trailers, (REQUEST_ID_KEY, call.request_id)))
    finally:
        _log_call(call, code, client=client, why=why)


async def _discard_input(context: Any) -> None:
    """Take what the caller is just sending before its call is ended.

    A grpc.aio client whose write is cut off reports INTERNAL in place of the status it was sent.
    """
    with suppress(grpc.aio.BaseError, TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while await context.read() is not grpc.aio.EOF:
                pass


def _note(call: Call, error: Exception, code: grpc.StatusCode) -> None:
    """Keep for the log what the caller is not told, or what helps to understand a refusal."""
    if isinstance(error, InvalidInputError | InvalidTypeError):
        call.refused_field = error.field
    elif code is grpc.StatusCode.INTERNAL:
        named = {"chunk_id": call.chunk_id} if call.chunk_id else {}
        log_event(
            logger, logging.ERROR, "call failed", error=error, request_id=call.request_id, method=call.method, **named
        )


def _code_of(context: Any) -> grpc.StatusCode:
    code = context.code()
    return code if isinstance(code, grpc.StatusCode) else _CODES.get(code, grpc.StatusCode.UNKNOWN)


def _code_of_a_cancel(context: Any) -> grpc.StatusCode:
    return grpc.StatusCode.DEADLINE_EXCEEDED if _past_deadline(context) else grpc.StatusCode.CANCELLED


def _past_deadline(context: Any) -> bool:
    remaining = context.time_remaining()
    return remaining is not None and remaining <= _DEADLINE_SLACK_S


def _log_call(call: Call, code: grpc.StatusCode, *, client: str, why: str) -> None:
    fields: dict[str, Any] = {
        "request_id": call.request_id,
        "peer": call.peer,
        "client": client,
        "method": call.method,
        "code": code.name,
        "duration_ms": round(call.elapsed_ms, 1),
        "field": call.refused_field,
        "chunk_id": call.chunk_id,
        "why": why,
    }
    level = logging.DEBUG if call.method.startswith(_QUIET) and not why else logging.INFO
    log_event(logger, level, "call", **{name: value for name, value in fields.items() if value != ""})
