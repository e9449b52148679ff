"""What all commands share: where they print, how they show tables and progress."""

from __future__ import annotations

import json as _json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from interp.models.cache import Progress

if TYPE_CHECKING:
    import pandas as pd

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
"""The option of every command that prints a result."""

console = Console(highlight=False)
"""Results: stdout."""

err = Console(stderr=True, highlight=False)
"""Messages and progress: stderr."""

_PIPE_WIDTH = 200
_LINE_EVERY = 10.0


def say(kind: str, message: str) -> None:
    """One line on stderr, `interp: <kind>: <message>`, whatever line breaks or markup the message holds."""
    line = Text.assemble(("interp: ", "dim"), (f"{kind}: ", "bold"), " ".join(message.split()))
    err.print(line, soft_wrap=True)


def emit(result: pd.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Any], json: bool) -> None:
    """Print a result on stdout: a frame or a list of rows as a table, a mapping as two columns; or all as JSON."""
    if json:
        print(_json.dumps(_plain(result), ensure_ascii=False, indent=1))
        return
    if isinstance(result, Mapping):
        table = Table(show_header=False, box=None)
        table.add_column(style="bold")
        for key, value in result.items():
            table.add_row(str(key), Text(_cell(value)))
    else:
        rows = _plain(result)
        table = Table(box=box.SIMPLE_HEAD)
        for key in rows[0] if rows else ["(nothing)"]:
            number = any(isinstance(row[key], (int, float)) for row in rows)
            table.add_column(str(key), justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row.values()))
    # A pipe has no width: rich would squeeze the table into 80 columns.
    wide = console if console.is_terminal else Console(width=_PIPE_WIDTH, highlight=False)
    wide.print(table)


def _plain(value: Any) -> Any:
    """JSON-able data: frames as rows, NaN as null, what is unknown as text."""
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        value = value.to_dict(orient="records")
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show long work on stderr: a bar on a terminal, else a plain line for each tenth of it or every ten seconds.

    Gives the `Progress` to hand to the work.
    """
    with _bar(what) if err.is_terminal else _lines(what) as report:
        yield report


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich import progress as bars

    shown = bars.Progress(
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=err,
        transient=True,
    )
    with shown:
        task = shown.add_task(what, total=None, note="")

        def report(done: int, total: int, note: str = "") -> None:
            shown.update(task, completed=done, total=total or None, note=note)

        yield report


@contextmanager
def _lines(what: str) -> Iterator[Progress]:
    start = time.monotonic()
    last_tenth, last_time, last_note = -1, start, ""

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last_tenth, last_time, last_note
        now = time.monotonic()
        tenth = 10 * done // total if total else -1
        stage = not total and note != last_note
        if not (stage or tenth > last_tenth or now - last_time > _LINE_EVERY):
            return
        last_tenth, last_time, last_note = tenth, now, note
        count = f"{done}/{total}" if total else str(done) if done else ""
        words = " ".join(word for word in (count, note) if word)
        print(f"{what}: {words} [{now - start:.0f} s]", file=sys.stderr, flush=True)

    yield report
