"""The page in a real browser, in a conversation in which everything is real: who speaks, who listens, who answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytest_asyncio

from taste_grpc.audio import Waveform, write_wav
from tests.support.browser import Visit, browser, visit, why_no_browser
from tests.support.live_gateway import RealGateway, real_gateway
from tests.support.live_server import until
from tests.support.recordings import best_of_times

if TYPE_CHECKING:
    from playwright.async_api import Browser

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser())),
]

MICROPHONE_HZ = 48_000
SAID = "was the worst of times"
QUESTION = "What is your favourite animal?"


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person who waits for a moment, says one sentence and is silent."""
    moment = np.zeros(MICROPHONE_HZ // 2, np.float32)
    path = tmp_path_factory.mktemp("voice") / "sentence.wav"
    write_wav(path, Waveform(np.concatenate([moment, best_of_times(MICROPHONE_HZ), moment]), MICROPHONE_HZ))
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium(voice: Path) -> AsyncIterator[Browser]:
    async with browser(voice) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[RealGateway]:
    async with real_gateway(stream={"temperature": 0, "max_new_tokens": 60}) as found:
        yield found


async def hears_a_voice(page: Visit, turn: int) -> None:
    """Wait until the answer of `turn` sounds: as loud as speech, and up and down as speech goes."""
    levels = await page.until(
        """(turn) => {
            window.levels ??= {};
            const levels = window.levels[turn] ??= [];
            if (taste.player.turn === turn && taste.player.isPlaying) levels.push(taste.player.level);
            return levels.filter((level) => level > 0.05).length >= 20 && levels;
        }""",
        f"1:{turn}",
    )
    assert max(levels) < 1
    assert np.std(levels) > 0.01


async def test_somebody_is_answered_interrupts_that_and_goes_on_with_the_keyboard(
    chromium: Browser, live: RealGateway, tmp_path: Path
) -> None:
    async with visit(chromium, live.gateway.url + "?processing=off") as page:
        await page.page.click("#talk")
        await page.until_text("#phase", "Hearing you")
        await page.until_text(".you:not(.partial)", SAID)
        await hears_a_voice(page, turn=0)

        await page.page.click("#talk")  # which mutes it
        assert not await page.page.evaluate("taste.microphone.isOn")
        await page.page.click("#talk")
        await page.until_text(".mark", "interrupted")
        assert await page.page.evaluate("taste.player.turn !== '1:0' || !taste.player.isPlaying")
        assert (await page.text(".unheard")).strip(), "there was more of it"
        await page.until_text("#times-list", "Turn 1, answered")
        await page.until_text("article:nth-of-type(2) .you:not(.partial)", SAID)
        await hears_a_voice(page, turn=1)

        await page.page.focus("#say")
        await page.page.keyboard.type(QUESTION)
        await page.page.keyboard.press("Enter")
        await hears_a_voice(page, turn=2)
        assert await page.text("article:nth-of-type(3) .you") == QUESTION
        assert len((await page.text("article:nth-of-type(3) .reply")).split()) > 2
        assert await page.page.locator("article").count() == 3
        assert await page.page.is_hidden("#problem")
        picture = await page.page.screenshot(path=tmp_path / "conversation.png")
        assert picture.startswith(b"\x89PNG")
        await page.page.keyboard.press("Escape")
        await page.until("() => !taste.player.isPlaying")
    await until(lambda: live.conversations.open_sessions == 0)
