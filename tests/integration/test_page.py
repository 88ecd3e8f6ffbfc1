"""The page in a real browser that hears a recording of a human voice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytest_asyncio

from taste_grpc.dialogue import Phase
from taste_grpc.dialogue.events import (
    AudioIn,
    Cancel,
    ErrorCode,
    Failure,
    GoingAway,
    Notice,
    PartialTranscript,
    PhaseChanged,
    PlaybackAck,
    PlaybackCredit,
    TextTurn,
)
from taste_grpc.errors import UnauthenticatedError, UnavailableError
from taste_grpc.speech import sample_recordings
from tests.support.browser import Visit, browser, visit, why_no_browser
from tests.support.live_gateway import LiveGateway, live_gateway
from tests.support.live_server import until
from tests.support.scripted_conversations import AnsweringSession, ScriptedConversations, refusal

if TYPE_CHECKING:
    from playwright.async_api import Browser

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser())),
]

AS_IS = "?processing=off"
"""The browser is to leave the recording as it is."""

PHONE = {"viewport": {"width": 375, "height": 667}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


class LongAnswers(AnsweringSession):
    answer_ms = 60_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser(sample_recordings()["beckett"]) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[LiveGateway]:
    async with live_gateway(ScriptedConversations(AnsweringSession)) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def long_winded() -> AsyncIterator[LiveGateway]:
    async with live_gateway(ScriptedConversations(LongAnswers)) as found:
        yield found


async def hears_something(page: Visit) -> None:
    assert await page.until("() => taste.player.level > 0.05 && taste.player.level") < 1


def heard(live: LiveGateway, kind: type) -> list:
    return [event for event in live.session.received if isinstance(event, kind)]


async def test_somebody_talks_and_is_answered(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url + AS_IS) as page:
        assert await page.text("#connection") == "Not connected"
        await page.page.click("#talk")
        await page.until_text(".you.partial", "Ever tr")
        await page.until_text("#phase", "Answering")
        await hears_something(page)
        await page.until_text(".you:not(.partial)", "Ever tried.")
        assert "Try again. Fail again. Fail <b>better</b>." in await page.text(".reply"), "text is text"
        await page.until_text("#times-list", "Turn 1, answered 0.48 s after you had finished")
        assert await page.page.locator("#times-list .bar").first.locator("span").count() == 4
        assert await page.text("#connection") == "Connected"
        await until(lambda: PlaybackAck(0, 1_000) in live.session.received)
        start = live.session.start
        assert (start.sample_rate_hz, start.voice and start.voice.sample_rate_hz) == (16_000, 24_000)
        assert heard(live, PlaybackCredit) == [PlaybackCredit(5_000)]
        frames = {len(event.data) for event in heard(live, AudioIn)}
        assert frames == {960}, "30 ms of Int16 at 16 kHz"
        assert np.abs(np.frombuffer(live.session.audio, "<i2")).max() > 3_000, "a voice"
        played = [ack.played_ms for ack in heard(live, PlaybackAck)]
        assert played == sorted(set(played)), "each tells something new"
        assert played[-1] == 1_000, "all there was, and no more"
        await page.page.click("#talk")
        assert await page.page.get_attribute("#talk", "data-on") == "false"
        assert await page.page.evaluate("taste.microphone.isOn") is False


async def test_chunks_are_played_without_a_gap(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url) as page:
        await page.page.evaluate("""() => {
            const start = AudioBufferSourceNode.prototype.start;
            window.plays = [];
            AudioBufferSourceNode.prototype.start = function (when) {
                plays.push({ from: when * this.context.sampleRate, length: this.buffer.length });
                return start.call(this, when);
            };
        }""")
        await say(page, "Hello?")
        first, second = await page.until("() => plays.length === 2 && plays")
        assert first["length"] == second["length"] == 12_000
        assert second["from"] == pytest.approx(first["from"] + first["length"], abs=1e-3)


async def say(page: Visit, text: str) -> None:
    await page.page.fill("#say", text)
    await page.page.press("#say", "Enter")


async def test_what_is_typed_is_answered_without_a_microphone(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url, allowed=False) as page:
        await say(page, "  What now? <i> ")
        await page.until_text(".you", "What now? <i>")
        await page.until_text(".reply", "Try again.")
        await hears_something(page)
        assert heard(live, TextTurn) == [TextTurn("What now? <i>")]
        assert heard(live, AudioIn) == []
        assert await page.page.locator("article").count() == 1, "question and answer are one turn"
        assert await page.page.input_value("#say") == ""


async def test_speech_interrupts_the_answer_at_once(chromium: Browser, long_winded: LiveGateway) -> None:
    async with visit(chromium, long_winded.gateway.url, allowed=False) as page:
        await say(page, "Tell me everything.")
        await hears_something(page)
        await until(lambda: bool(heard(long_winded, PlaybackAck)))
        long_winded.session.interrupt()  # type: ignore[attr-defined]
        await page.until("() => !taste.player.isPlaying && taste.player.level === 0")
        await page.until_text(".mark", "interrupted")
        assert (await page.text(".unheard")).strip() == "again. Fail <b>better</b>.", "what was not heard is told apart"
        await page.until_text("#phase", "Hearing you")


async def test_the_stop_button_and_escape_stop_the_answer(chromium: Browser, long_winded: LiveGateway) -> None:
    for stop in ("button", "Escape"):
        async with visit(chromium, long_winded.gateway.url, allowed=False) as page:
            assert await page.page.is_disabled("#stop")
            await say(page, "Tell me everything.")
            await hears_something(page)
            await (page.page.click("#stop") if stop == "button" else page.page.keyboard.press("Escape"))
            await page.until("() => !taste.player.isPlaying")
            await until(lambda: heard(long_winded, Cancel) == [Cancel()])
            await page.until_text(".mark", "stopped")
            assert not await page.page.evaluate("taste.player.isPlaying"), "what was on its way is not played either"
            assert await page.page.is_hidden("#problem"), "who stops an answer knows it"


async def test_all_of_it_can_be_done_with_the_keyboard(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url + AS_IS) as page:
        order = []
        for _ in range(5):
            await page.page.keyboard.press("Tab")
            order.append(await page.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert order == ["Settings", "conversation", "Response times", "talk", "say"], "what is disabled is passed over"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.page.evaluate(outline) == "solid"
        await page.page.keyboard.press("Shift+Tab")
        await page.page.keyboard.press("Space")
        await page.until("() => taste.microphone.isOn")
        assert await page.page.evaluate("document.activeElement.id") == "talk"
        assert await page.page.get_attribute("#talk", "data-on") == "true"
        await page.until_text("#announcer", "You said: Ever tried.")
        await page.page.focus("#settings > summary")
        await page.page.keyboard.press("Enter")
        assert await page.page.is_visible("#access-token")
        await page.page.keyboard.press("Escape")
        assert await page.page.is_hidden("#access-token")


async def test_each_control_has_a_name(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url) as page:
        await page.page.click("#settings > summary")
        for role, name in (
            ("button", "Talk"),
            ("button", "Stop"),
            ("button", "Send"),
            ("button", "Begin a new conversation"),
            ("textbox", "Message"),
            ("textbox", "Instructions to the language model"),
            ("textbox", "Access token"),
            ("checkbox", "Speaking interrupts the answer"),
            ("log", "Conversation"),
        ):
            assert await page.page.get_by_role(role, name=name, exact=True).count() == 1, name


async def test_a_microphone_that_is_refused_is_explained(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url, allowed=False) as page:
        await page.page.click("#talk")
        await page.until_text("#problem", "The microphone was refused. Allow it for this page")
        assert await page.page.get_attribute("#problem", "role") == "alert"
        assert await page.page.get_attribute("#talk", "data-on") == "false"
        await page.page.click("#problem-close")
        assert await page.page.is_hidden("#problem")


async def test_a_microphone_that_is_not_there_is_explained(live: LiveGateway) -> None:
    async with browser() as without, visit(without, live.gateway.url) as page:
        await page.page.click("#talk")
        await page.until_text("#problem", "No microphone was found.")


async def test_a_page_that_may_have_no_microphone_says_why(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url) as page:
        # As browsers do on a page that came over HTTP from another machine.
        await page.page.evaluate("() => Object.defineProperty(window, 'isSecureContext', { value: false })")
        await page.page.evaluate("() => Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
        await page.page.click("#talk")
        await page.until_text("#problem", "only to pages from localhost or over HTTPS")


async def test_errors_and_notices_are_sentences(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url) as page:
        await say(page, "Hello?")
        await page.until_text(".reply", "Try again.")
        live.session.emit(
            Failure(0, ErrorCode.LLM_TIMEOUT, "no token within 15 s"), Notice(None, "the client reads slowly")
        )
        await page.until_text("#problem-text", "The answer took too long. (No token within 15 s.)")
        await page.until_text("#notice", "The client reads slowly.")
        assert await page.text("#connection") == "Connected"


async def test_a_server_that_asks_for_a_token_gets_one(chromium: Browser) -> None:
    def authenticate(token: str | None) -> str:
        if token != "alice-0123456789":
            raise UnauthenticatedError("the call carries no token")
        return "alice"

    conversations = ScriptedConversations(AnsweringSession)
    more = {"authenticate": authenticate}
    async with live_gateway(conversations, gateway=more) as live, visit(chromium, live.gateway.url) as page:
        await say(page, "Hello?")
        await page.until_text("#problem-text", "The server asks for an access token")
        await page.until_text(".mark", "not sent")
        assert await page.page.evaluate("document.activeElement.id") == "access-token"
        await page.page.keyboard.type("alice-0123456789")
        await page.page.keyboard.press("Enter")
        await say(page, "Hello again?")
        await page.until_text(".reply", "Try again.")
        assert await page.page.is_hidden("#problem")


async def test_a_conversation_goes_on_when_the_server_goes_away(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url) as page:
        await say(page, "Hello?")
        await page.until_text(".reply", "Try again.")
        before = live.session
        live.conversations.refusals.append(UnavailableError("the server is about to stop"))
        before.emit(GoingAway("resume-me", 5_000, 60_000))
        await before.closed.wait()
        await until(lambda: live.session is not before)
        assert live.session.start.resume_token == "resume-me"
        await page.until("() => taste.conversation.isOpen")
        await say(page, "Still there?")
        await page.until("() => document.querySelectorAll('.reply:not(:empty)').length === 2")
        assert "anew" not in await page.text("#conversation")


async def test_the_microphone_may_have_another_rate(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url + AS_IS) as page:
        # As in browsers that cannot resample a microphone.
        await page.page.evaluate("""() => {
            const open = AudioContext.prototype.createMediaStreamSource;
            AudioContext.prototype.createMediaStreamSource = function (stream) {
                if (this.sampleRate === 16000) throw new DOMException('different sample-rate', 'NotSupportedError');
                return open.call(this, stream);
            };
        }""")
        await say(page, "Hello?")
        await page.until_text(".reply", "Try again.")
        await page.until("() => !taste.player.isPlaying")
        await page.page.click("#talk")
        assert await page.until("() => taste.microphone.isOn && taste.microphone.rate") > 16_000
        session = live.session
        await until(lambda: len(session.audio) > 32_000)
        assert session.start.sample_rate_hz == 16_000
        assert len([event for event in session.received if isinstance(event, AudioIn)]) > 20
        assert np.abs(np.frombuffer(session.audio, "<i2")).max() > 3_000, "a voice, resampled by the server"


async def test_noise_that_was_no_words_leaves_nothing(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url) as page:
        await say(page, "Hello?")
        await page.until_text(".reply", "Try again.")
        live.session.emit(PhaseChanged(1, Phase.CAPTURING), PartialTranscript(1, "um", 600))
        await page.until_text(".you.partial", "um")
        live.session.emit(PhaseChanged(1, Phase.COMPLETE), PhaseChanged(2, Phase.IDLE))
        await page.until("() => !document.querySelector('.partial')")
        assert "um" not in await page.text("#conversation")


async def test_a_token_that_is_no_longer_good_does_not_end_the_conversation(
    chromium: Browser, live: LiveGateway
) -> None:
    async with visit(chromium, live.gateway.url) as page:
        await say(page, "Hello?")
        await page.until_text(".reply", "Try again.")
        before = live.session
        live.conversations.refusals.append(refusal(ErrorCode.PROTOCOL_VIOLATION, "the token was used before"))
        before.emit(GoingAway("stale", 5_000, 60_000))
        await until(lambda: live.session is not before)
        assert live.session.start.resume_token is None
        await page.until_text(".divider", "The conversation begins anew")


async def test_a_lost_connection_is_opened_again(chromium: Browser, live: LiveGateway) -> None:
    async with visit(chromium, live.gateway.url) as page:
        await say(page, "Hello?")
        await page.until_text(".reply", "Try again.")
        before = live.session
        before.emit(Failure(None, ErrorCode.INTERNAL, "oh"))
        before.end()
        await page.until_text("#connection", "Connecting again")
        await page.until_text("#connection", "Connected")
        assert live.session is not before


async def test_a_conversation_that_was_idle_is_left_alone(chromium: Browser) -> None:
    conversations = ScriptedConversations(AnsweringSession)
    limits = {"max_idle_ms": 300}
    async with live_gateway(conversations, limits=limits) as live, visit(chromium, live.gateway.url) as page:
        await say(page, "Hello?")
        await page.until_text("#notice", "Nothing was said for a long time")
        assert await page.text("#connection") == "Not connected"
        assert await page.page.is_hidden("#problem")
        assert len(conversations.opened) == 1


def refused(page: Visit) -> list[str]:
    """What the browser said of conversations that could not be opened."""
    return [complaint for complaint in page.complaints if "WebSocket connection to" in complaint]


async def test_a_server_that_is_gone_is_said_to_be(chromium: Browser) -> None:
    conversations = ScriptedConversations(AnsweringSession)
    async with live_gateway(conversations) as live, visit(chromium, live.gateway.url) as page:
        await page.page.clock.install()
        await say(page, "Hello?")
        await page.until("() => taste.conversation.isOpen")
        await page.page.clock.pause_at(await page.page.evaluate("Date.now()") + 1)  # no try while it is stopping
        await live.gateway.stop()
        await page.until("() => taste.conversation.state === 'retrying'")
        async with asyncio.timeout(30):
            while "The server cannot be reached." not in await page.text("#problem-text"):
                await page.page.clock.run_for(10_000)
        assert len(refused(page)) == 5
        assert all("ERR_CONNECTION_REFUSED" in complaint for complaint in refused(page))
        others = [complaint for complaint in page.complaints if complaint not in refused(page)]
        assert all("Failed to load resource" in complaint for complaint in others), "the icon may come too late"
        page.complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_a_phone(chromium: Browser, live: LiveGateway, scheme: str, tmp_path: Path) -> None:
    async with visit(chromium, live.gateway.url, color_scheme=scheme, **PHONE) as page:
        await say(page, "A question with averyveryverylongwordthatfitsnowhere" + "x" * 60)
        await page.until_text(".reply", "Try again.")
        assert await page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
        for name in ("#talk", "#stop", "#say", "#settings > summary"):
            box = await page.page.locator(name).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 375
            assert box["y"] + box["height"] <= 667
            assert box["height"] >= 32, "large enough for a finger"
        picture = await page.page.screenshot(path=tmp_path / f"{scheme}.png")
        assert picture.startswith(b"\x89PNG")
