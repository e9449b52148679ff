"""`interp sweep`: ablations at scale, from a spec to one table; run again, it goes on."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import Json, emit, say
from interp.cli.tasks import parameters

if TYPE_CHECKING:
    from interp.sweep.run import Sweep, Told

app = typer.Typer(
    help="Ablation sweeps: models x tasks x locators x cuts x seeds, from a YAML spec.", no_args_is_help=True
)

Spec = Annotated[str, typer.Argument(help="A YAML file, or the name of a ready spec.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A field of the spec by its dotted name; may be repeated."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the sweep; default runs/NAME.")]
Store = Annotated[Path | None, typer.Option(help="Folder of results, where several sweeps share one.")]


@app.command()
def run(
    spec: Spec,
    set_: Set = None,
    out: Out = None,
    store: Store = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try units again that failed before.")
    ] = False,
    how: Annotated[
        str, typer.Option("--executor", help="Where units run: serial (this process), ray or slurm.")
    ] = "serial",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help="Of the executor: workers, address, gpus, cpus (ray); workers, partition, time, gpus, cluster, ... "
            "(slurm); may be repeated.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run what is left of a sweep and write its merged table; a unit that fails does not stop the rest."""
    from interp.sweep.executors import executor

    runner = executor(how, **parameters(option))
    sweep = _sweep(spec, set_, out, store)
    say("sweep", f"{sweep.spec.name}: {len(sweep.jobs())} units in {sweep.folder}")
    count = sweep.run(runner, failed=retry_failed, told=_teller())
    table = sweep.merge() if count["done"] + count["there"] else None
    told: dict[str, Any] = {
        "folder": str(sweep.folder),
        "table": "" if table is None else str(table),
        **{state: count[state] for state in ("done", "there", "failed")},
    }
    emit(told, json)
    if count["failed"]:
        failed = "unit" if count["failed"] == 1 else "units"
        say(
            "failed",
            f"{count['failed']} {failed}: `interp sweep status {spec}` says why, --retry-failed tries again",
        )
        raise typer.Exit(1)


@app.command()
def status(spec: Spec, set_: Set = None, out: Out = None, store: Store = None, json: Json = False) -> None:
    """Say of every unit whether it is done, running, waiting or failed, and why it failed; nothing is run."""
    frame = _sweep(spec, set_, out, store).status()
    emit(frame.drop(columns=[] if json else ["key"]), json)
    found = Counter(frame["state"])
    say("units", ", ".join(f"{found[s]} {s}" for s in ("done", "running", "waiting", "failed")))


@app.command()
def merge(spec: Spec, set_: Set = None, out: Out = None, store: Store = None, json: Json = False) -> None:
    """Write the table of all units that are done, in the order of the spec, and say where it is."""
    sweep = _sweep(spec, set_, out, store)
    path = sweep.merge()
    states = sweep.status()["state"]
    emit({"table": str(path), "units": int((states == "done").sum()), "of": len(states)}, json)


@app.command()
def figures(
    spec: Spec,
    set_: Set = None,
    out: Out = None,
    store: Store = None,
    to: Annotated[Path | None, typer.Option(help="Where they go; default FOLDER/figures.")] = None,
    json: Json = False,
) -> None:
    """Draw what is done: dose curves, layer profiles, mechanism x task; each a page, with its table beside it."""
    from interp.sweep.figures import figures_of

    sweep = _sweep(spec, set_, out, store)
    paths = figures_of(sweep.to_frame(), to or sweep.folder / "figures")
    emit([{"file": str(path)} for path in paths], json)


@app.command("list")
def list_ready(json: Json = False) -> None:
    """Show the ready specs, and how many units each has."""
    from interp.sweep.spec import read_sweep, ready

    rows = []
    for name in ready():
        spec = read_sweep(name)
        rows.append(
            {"name": name, "units": len(spec.units()), "models": ", ".join(m.model for m in spec.models)}
        )
    emit(rows, json)


def _sweep(spec: str, set_: list[str] | None, out: Path | None, store: Path | None) -> Sweep:
    """The sweep of the options; its spec is read and checked before any folder is made."""
    from interp.sweep.run import Sweep
    from interp.sweep.spec import read_sweep

    asked = read_sweep(spec, parameters(set_))
    return Sweep(asked, out or Path("runs") / asked.name.replace(" ", "-"), store)


def _teller() -> Told:
    """A line a unit that ends, with the time left at the pace of the units that were run."""
    begun, ran = time.monotonic(), 0

    def told(done: Any, job: Any, settled: int, of: int) -> None:
        nonlocal ran
        if done.state == "there":
            return
        ran += 1
        left = (time.monotonic() - begun) / ran * (of - settled)
        what = f"{settled}/{of} {done.state}: {job.unit.label}, {done.seconds:.1f} s"
        if done.error:
            what += f": {done.error}"
        say("unit", what + (f"; about {_time(left)} left" if settled < of else ""))

    return told


def _time(seconds: float) -> str:
    """A stretch of time in words of one unit or two.

    >>> _time(42.4), _time(600), _time(7800)
    ('42 s', '10 min', '2 h 10 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
