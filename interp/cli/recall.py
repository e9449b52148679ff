"""`interp tasks run`: what a model recalls of every task, over a ladder of sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import Json, emit, progress, say
from interp.cli.options import DeviceOfSpec, DtypeOfSpec, Field, ModelOfSpec, SeedOfSpec, SpecFile, spec_of
from interp.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("choice", "accuracy", "logit_diff")
"""What is shown of a rung; the table has more."""


def run(
    model: ModelOfSpec = None,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Tasks that `interp tasks list` shows, or .jsonl files."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every task in a natural language.")] = False,
    n: Annotated[int | None, typer.Option("-n", min=2, help="Examples a size; default 32.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/recall-MODEL.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Four examples a size.")] = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Ask tasks at every size of their ladders: accuracy, logit difference and chance. Run again, it goes on."""
    from interp.studies.recall.spec import RecallSpec, natural
    from interp.studies.recall.study import run as study

    if bool(names) == every and spec is None:
        both = "not both" if every else "or take all of them with --all"
        raise UsageError(f"name tasks, {both}: interp tasks run {model or 'smollm2'} niah multi_key")
    tasks = tuple(names) if names else natural() if every else None
    asked = spec_of(
        RecallSpec, "tasks run", model, spec, quick, set_, tasks=tasks, n=n, seed=seed, device=device, dtype=dtype
    )  # fmt: skip
    folder = out or Path("runs") / f"recall-{Path(asked.model).name}"
    job = study(asked, folder, stage=progress)
    _show(folder, job.done, job.skipped, json)


def _show(folder: Path, done: list[str], skipped: list[str], json: bool) -> None:
    """Every rung, and where its tables and page are."""
    import pandas as pd

    from interp.studies.recall.tables import counted

    table = pd.read_parquet(folder / "recall.parquet")
    if json:
        told: dict[str, Any] = {"folder": str(folder), "page": str(folder / "report.html"), "done": done}
        emit(told | {"skipped": skipped, "rungs": table.to_dict("records")}, json)
        return
    emit(shown(table), json)
    found = counted(table)
    for row in table[table["reason"] != ""].itertuples():
        say("not asked", f"{row.task} {row.param} {row.size}: {row.reason}")
    say("done", f"{len(done)} parts computed, {len(skipped)} were there")
    say("found", f"{len(table)} sizes: " + ", ".join(f"{count} {status}" for status, count in found.items()))
    say("page", str((folder / "report.html").resolve()))


def shown(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The table of rungs for a terminal: each metric with its interval."""
    rows = []
    for row in table.to_dict("records"):
        about = {
            "task": row["task"], "size": f"{row['param']} {row['size']}".strip(), "n": row["n"],
        }  # fmt: skip
        told = {m.replace("_", " "): _interval(row[m], row[f"{m}_lo"], row[f"{m}_hi"]) for m in METRICS}
        guess = f"{row['guess']:.3g}" if row["n"] else "-"
        rows.append({**about, **told, "a guess": guess, "status": row["status"]})
    return rows


def _interval(value: float, low: float, high: float) -> str:
    """A value with the ends of its interval, as far as there are any."""
    if value != value:
        return "-"
    return f"{value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low == low else "")
