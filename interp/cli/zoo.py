"""`interp zoo`: small models that learn to recall."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from interp.cli.console import Json, console, emit, progress

app = typer.Typer(
    help="Small models that learn to recall: training them, and what there is.", no_args_is_help=True
)

Seed = Annotated[int, typer.Option(min=0, help="Seed of weights and sequences.")]


@app.command("list")
def list_zoo(seed: Seed = 0, json: Json = False) -> None:
    """Show the presets, and how those in the cache were trained."""
    from interp.zoo import PRESETS, history

    rows = []
    for name, preset in PRESETS.items():
        found = history(name, seed=seed)
        row: dict[str, Any] = {"name": name, "what": preset.about, "state": "trained" if found else "absent"}
        last = _winner(found)[-1] if found else {}
        row |= {
            "rate": last.get("rate"),
            "steps": last.get("step"),
            "CPU s": _spent(found) if found else None,
        }
        row["accuracy"] = ", ".join(f"{k}: {v:.3f}" for k, v in last.items() if k.endswith("pairs"))
        rows.append(row)
    emit(rows, json)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A name that `interp zoo list` shows.")],
    seed: Seed = 0,
    rate: Annotated[
        list[float] | None, typer.Option(help="Learning rate, in place of the preset's; may be repeated.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Updates at each rate, at most; default the preset's.")
    ] = None,
    json: Json = False,
) -> None:
    """Train a model of the zoo, unless the cache has it, and say where it is: `--model FOLDER` takes it elsewhere."""
    from interp.zoo import folder_of, history

    changes: dict[str, Any] = {} if steps is None else {"steps": steps}
    if rate:
        changes["rates"] = tuple(rate)
    with progress(f"training {name}") as report:
        folder = folder_of(name, seed=seed, changes=changes, progress=report)
    found = history(name, seed=seed, changes=changes)
    assert found is not None
    if json:
        emit({"name": name, "seed": seed, "path": str(folder), **found}, json)
        return
    last = {row["rate"]: row for row in found["history"]}
    emit([{**row, "": "chosen" if own == found["rate"] else ""} for own, row in last.items()], json)
    console.print(f"{name} is ready in {folder}", soft_wrap=True, markup=False)


def _winner(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The looks at the model that was kept."""
    return [row for row in found["history"] if row["rate"] == found["rate"]]


def _spent(found: dict[str, Any]) -> float:
    """Processor time of all rates, in seconds."""
    return round(sum({row["rate"]: row["seconds"] for row in found["history"]}.values()), 1)
