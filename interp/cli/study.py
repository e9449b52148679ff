"""`interp study`: whole studies as jobs that go on where they stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.console import Json, emit, progress, say
from interp.cli.tasks import parameters
from interp.errors import UsageError

app = typer.Typer(
    help="Whole studies: tables in one folder, gone on with where they stopped.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """A group also while it holds one command."""


@app.command("retrieval-heads")
def retrieval_heads(
    model: Annotated[
        str | None, typer.Argument(help="A default model (smollm2), a hub id, a folder or a .gguf file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/heads-MODEL.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes in place of an hour.")] = False,
    spec: Annotated[Path | None, typer.Option(help="A spec.yaml in place of the options.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A field of the spec; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn; default 0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    json: Json = False,
) -> None:
    """Score the heads on a grid of needles, cut them, and see what goes and what stays. Run again, it goes on."""
    from interp.studies.heads import run
    from interp.studies.spec import HeadsSpec

    chosen = _chosen(HeadsSpec, "retrieval-heads", model, spec, quick, seed, device, dtype, set_)
    folder = out or Path("runs") / f"heads-{Path(chosen.model).name}"

    _told(run(chosen, folder, stage=progress), folder, json)


@app.command("ioi")
def ioi(
    model: Annotated[
        str | None, typer.Argument(help="A default model (smollm2), a hub id, a folder or a .gguf file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/ioi-MODEL.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts and controls.")] = False,
    spec: Annotated[Path | None, typer.Option(help="A spec.yaml in place of the options.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A field of the spec; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn; default 0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    json: Json = False,
) -> None:
    """Find the circuit for indirect objects stage by stage, cut it, and hold its edges against the weights."""
    from interp.studies.ioi.spec import IOISpec
    from interp.studies.ioi.study import run

    chosen = _chosen(IOISpec, "ioi", model, spec, quick, seed, device, dtype, set_)
    folder = out or Path("runs") / f"ioi-{Path(chosen.model).name}"
    _told(run(chosen, folder, stage=progress), folder, json)


@app.command("laundry")
def laundry(
    model: Annotated[
        str | None, typer.Argument(help="A default model (smollm2), a hub id, a folder or a .gguf file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/laundry-MODEL.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes in place of an hour.")] = False,
    spec: Annotated[Path | None, typer.Option(help="A spec.yaml in place of the options.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A field of the spec; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn; default 0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    json: Json = False,
) -> None:
    """Find the channel that recall from a list goes through, cut it, and edit it so that recall gets better."""
    from interp.studies.laundry.spec import LaundrySpec
    from interp.studies.laundry.study import run

    chosen = _chosen(LaundrySpec, "laundry", model, spec, quick, seed, device, dtype, set_)
    folder = out or Path("runs") / f"laundry-{Path(chosen.model).name}"
    _told(run(chosen, folder, stage=progress), folder, json)


@app.command("circuit-reuse")
def circuit_reuse(
    model: Annotated[
        str | None, typer.Argument(help="A default model (smollm2), a hub id, a folder or a .gguf file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/reuse-MODEL.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes in place of an hour.")] = False,
    spec: Annotated[Path | None, typer.Option(help="A spec.yaml in place of the options.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A field of the spec; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn; default 0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    json: Json = False,
) -> None:
    """Find a circuit for each task, cut each on every task, and repair heads of Colored Objects."""
    from interp.studies.reuse.spec import ReuseSpec
    from interp.studies.reuse.study import run

    chosen = _chosen(ReuseSpec, "circuit-reuse", model, spec, quick, seed, device, dtype, set_)
    folder = out or Path("runs") / f"reuse-{Path(chosen.model).name}"
    _told(run(chosen, folder, stage=progress), folder, json)


def _chosen(
    kind: Any,
    command: str,
    model: str | None,
    spec: Path | None,
    quick: bool,
    seed: int | None,
    device: str | None,
    dtype: str | None,
    set_: list[str] | None,
) -> Any:
    """The spec that the options ask for."""
    from pydantic import ValidationError

    from interp.runs import read_spec

    changes: dict[str, Any] = {
        k: v for k, v in {"seed": seed, "device": device, "dtype": dtype}.items() if v is not None
    }
    changes |= parameters(set_)
    try:
        if spec is not None:
            if not spec.is_file():
                raise UsageError(f"there is no spec '{spec}'")
            return kind(**(read_spec(spec) | ({"model": model} if model else {}) | changes))
        if model is None:
            raise UsageError(f"name a model: interp study {command} smollm2")
        return kind.quick(model, **changes) if quick else kind(model=model, **changes)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = f"spec field '{where}': {first['msg']}" if where else f"spec: {first['msg']}"
        raise UsageError(told + (f" (given: {first.get('input')})" if where else "")) from error


def _told(job: Any, folder: Path, json: bool) -> None:
    """What was computed, and where it is."""
    if json:
        emit({"folder": str(folder), "done": job.done, "skipped": job.skipped}, json)
        return
    say("done", f"{len(job.done)} parts computed, {len(job.skipped)} were there")
    say("tables", str(folder.resolve()))
