"""`interp memorization`: models whose memory is known, and what they replicate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.console import Json, emit, progress
from interp.cli.options import Seed
from interp.errors import UsageError

app = typer.Typer(
    help="Memorized items: train a pipeline that has them, find them, delete them, attack the deletion.",
    no_args_is_help=True,
)


@app.command()
def train(
    preset: Annotated[
        str, typer.Option(help="tiny (seconds, for tests), quick, or full (with graded exposures).")
    ] = "full",
    seed: Seed = 0,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="The same training without the memorized items.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the trained folder here; it must not exist.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train anew, whatever the cache has.")] = False,
    check: Annotated[bool, typer.Option(help="Sample the prompts and show what is replicated.")] = True,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance of these samples.")] = 1.0,
    json: Json = False,
) -> None:
    """Train the tiny text-to-image pipeline on digits, some shown hundreds of times; it is kept in the cache."""
    if out is not None and out.exists():
        raise UsageError(f"{out} exists; give a folder that does not")
    from interp.models.zoo.digits.subject import digits_pipeline, export, trained
    from interp.models.zoo.digits.subject import preset as recipe_of

    recipe = recipe_of(preset, seed=seed, oracle=oracle)
    with progress("training") as report:
        folder = trained(recipe, force=force, progress=report)
    if out is not None:
        export(folder, out)
        folder = out
    if not check:
        emit({"folder": folder, "preset": preset, "seed": seed, "oracle": oracle}, json)
        return
    from interp.measure.memorization.exposures import replication
    from interp.measure.memorization.extraction import rates
    from interp.models.zoo.digits.data import GROUPS

    pipeline = digits_pipeline(recipe)
    with progress("sampling") as report:
        table = replication(pipeline, recipe, groups=GROUPS, guidance=guidance, progress=report)
    found = rates(table, by=("group", "exposures"))
    if json:
        emit({"folder": folder, "fingerprint": pipeline.fingerprint, "rates": found}, json)
        return
    emit({"folder": folder, "fingerprint": pipeline.fingerprint}, json)
    emit(found[found.metric == "extracted_image"], json)
