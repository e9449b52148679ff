"""`interp models`: the default models and the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from interp.cli.console import Json, console, emit, progress

app = typer.Typer(help="The default models: what there is, and fetching them.", no_args_is_help=True)


@app.command("list")
def list_models(json: Json = False) -> None:
    """Show the default models and whether they are in the cache."""
    from interp.models import registry
    from interp.models.cache import cache_dir

    rows = registry.status()
    if json:
        emit(rows, json)
        return
    for row in rows:
        row["size"] = f"{row['bytes'] / 1e6:.0f} MB" if row["bytes"] else None
    emit([{key: row[key] for key in ("name", "state", "size", "licence", "summary")} for row in rows], json)
    console.print(f"cache: {cache_dir()}", soft_wrap=True, markup=False)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name that `interp models list` shows.")],
    force: Annotated[bool, typer.Option("--force", help="Make it anew, whatever is in the cache.")] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check the content of every file; make a damaged copy anew."),
    ] = False,
    json: Json = False,
) -> None:
    """Download a default model, check its hashes and convert it, unless that is done already."""
    from interp.models import registry

    with progress(f"fetching {name}") as report:
        path = registry.fetch(name, force=force, verify=verify, progress=report)
    if json:
        emit({"name": name, "path": str(path)}, json)
    else:
        console.print(f"{name} is ready in {path}", soft_wrap=True, markup=False)
