"""A Chromium for the tests of figures and pages, offline, that notes all it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip


@dataclass
class Opened:
    """A page, and what its browser said while it was open."""

    page: Any
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def chromium(path: str) -> Iterator[Any]:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, **context: Any) -> Iterator[Opened]:
    """A fresh offline page that keeps console messages, page errors and requests."""
    inside = browser.new_context(offline=True, **context)
    out = Opened(inside.new_page())
    out.page.on("console", lambda message: out.said.append(f"{message.type}: {message.text}"))
    out.page.on("pageerror", lambda error: out.said.append(f"error: {error}"))
    out.page.on("request", lambda request: out.requests.append(request.url))
    try:
        yield out
    finally:
        inside.close()


OVERLAPS = """
(figure) => {
  const frame = figure.querySelector(".main-svg").getBoundingClientRect();
  const drawn = (t) => t.textContent.trim() && t.getClientRects().length;
  const texts = [...figure.querySelectorAll("svg text")].filter(drawn);
  const boxes = texts.map((t) => {
    const box = t.getBoundingClientRect();
    const upright = box.height > box.width && t.textContent.length > 2 && !t.querySelector("tspan");
    // A line's box is higher than its letters.
    const [dx, dy] = upright ? [0.18 * box.width, 0] : [0, 0.18 * Math.min(box.height, 16)];
    return {
      text: t.textContent, left: box.left + dx, right: box.right - dx, top: box.top + dy, bottom: box.bottom - dy,
      shown: getComputedStyle(t).opacity !== "0" && getComputedStyle(t).visibility !== "hidden",
    };
  }).filter((box) => box.shown && box.right > box.left);
  const found = [];
  for (const box of boxes) {
    const across = box.left < frame.left - 1 || box.right > frame.right + 1;
    if (across || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) found.push(`cut off: ${box.text}`);
  }
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 1) found.push(`overlap: ${a.text} | ${b.text}`);
  }));
  return found;
}
"""
"""Texts of a drawn plotly figure that lie on each other or stick out of it."""
