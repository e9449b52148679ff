"""`interp study`: whole studies as jobs that go on where they stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.console import Json, emit, progress, say
from interp.cli.options import DeviceOfSpec, DtypeOfSpec, Field, ModelOfSpec, SeedOfSpec, SpecFile, spec_of

app = typer.Typer(
    help="Whole studies: tables in one folder, gone on with where they stopped.", no_args_is_help=True
)

Quick = Annotated[bool, typer.Option("--quick", help="Minutes in place of an hour.")]


@app.callback()
def _group() -> None:
    """A group also while it holds one command."""


@app.command("retrieval-heads")
def retrieval_heads(
    model: ModelOfSpec = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/heads-MODEL.")] = None,
    quick: Quick = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Score the heads on a grid of needles, cut them, and see what goes and what stays. Run again, it goes on."""
    from interp.studies.heads import run
    from interp.studies.spec import HeadsSpec

    asked = spec_of(
        HeadsSpec, "study retrieval-heads", model, spec, quick, set_, seed=seed, device=device, dtype=dtype
    )
    _run(run, asked, out, "heads", json)


@app.command("ioi")
def ioi(
    model: ModelOfSpec = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/ioi-MODEL.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts and controls.")] = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Find the circuit for indirect objects stage by stage, cut it, and hold its edges against the weights."""
    from interp.studies.ioi.spec import IOISpec
    from interp.studies.ioi.study import run

    asked = spec_of(IOISpec, "study ioi", model, spec, quick, set_, seed=seed, device=device, dtype=dtype)
    _run(run, asked, out, "ioi", json)


@app.command("laundry")
def laundry(
    model: ModelOfSpec = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/laundry-MODEL.")] = None,
    quick: Quick = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Find the channel that recall from a list goes through, cut it, and edit it so that recall gets better."""
    from interp.studies.laundry.spec import LaundrySpec
    from interp.studies.laundry.study import run

    asked = spec_of(
        LaundrySpec, "study laundry", model, spec, quick, set_, seed=seed, device=device, dtype=dtype
    )
    _run(run, asked, out, "laundry", json)


@app.command("circuit-reuse")
def circuit_reuse(
    model: ModelOfSpec = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/reuse-MODEL.")] = None,
    quick: Quick = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Find a circuit for each task, cut each on every task, and repair heads of Colored Objects."""
    from interp.studies.reuse.spec import ReuseSpec
    from interp.studies.reuse.study import run

    asked = spec_of(
        ReuseSpec, "study circuit-reuse", model, spec, quick, set_, seed=seed, device=device, dtype=dtype
    )
    _run(run, asked, out, "reuse", json)


@app.command("facts")
def facts(
    model: ModelOfSpec = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/facts-MODEL.")] = None,
    quick: Quick = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Count what the model knows and why, trace facts by scenario, and tell which published findings hold."""
    from interp.studies.facts.spec import FactsSpec
    from interp.studies.facts.study import run

    asked = spec_of(FactsSpec, "study facts", model, spec, quick, set_, seed=seed, device=device, dtype=dtype)
    _run(run, asked, out, "facts", json)


@app.command("conflict")
def conflict(
    model: ModelOfSpec = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/conflict-MODEL.")] = None,
    quick: Quick = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Set evidence against what the model knows, find the heads and MLPs of either side, and move the balance."""
    from interp.studies.conflict.spec import ConflictSpec
    from interp.studies.conflict.study import run

    asked = spec_of(
        ConflictSpec, "study conflict", model, spec, quick, set_, seed=seed, device=device, dtype=dtype
    )
    _run(run, asked, out, "conflict", json)


@app.command("dissociation")
def dissociation(
    model: ModelOfSpec = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/dissociation-MODEL.")] = None,
    quick: Quick = False,
    heads: Annotated[
        Path | None, typer.Option(help="List of retrieval heads, best first; default they are scored here.")
    ] = None,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Cut fact MLPs and retrieval heads, each on facts and on what stands in the context: do they come apart?"""
    from interp.studies.dissociation.spec import DissociationSpec
    from interp.studies.dissociation.study import run

    asked = spec_of(
        DissociationSpec,
        "study dissociation",
        model,
        spec,
        quick,
        set_,
        heads=None if heads is None else str(heads),
        seed=seed,
        device=device,
        dtype=dtype,
    )
    _run(run, asked, out, "dissociation", json)


@app.command("prior")
def prior(
    model: ModelOfSpec = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/prior-MODEL.")] = None,
    quick: Quick = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """See how priors decide answers, find the layers that go with them, and tune these against random ones."""
    from interp.studies.prior.spec import PriorSpec
    from interp.studies.prior.study import run

    asked = spec_of(PriorSpec, "study prior", model, spec, quick, set_, seed=seed, device=device, dtype=dtype)
    _run(run, asked, out, "prior", json)


@app.command("editing")
def editing(
    model: ModelOfSpec = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/editing-MODEL.")] = None,
    quick: Quick = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Write other answers into known facts, one at a time and many at once, and see what else that changes."""
    from interp.studies.editing.spec import EditingSpec
    from interp.studies.editing.study import run

    asked = spec_of(
        EditingSpec, "study editing", model, spec, quick, set_, seed=seed, device=device, dtype=dtype
    )
    _run(run, asked, out, "editing", json)


def _run(run: Callable[..., Any], spec: Any, out: Path | None, name: str, json: bool) -> None:
    """A study run into the folder that is asked for, or one of its name and the model's; and what was computed."""
    folder = out or Path("runs") / f"{name}-{Path(spec.model).name}"
    job = run(spec, folder, stage=progress)
    if json:
        emit({"folder": str(folder), "done": job.done, "skipped": job.skipped}, json)
        return
    say("done", f"{len(job.done)} parts computed, {len(job.skipped)} were there")
    say("tables", str(folder.resolve()))
