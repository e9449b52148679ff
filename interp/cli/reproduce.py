"""`interp reproduce`: published protocols on a model of the user's, the published figures beside ours."""

from __future__ import annotations

from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import Json, emit, progress, say
from interp.cli.options import Device, Dtype, Field, spec_of

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(help="Published protocols, their figures beside ours.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """One protocol so far; the group keeps its name."""


@app.command("retrieval-heads")
def retrieval_heads(
    model: Annotated[
        str, typer.Option(help="A default model (smollm2), a hub id, a folder or a .gguf file.")
    ],
    max_length: Annotated[
        int | None, typer.Option(min=64, help="Longest prompt in tokens; default 5000, with --quick 512.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few and short cells: minutes.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/MODEL-retrieval-heads.")] = None,
    set_: Field = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Wu et al. 2024 (arXiv 2404.15574): score heads on a grid of needles, mask the best. Run again, it goes on."""
    import pandas as pd

    from interp.reproduce import ReproduceSpec, run

    name = "reproduce retrieval-heads --model"
    given = {"max_length": max_length, "seed": seed, "device": device, "dtype": dtype}
    spec = spec_of(ReproduceSpec, name, model, None, quick, set_, **given)
    folder = out or Path("runs") / f"{Path(spec.model).name}-retrieval-heads"
    job = run(spec, folder, stage=progress)
    comparison = pd.read_parquet(folder / "comparison.parquet")
    deviations = loads((folder / "deviations.json").read_text())
    if json:
        emit({"folder": str(folder), "figures": comparison, "deviations": deviations, "done": job.done,
              "skipped": job.skipped}, json)  # fmt: skip
        return
    emit(beside(comparison), json)
    for deviation in deviations:
        say("deviation", deviation)
    say("done", f"{len(job.done)} parts computed, {len(job.skipped)} were there: {folder.resolve()}")


def beside(comparison: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a figure and tag: ours, and the range of what was published, for how many models and where."""
    rows = []
    own = comparison[comparison["kind"] == "ours"].set_index("statistic")
    published = comparison[comparison["kind"] == "published"]
    for statistic in dict.fromkeys([*own.index, *published["statistic"]]):
        row: dict[str, Any] = {"figure": statistic, "ours": None, "95 %": "", "n": None, "": ""}
        if statistic in own.index:
            r = own.loc[statistic]
            interval = f"{r['ci_lo']:.3g} … {r['ci_hi']:.3g}" if r["ci_lo"] == r["ci_lo"] else ""
            row |= {"ours": r["value"], "95 %": interval, "n": int(r["n"]), "": r["note"]}
        others = published[published["statistic"] == statistic]
        for tag, part in others.groupby("tag", sort=False):
            low, high = part["value"].min(), part["value"].max()
            one = len(part) == 1
            said = f"{low:.4g}" if one else f"{low:.4g} … {high:.4g}"
            first = part.iloc[0]
            alone = f"{first['subject']} ({first['note']})" if first["note"] else first["subject"]
            models = alone if one else f"{len(part)} models"
            rows.append({
                **row, "published": said, "of": models, "tag": tag, "source": "; ".join(dict.fromkeys(part["source"])),
            })  # fmt: skip
            row = {"figure": statistic, "ours": None, "95 %": "", "n": None, "": ""}
        if others.empty:
            rows.append({**row, "published": "", "of": "", "tag": "", "source": ""})
    return rows
