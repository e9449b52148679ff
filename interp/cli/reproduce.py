"""`interp reproduce`: published protocols on a model of the user's, the published figures beside ours."""

from __future__ import annotations

from contextlib import AbstractContextManager
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import Json, Progress, emit, progress, say

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
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A field of the spec; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (float32 on the CPU), float32, bfloat16, float16.")
    ] = "auto",
    json: Json = False,
) -> None:
    """Wu et al. 2024 (arXiv 2404.15574): score heads on a grid of needles, mask the best. Run again, it goes on."""
    import pandas as pd
    from pydantic import ValidationError

    from interp.cli.tasks import parameters
    from interp.errors import UsageError
    from interp.reproduce import ReproduceSpec, run

    given: dict[str, Any] = {"seed": seed, "device": device, "dtype": dtype, **parameters(set_)}
    if max_length is not None:
        given["max_length"] = max_length
    try:
        spec = ReproduceSpec.quick(model, **given) if quick else ReproduceSpec(model=model, **given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"spec field '{where}': {first['msg']} (given: {first.get('input')})") from error

    def stage(name: str) -> AbstractContextManager[Progress]:
        return progress(name)

    folder = out or Path("runs") / f"{Path(model).name}-retrieval-heads"
    job = run(spec, folder, stage=stage)
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
