"""The browser that is on the machine, with a microphone that plays a recording."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
]
PATIENCE_MS = 20_000


def why_no_browser() -> str | None:
    """Why there can be no browser here; None when there can."""
    if find_spec("playwright") is None:
        return "playwright is not installed"
    return None if executable() else "no chromium is on this machine"


def executable() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@asynccontextmanager
async def browser(microphone: Path | None = None) -> AsyncIterator[Browser]:
    """A browser whose microphone plays `microphone` once, then silence; without one it has no microphone."""
    from playwright.async_api import async_playwright

    flags = [f"--use-file-for-fake-audio-capture={microphone}%noloop"] if microphone else []
    missing = [] if microphone else ["--use-fake-device-for-media-stream"]
    async with async_playwright() as playwright:
        found = await playwright.chromium.launch(
            executable_path=executable(), args=[flag for flag in FLAGS if flag not in missing] + flags
        )
        try:
            yield found
        finally:
            await found.close()


@dataclass
class Visit:
    """A page that somebody looks at."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    async def text(self, selector: str) -> str:
        return " ".join(await self.page.locator(selector).all_inner_texts())

    async def until(self, expression: str, argument: Any = None) -> Any:
        """The value of a JavaScript expression, once it is true."""
        handle = await self.page.wait_for_function(expression, arg=argument, timeout=PATIENCE_MS, polling=20)
        return await handle.json_value()

    async def until_text(self, selector: str, text: str) -> None:
        """Wait until `text` is in what `selector` shows."""
        await self.until(
            "([selector, text]) => [...document.querySelectorAll(selector)].some((e) => e.textContent.includes(text))",
            [selector, text],
        )


@asynccontextmanager
async def visit(browser: Browser, url: str, *, allowed: bool = True, **context: Any) -> AsyncIterator[Visit]:
    """`url`, by somebody who lets it have the microphone, or does not; any complaint of the browser's is an error."""
    permissions = ["microphone"] if allowed else []
    opened = await browser.new_context(permissions=permissions, **context)
    try:
        page = await opened.new_page()
        page.set_default_timeout(PATIENCE_MS)
        found = Visit(page)
        page.on("console", lambda said: found.complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        await page.goto(url)
        yield found
        assert found.complaints == []
    finally:
        await opened.close()
