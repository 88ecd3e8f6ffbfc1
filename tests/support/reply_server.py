"""A live server that offers Reply, with scripted models behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from taste.v1 import dialogue_pb2
from taste_grpc.dialogue import CascadeModel
from tests.support import messages
from tests.support.live_server import Live, live_server
from tests.support.recording_engine import RecordingEngine
from tests.support.scripted_models import ScriptedLanguageModel, ScriptedRecogniser

_FIELDS = dialogue_pb2.ReplyRequest.DESCRIPTOR.fields_by_name


class Serving(Live):
    """A live server, with what stands behind its Reply."""

    hears: ScriptedRecogniser
    says: ScriptedLanguageModel

    def start(self, **options: Any) -> Any:
        fields = {name: options.pop(name) for name in list(options) if name in _FIELDS}
        return self.dialogue.Reply(messages.reply_request(**fields), **options)

    async def all(self, **fields: Any) -> list[dialogue_pb2.ReplyResponse]:
        return [response async for response in self.start(**fields)]


@asynccontextmanager
async def serving(**flags: Any) -> AsyncIterator[Serving]:
    hears, says = ScriptedRecogniser(), ScriptedLanguageModel()
    async with live_server(RecordingEngine(), reply_model=CascadeModel(hears, says), **flags) as live:
        server = Serving(live.server, live.engine, live.channel)
        server.hears, server.says = hears, says
        yield server
    assert says.running == 0
    assert not says.is_started
