"""Options that several commands have, and the spec that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.tasks import parameters
from interp.errors import UsageError

Model = Annotated[str, typer.Argument(help="A default model (smollm2), a hub id, a folder or a .gguf file.")]
TaskName = Annotated[
    str, typer.Option("--task", help="A name that `interp tasks list` shows, or a .jsonl file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the task; repeatable."),
]
N = Annotated[int, typer.Option("-n", min=1, help="Number of examples.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="auto (float32 on the CPU), float32, bfloat16, float16.")]
Save = Annotated[Path | None, typer.Option("--save", help="Write the whole table here, as .parquet or .csv.")]

# Of commands that run a spec: what is not given is what the spec, or its file, has.
ModelOfSpec = Annotated[
    str | None, typer.Argument(help="A default model (smollm2), a hub id, a folder or a .gguf file.")
]
SpecFile = Annotated[Path | None, typer.Option(help="A spec.yaml in place of the options.")]
Field = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A field of the spec; repeatable.")
]
SeedOfSpec = Annotated[int | None, typer.Option(help="Seed of everything that is drawn; default 0.")]
DeviceOfSpec = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
DtypeOfSpec = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")]


def spec_of(
    kind: Any,
    command: str,
    model: str | None,
    spec: Path | None,
    quick: bool,
    set_: list[str] | None,
    **options: Any,
) -> Any:
    """The spec of a kind that the options ask for.

    Args:
        command: what the user typed behind `interp`.
        options: fields of the spec that have options of their own; None where one is not given.

    Raises:
        UsageError: no model and no spec, or a field that cannot be; the message names it.
    """
    from pydantic import ValidationError

    from interp.runs import read_spec

    given = {"model": model, **options}
    changes = {name: value for name, value in given.items() if value is not None} | parameters(set_)
    try:
        if spec is not None:
            if not spec.is_file():
                raise UsageError(f"there is no spec '{spec}'")
            return kind(**(read_spec(spec) | changes))
        if "model" not in changes:
            raise UsageError(f"name a model: interp {command} smollm2")
        return (kind.quick if quick else kind)(**changes)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = f"spec field '{where}': {first['msg']}" if where else f"spec: {first['msg']}"
        raise UsageError(told + (f" (given: {first.get('input')})" if where else "")) from error
