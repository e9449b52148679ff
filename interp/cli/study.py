"""`interp study`: whole studies as jobs that go on where they stopped."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from interp.cli.console import Json, emit, progress, say
from interp.cli.options import DeviceOfSpec, DtypeOfSpec, Field, ModelOfSpec, SeedOfSpec, SpecFile, spec_of

app = typer.Typer(
    help="Whole studies: tables in one folder, gone on with where they stopped.", no_args_is_help=True
)

Out = Annotated[Path | None, typer.Option(help="Run folder; default runs/STUDY-MODEL.")]
Quick = Annotated[bool, typer.Option("--quick", help="Minutes in place of an hour.")]


class _Study(NamedTuple):
    """A study as the command line has it; its modules are imported when it is run.

    Attributes:
        folder: what its run folder is called, before the model.
        spec: `module:class` of what is asked for.
        run: module of its function `run`.
        says: what it does, in a sentence.
        model: of studies that train what they look at, the one that is taken where none is named.
    """

    folder: str
    spec: str
    run: str
    says: str
    model: str | None = None


def _of(package: str, spec: str, says: str, folder: str = "", model: str | None = None) -> _Study:
    """A study in a package of its own."""
    home = f"interp.studies.{package}"
    return _Study(folder or package, f"{home}.spec:{spec}", f"{home}.study", says, model)


_STUDIES = {
    "retrieval-heads": _Study(
        "heads",
        "interp.studies.spec:HeadsSpec",
        "interp.studies.heads",
        "Score the heads on a grid of needles, cut them, and see what goes and what stays. Run again, it goes on.",
    ),
    "ioi": _of(
        "ioi",
        "IOISpec",
        "Find the circuit for indirect objects stage by stage, cut it, and hold its edges against the weights.",
    ),
    "laundry": _of(
        "laundry",
        "LaundrySpec",
        "Find the channel that recall from a list goes through, cut it, and edit it so that recall gets better.",
    ),
    "circuit-reuse": _of(
        "reuse",
        "ReuseSpec",
        "Find a circuit for each task, cut each on every task, and repair heads of Colored Objects.",
    ),
    "facts": _of(
        "facts",
        "FactsSpec",
        "Count what the model knows and why, trace facts by scenario, and tell which published findings hold.",
    ),
    "conflict": _of(
        "conflict",
        "ConflictSpec",
        "Set evidence against what the model knows, find the heads and MLPs of either side, and move the balance.",
    ),
    "dissociation": _of(
        "dissociation",
        "DissociationSpec",
        "Cut fact MLPs and retrieval heads, each on facts and on what stands in the context: do they come apart?",
    ),
    "prior": _of(
        "prior",
        "PriorSpec",
        "See how priors decide answers, find the layers that go with them, and tune these against random ones.",
    ),
    "editing": _of(
        "editing",
        "EditingSpec",
        "Write other answers into known facts, one at a time and many at once, and see what else that changes.",
    ),
    "memorization": _of(
        "memorization",
        "MemorizationSpec",
        "Train pipelines that memorize pictures, locate and delete these, and attack the deletion.",
        model="full",
    ),
    "injection": _of(
        "injection",
        "InjectionSpec",
        "Put sequences into known neurons, find them, delete them and what else is memorized, and try to get it back.",
    ),
}
"""Every study, by its command."""


@app.callback()
def _group() -> None:
    """A group also while it holds one command."""


def _command(name: str) -> Callable[..., None]:
    """The command of a study whose options are those that all share."""

    def study(
        model: ModelOfSpec = None,
        out: Out = None,
        quick: Quick = False,
        spec: SpecFile = None,
        set_: Field = None,
        seed: SeedOfSpec = None,
        device: DeviceOfSpec = None,
        dtype: DtypeOfSpec = None,
        json: Json = False,
    ) -> None:
        _run(name, model, out, quick, spec, set_, json, seed=seed, device=device, dtype=dtype)

    return study


def dissociation(
    model: ModelOfSpec = None,
    out: Out = None,
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
    given = None if heads is None else str(heads)
    _run(
        "dissociation",
        model,
        out,
        quick,
        spec,
        set_,
        json,
        heads=given,
        seed=seed,
        device=device,
        dtype=dtype,
    )


for _name, _study in _STUDIES.items():
    app.command(_name, help=_study.says)(dissociation if _name == "dissociation" else _command(_name))


def _run(
    name: str,
    model: str | None,
    out: Path | None,
    quick: bool,
    spec: Path | None,
    set_: list[str] | None,
    json: bool,
    **options: Any,
) -> None:
    """A study run into the folder that is asked for, or one of its name and the model's; and what was computed."""
    study = _STUDIES[name]
    module, _, kind = study.spec.partition(":")
    # A spec that is given names its own.
    wanted = model or (None if spec is not None else study.model)
    asked = spec_of(
        getattr(import_module(module), kind), f"study {name}", wanted, spec, quick, set_, **options
    )
    folder = out or Path("runs") / f"{study.folder}-{Path(asked.model).name}"
    job = import_module(study.run).run(asked, folder, stage=progress)
    if json:
        emit({"folder": str(folder), "done": job.done, "skipped": job.skipped}, json)
        return
    say("done", f"{len(job.done)} parts computed, {len(job.skipped)} were there")
    say("tables", str(folder.resolve()))
