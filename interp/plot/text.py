"""Text that ends up in figures: escaping of what comes from outside, and how numbers are written.

Plotly reads a small HTML (`<b>`, `<a>`, `<span>`), entities and TeX between dollar signs in every label and hover
text. Tokens and names come from models and files, so each of them goes through `safe` before plotly sees it.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

MINUS = "\u2212"
_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("$"): "&#36;"}
_CONTROL = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}


def visible(token: str) -> str:
    """`token` with nothing hidden: line ends and tabs as signs, other unprintable characters as `\\u....`.

    >>> visible("a\\n\\u202eb")
    'a↵\\\\u202eb'
    """
    return "".join(_CONTROL.get(ch) or (ch if ch.isprintable() else f"\\u{ord(ch):04x}") for ch in str(token))


def safe(text: Any) -> str:
    """`text` as plotly has to get it to show exactly these characters: no tag, entity or TeX is read into it.

    >>> safe("<b>5 & $6</b>")
    '&lt;b&gt;5 &amp; &#36;6&lt;/b&gt;'
    """
    return visible(str(text)).translate(_ESCAPES)


def token_label(token: str, limit: int = 14) -> str:
    """A token as an axis label: without its leading space, cut to `limit` characters, escaped."""
    shown = visible(token)
    shown = shown.strip(" ") or "\u00b7" * max(1, len(shown))
    if len(shown) > limit:
        shown = shown[: limit - 1] + "\u2026"
    return safe(shown)


def shown_length(label: str) -> int:
    """Characters that a label of `safe` or `token_label` shows."""
    return len(html.unescape(label))


def token_quote(token: str) -> str:
    """A token as it is, spaces included, in quotes and escaped: for hover texts."""
    return f"\u201c{safe(token)}\u201d"


def number(value: float, digits: int = 2) -> str:
    """`value` with a true minus sign; a dash where there is none.

    >>> number(-0.126), number(float("nan"))
    ('\u22120.13', '\u2013')
    """
    if value is None or not math.isfinite(value):
        return (
            "\u2013" if value is None or math.isnan(value) else ("\u221e" if value > 0 else MINUS + "\u221e")
        )
    text = f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """Like `number`, with a plus sign for what is above zero."""
    text = number(value, digits)
    return "+" + text if math.isfinite(value) and value > 0 and text.strip("0.") else text


def percent(part: float, whole: float = 1.0, digits: int = 1) -> str:
    """`part / whole` in per cent."""
    return f"{number(100 * part / whole, digits)}%" if whole else "\u2013"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """`1 head`, `2 heads`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def listed(names: Iterable[Any]) -> str:
    """Names as a sentence lists them: `a, b and c`."""
    parts = [str(name) for name in names]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def wrapped(text: str, width_px: float, font_px: float) -> list[str]:
    """`text` broken into lines that fit `width_px` at `font_px` (widths of a sans-serif, on the safe side)."""
    return textwrap.wrap(text, max(12, int(width_px / (0.53 * font_px))), break_long_words=False) or [""]


def joined(parts: Sequence[str], separator: str = " \u00b7 ") -> str:
    """The parts that are not empty, with a separator between them."""
    return separator.join(part for part in parts if part)
