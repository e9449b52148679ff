"""The page in Chromium: offline, quiet, by keyboard, in light and dark, wide and narrow."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.report import render
from tests.plot.chromium import OVERLAPS, Opened, chromium, opened
from tests.plot.frames import HOSTILE, write_run

READY = "html[data-ready]"
VISIBLE = "[data-figure]:visible"
PIXELS = """
async (data) => {
  const image = new Image();
  image.src = "data:image/png;base64," + data;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const { data: pixels } = context.getImageData(0, 0, canvas.width, canvas.height);
  const colors = new Set();
  let sum = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    sum += pixels[i] + pixels[i + 1] + pixels[i + 2];
    colors.add((pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2]);
  }
  return [sum / (0.75 * pixels.length), colors.size];
}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(write_run(tmp_path_factory.mktemp("run"))).as_uri()


@pytest.fixture(scope="module")
def running(browser: str) -> Iterator[Any]:
    with chromium(browser) as out:
        yield out


@pytest.fixture(scope="module")
def shown(running: Any, url: str) -> Iterator[Opened]:
    """The page, wide and light; tests leave it as they found it."""
    with opened(running, viewport={"width": 1280, "height": 900}, color_scheme="light") as out:
        out.page.on("dialog", lambda dialog: out.said.append(f"dialog: {dialog.message}"))
        out.page.goto(url)
        out.page.wait_for_selector(READY)
        yield out


def pixels(running: Any, picture: bytes) -> list[float]:
    """Mean brightness (0 to 255) and number of colours."""
    with opened(running) as blank:
        return blank.page.evaluate(PIXELS, base64.b64encode(picture).decode())  # type: ignore[no-any-return]


def test_nothing_is_said_and_nothing_is_asked_for(shown: Opened, url: str) -> None:
    assert shown.page.locator(".main-svg").count() > 9, "the figures are drawn"
    assert shown.said == []
    assert shown.requests == [url]


def test_the_policy_keeps_other_scripts_out(running: Any, url: str) -> None:
    with opened(running) as out:
        out.page.goto(url)
        out.page.wait_for_selector(READY)
        out.page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
            " document.body.append(s); }"
        )
        assert out.page.evaluate("() => window.bad") is None
        assert any("Content Security Policy" in line for line in out.said)
        refused = out.page.evaluate("() => fetch('https://example.org').then(() => 'sent', () => 'refused')")
        assert refused == "refused" and all(u.startswith("file:") for u in out.requests)


def test_hostile_tokens_are_shown_as_text(shown: Opened) -> None:
    button = shown.page.locator(".fold").first
    button.click()
    assert shown.page.get_by_text(HOSTILE, exact=True).first.is_visible()
    button.click()
    labels = " ".join(shown.page.locator("#patching .xtick text").all_text_contents())
    assert "<script>alert\u2026" in labels
    assert shown.page.locator("script").count() == 4
    assert not [line for line in shown.said if line.startswith("dialog")]


def test_no_label_lies_on_another(running: Any, url: str) -> None:
    for width in (1280, 900, 390):
        with opened(running, viewport={"width": width, "height": 900}) as out:
            out.page.goto(url)
            out.page.wait_for_selector(READY)
            found = {
                f.get_attribute("data-figure"): f.evaluate(OVERLAPS) for f in out.page.locator(VISIBLE).all()
            }
            assert len(found) == 16
            assert {name: bad for name, bad in found.items() if bad} == {}, f"at {width} px"
            assert out.page.evaluate("document.documentElement.scrollWidth") == width, "no sideways scrolling"


def test_the_keyboard_reaches_every_control(shown: Opened) -> None:
    page = shown.page
    page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    page.locator("body").evaluate("(b) => { b.tabIndex = -1; b.focus(); b.removeAttribute('tabindex'); }")
    wanted = page.evaluate(
        "() => [...document.querySelectorAll('a[href], button, select, summary, [tabindex=\"0\"]')]"
        ".filter((e) => e.checkVisibility()).length"
    )
    seen = []
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "() => { const e = document.activeElement; e.dataset.reached = 1; return e.id || e.className; }"
            )
        )
    assert seen[0] == "skip" and {"scheme", "head", "step", "prompt", "fold"} <= set(seen)
    missed = page.evaluate(
        "() => [...document.querySelectorAll('a[href], button, select, summary, [tabindex=\"0\"]')]"
        ".filter((e) => e.checkVisibility() && !e.dataset.reached).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert missed == []


def test_a_head_is_chosen_by_keyboard(shown: Opened) -> None:
    page = shown.page
    assert page.locator("#attention").is_visible()
    page.locator("#head").focus()
    page.keyboard.press("ArrowDown")
    page.locator("#head").evaluate("(s) => s.dispatchEvent(new Event('change'))")
    head = page.locator("#head").input_value()
    assert page.locator(f"#attention-{head}").is_visible() and not page.locator("#attention").is_visible()
    assert page.locator(f"#attention-{head} .main-svg").count() > 0, "drawn when shown"
    page.select_option("#step", "1")
    weights = page.evaluate(
        "() => [...document.querySelectorAll('#prompt [data-token]')]"
        ".map((t) => [t.textContent, +t.style.getPropertyValue('--weight')])"
    )
    tinted = [text for text, weight in weights if weight > 0.5]
    assert tinted == [" lantern"], "answer token 2 is copied from the needle's second token"
    page.select_option("#step", "")
    page.select_option("#head", "")
    assert page.locator("#attention").is_visible()


def test_folded_stretches_say_their_attention_and_open(shown: Opened) -> None:
    fold = shown.page.locator(".fold").first
    assert "tokens, attention 0.0" in fold.text_content()
    assert fold.get_attribute("aria-expanded") == "false"
    fold.press("Enter")
    assert fold.get_attribute("aria-expanded") == "true"
    fold.press("Enter")


def test_numbers_of_a_figure_open(shown: Opened) -> None:
    summary = shown.page.locator("#heads summary")
    summary.press("Enter")
    first = shown.page.locator("#heads tbody tr").first.text_content()
    assert first.startswith("L20H6")
    summary.press("Enter")


def test_light_and_dark_follow_the_system(running: Any, url: str) -> None:
    text = "() => getComputedStyle(document.querySelector('#ranking .xtick text')).fill"
    with opened(running, viewport={"width": 1280, "height": 900}, color_scheme="light") as out:
        out.page.goto(url)
        out.page.wait_for_selector(READY)
        light, light_text = out.page.screenshot(), out.page.evaluate(text)
        out.page.emulate_media(color_scheme="dark")
        out.page.wait_for_selector("[data-figure='ranking'][data-scheme='dark']")
        out.page.wait_for_timeout(300)
        dark, dark_text = out.page.screenshot(), out.page.evaluate(text)
        assert out.said == []
    (bright, many), (dim, as_many) = pixels(running, light), pixels(running, dark)
    assert bright > 190 and dim < 70
    assert many > 200 and as_many > 200, "there is more than an empty page"
    assert light_text == "rgb(31, 41, 51)" and dark_text == "rgb(230, 234, 240)"


def test_the_button_overrides_the_system(running: Any, url: str) -> None:
    with opened(running, color_scheme="dark") as out:
        out.page.goto(url)
        out.page.wait_for_selector(READY)
        assert out.page.locator("#scheme").text_content() == "Light colours"
        out.page.locator("#scheme").press("Enter")
        out.page.wait_for_selector("[data-figure='heads'][data-scheme='light']")
        assert (
            out.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(247, 248, 250)"
        )


def test_it_reads_without_scripts(running: Any, url: str) -> None:
    with opened(running, java_script_enabled=False) as out:
        out.page.goto(url)
        assert "The figures need JavaScript" in out.page.locator("noscript").inner_html()
        assert out.page.get_by_text(HOSTILE, exact=True).first.is_visible(), "nothing is folded away"
        assert out.page.locator("#where table.heads tbody tr").count() == 15


def test_it_prints_light_whatever_the_screen(running: Any, url: str, tmp_path: Path) -> None:
    with opened(running, viewport={"width": 1280, "height": 900}, color_scheme="dark") as out:
        out.page.goto(url)
        out.page.wait_for_selector(READY)
        out.page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
        out.page.wait_for_selector("[data-figure='heads'][data-scheme='light']")
        out.page.emulate_media(media="print")
        assert (
            out.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert not out.page.locator("nav").is_visible()
        out.page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").stat().st_size > 100_000
