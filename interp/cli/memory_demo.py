"""`interp memorization demo`: the whole question in minutes, from a training to a deletion that is attacked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import Json, emit, progress, say
from interp.cli.options import Seed

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Tables = Mapping[str, "pd.DataFrame"]
_MEASURES = {"targeted": "A", "held_out": "B", "control": "controls", "alignment": "digit asked for"}
_DRAWN = ("none", "wanda reference", "wanda corrected", "activation", "nemo", "subspace", "flat")
_RULE = "wanda reference"
_MAIN = (
    "memorized items replicate",
    "an oracle, trained without the items",
    f"{_RULE}: what it was made for is erased beyond its control (ordinary)",
    f"{_RULE}: held-out memorized items are erased beyond every control",
    f"{_RULE}: ordinary prompts keep",
    f"{_RULE}: spares",
    f"{_RULE}: the deletion survives",
    "adversarial tuning: spares",
    "adversarial tuning: the deletion survives",
    "the attack gets nothing from the oracle",
    "the oracle is the floor",
)
"""How the findings begin that are shown: named before any run, whatever their verdicts."""
_BACK = {"targeted": "A got back", "held_out": "B got back", "unseen": "never trained, made up"}


def demo(
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/memorization-demo-SEED.")] = None,
    json: Json = False,
) -> None:
    """Train a pipeline that memorizes pictures and one that never saw them, delete, attack: one seed, minutes.

    Run again, it goes on where it stopped.
    """
    import pandas as pd

    from interp.studies.memorization.spec import MemorizationSpec
    from interp.studies.memorization.study import run

    folder = out or Path("runs") / f"memorization-demo-{seed}"
    start = time.monotonic()
    run(MemorizationSpec.quick(train_seeds=(seed,)), folder, stage=progress)
    names = ("samples", "doses", "edits", "recovery", "pictures", "findings")
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}
    from interp.plot import write_all

    made = {folder / "figures" / name: figure for name, figure in figures(tables).items()}
    written = write_all(made, ["html"], plotlyjs="directory")
    told = {"conditions": conditions(tables), "findings": findings(tables)}
    if json:
        emit({**told, "folder": folder, "figures": written}, json)
        return
    shown = main(told["findings"])
    emit(told["conditions"], json)
    emit(shown, json)
    every = folder.resolve() / "findings.parquet"
    say(
        "findings",
        f"{len(shown)} of {len(told['findings'])} shown, of the published rule; all are in {every}",
    )
    say("read it so", "A was located on, B is memorized as well; shares of samples or of pictures attacked")
    for path in written:
        say("wrote", str(path))
    say("done", f"in {(time.monotonic() - start) / 60:.1f} minutes; tables in {folder.resolve()}")


def conditions(tables: Tables) -> pd.DataFrame:
    """One row a condition: what prompts replicate, what is kept, and what the attack gets back."""
    import pandas as pd

    edits, recovery, samples = _beside(tables["edits"]), tables["recovery"], tables["samples"]
    rows: dict[str, dict[str, Any]] = {}
    for edit, own in edits.groupby("edit", sort=False):
        values = own.set_index("measure")["value"]
        name = "original" if edit == "none" else str(edit)
        rows[name] = {"dose": float(own["dose"].iloc[0])}
        rows[name] |= {title: values.get(measure) for measure, title in _MEASURES.items()}
    never = samples[(samples["role"] == "oracle") & (samples["guidance"] == samples["guidance"].iloc[0])]
    shares = never.groupby("split")["extracted"].mean()
    words = never[never["group"] == "control"]["extracted"]
    rows["oracle"] = {"A": shares.get("locate"), "B": shares.get("test"), "controls": words.mean()}
    back = recovery[recovery["metric"] == "attacked_any"]
    for (condition, group), own in back.groupby(["condition", "group"], sort=False):
        if group in _BACK:
            rows.setdefault(str(condition), {})[_BACK[group]] = float(own["value"].iloc[0])
    table = pd.DataFrame([{"condition": name, **row} for name, row in rows.items()])
    return table.reindex(columns=["condition", "dose", *_MEASURES.values(), *_BACK.values()])


def _beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Edits, and of controls those of the rule that is told of."""
    return rows[~rows["control"] | rows["of"].isin([_RULE, *rows.loc[rows["family"] == "trained", "edit"]])]


def findings(tables: Tables) -> pd.DataFrame:
    """What holds, with its number and interval."""
    return tables["findings"][["finding", "verdict", "value", "ci_lo", "ci_hi", "n"]]


def main(found: pd.DataFrame) -> pd.DataFrame:
    """The findings that are shown, in their order."""
    return found[found["finding"].str.startswith(_MAIN)].reset_index(drop=True)


def figures(tables: Tables) -> dict[str, go.Figure]:
    """The pictures before and after, and what doses delete and cost."""
    import numpy as np

    from interp.plot import dose_retention, image_grid

    shown = tables["pictures"]
    image = [
        np.reshape(np.asarray(own, float), (h, w))
        for own, h, w in zip(shown["image"], shown["height"], shown["width"], strict=True)
    ]
    grid = shown.assign(image=image)
    doses = _beside(tables["doses"])
    # Two settings of an edit may come to the same dose.
    doses = doses[
        doses["measure"].isin(_MEASURES) & (doses["control"] | doses["edit"].isin(_DRAWN))
    ].drop_duplicates(["edit", "measure", "dose"])
    return {
        "pictures": image_grid(grid),
        "doses": dose_retention(doses, against=("held_out", "alignment")),
    }
