"""`interp locate|ablate|patch|atlas|report`: the main job and its steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import Json, emit, progress, say
from interp.cli.options import (
    Device,
    DeviceOfSpec,
    Dtype,
    DtypeOfSpec,
    Field,
    Model,
    N,
    Save,
    Seed,
    SeedOfSpec,
    Set,
    SpecFile,
    TaskName,
    spec_of,
)
from interp.cli.tasks import build
from interp.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


def _load(model: str, device: str, dtype: str) -> Any:
    import interp

    with progress(f"load {model}"):
        return interp.load(model, device=device, dtype=dtype)


def _save(frame: pd.DataFrame, path: Path | None) -> None:
    if path is None:
        return
    from interp.runs import write_bytes, write_frame

    if path.suffix == ".parquet":
        write_frame(path, frame)
    elif path.suffix == ".csv":
        write_bytes(path, frame.to_csv(index=False).encode())
    else:
        raise UsageError(f"--save {path}: write a name that ends in .parquet or .csv")
    say("wrote", str(path))


def locate(
    model: Model,
    task: TaskName = "niah",
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="Number of examples; default 32, of a grid all.")
    ] = None,
    seed: Seed = 0,
    set_: Set = None,
    method: Annotated[str, typer.Option(help="Score that ranks: copy, locos, qr, ...")] = "copy",
    scores: Annotated[
        str, typer.Option(help="Scores beside it, joined by commas, or all.")
    ] = "copy,copy_position",
    mode: Annotated[str, typer.Option(help="greedy (the model's own output) or forced.")] = "greedy",
    top: Annotated[int, typer.Option(min=1, help="Heads shown.")] = 20,
    until: Annotated[
        str | None,
        typer.Option(
            help="Stop when the shown heads are settled: confidence or stability; default score all."
        ),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Keep what is scored here, and go on from it.")] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            help="Write all scores here, as .parquet or .csv, or as .json in the reference's format.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Find the retrieval heads: which attention heads copy from the context?"""
    from interp.locate.retrieval_heads import THRESHOLD, RetrievalHeads
    from interp.locate.scores import SCORES, chosen
    from interp.measure.sequential import Stop

    names = [s.name for s in chosen("all" if scores == "all" else [s.strip() for s in scores.split(",")])]
    locator = RetrievalHeads(chosen(method)[0].name, mode=mode, scores=names)  # type: ignore[arg-type]
    bounds = SCORES[locator.method].bounds
    stop = None if until is None else Stop(top=top, rule=until, bounds=bounds, unit="instance")  # type: ignore[arg-type]
    asked = build(task, n or (None if task == "niah_grid" else 32), seed, set_)
    subject = _load(model, device, dtype)
    with progress("attention rows") as report:
        locator.fit(subject, asked, folder=folder, stop=stop, progress=report)
    if save is not None and save.suffix == ".json":
        from interp.locate.interop import write_heads

        write_heads(locator, save, "reference", method=locator.method)
        say("wrote", str(save))
    else:
        _save(locator.scores_, save)
    ranked = locator.ranking()
    columns = ["component", "layer", "head", "kv_head", "score", "se", "n"]
    others = locator.scores_[locator.scores_["method"] != method].pivot(
        index="component", columns="method", values="score"
    )
    shown = ranked[columns].head(top)
    emit(shown.merge(others[[m for m in names if m != method]], left_on="component", right_index=True), json)
    over = int((ranked["score"] >= THRESHOLD).sum())
    told = f"{over} of {len(ranked)} heads score {THRESHOLD} or more ({over / len(ranked):.1%}); "
    if method not in ("copy", "copy_position", "copy_topk"):
        told = ""  # the threshold is one of copy scores
    say(
        "found",
        f"{told}{locator.acceptance_:.0%} of {len(locator.instances_)} instances accepted; "
        f"{locator.prefill_tokens_:,} of {locator.naive_tokens_:,} tokens run",
    )
    if stop is not None:
        say("settled" if locator.stop_.resolved else "open", locator.stop_.summary)


def ablate(
    model: Model,
    components: Annotated[str, typer.Argument(help="What is cut: 'L17H3 L18H7', 'M3', 'L12N100'.")],
    task: TaskName = "niah",
    n: N = 32,
    seed: Seed = 1,
    set_: Set = None,
    mode: Annotated[
        str, typer.Option(help="zero, mean, resample, uniform, mean_query or knockout.")
    ] = "zero",
    scope: Annotated[str, typer.Option(help="all, answer, or span roles joined by +.")] = "all",
    keys: Annotated[
        str | None,
        typer.Option(help="For knockout: span roles of the keys that are hidden; default the evidence."),
    ] = None,
    controls: Annotated[int | None, typer.Option(min=0, help="Matched control draws of each kind.")] = None,
    match: Annotated[
        str, typer.Option(help="Kinds of control: layer, size, norm, entropy; joined by commas.")
    ] = "layer",
    save: Save = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Cut components and measure what a task, and natural prose, lose by it; beside matched controls."""
    import interp
    from interp.intervene.ablate import ablate as describe
    from interp.measure.effects import contrast

    where = scope if scope in ("all", "answer") else tuple(scope.split("+"))
    hidden = None if keys is None else tuple(keys.split("+"))
    cut = describe(components, mode, where, keys=hidden)  # type: ignore[arg-type]
    asked = build(task, n, seed, set_)
    subject = _load(model, device, dtype)
    with progress("conditions") as report:
        kinds = [kind.strip() for kind in match.split(",")]
        effects = interp.measure(
            subject, asked, cut, controls=controls, match=kinds, seed=seed, progress=report
        )
    _save(effects, save)
    if json:
        emit(effects, json)
        return
    told = contrast(effects)
    clean = effects[effects["condition"] == "clean"].set_index(["task", "metric"])["value"]
    told["clean"] = [clean[t, m] for t, m in zip(told["task"], told["metric"], strict=True)]
    told["95 %"] = [f"{a:+.3f} … {b:+.3f}" for a, b in zip(told["ci_lo"], told["ci_hi"], strict=True)]
    told = told.rename(columns={"value": "cut", "control_mean": "delta of controls"})
    shown = ["task", "metric", "clean", "cut", "delta", "95 %", "p", "control", "delta of controls", "z", "n"]
    emit(told[shown], json)


def patch(
    model: Model,
    task: TaskName = "niah",
    n: N = 1,
    seed: Seed = 0,
    set_: Set = None,
    kind: Annotated[str, typer.Option(help="Kinds of site, comma-separated: resid_post,z.")] = "resid_post,z",
    direction: Annotated[str, typer.Option(help="denoise, noise or both.")] = "denoise",
    corruption: Annotated[str | None, typer.Option(help="Which corrupt twin; default the first.")] = None,
    over: Annotated[str | None, typer.Option(help="position, role or head; default by kind.")] = None,
    metric: Annotated[str, typer.Option(help="logit_diff or logprob.")] = "logit_diff",
    figure: Annotated[
        Path | None, typer.Option(help="Write the heat map here (.html, .pdf, .png, ...).")
    ] = None,
    save: Save = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Patch activations between examples and their corruption, cell by cell."""
    import interp

    asked = build(task, n, seed, {"niah": ["length=96"]}.get(task, []) + (set_ or []))
    subject = _load(model, device, dtype)
    kinds = [k.strip() for k in kind.split(",") if k.strip()]
    with progress("cells") as report:
        frame = interp.patch(
            subject,
            asked,
            kinds,
            corruption=corruption,
            direction=direction,  # type: ignore[arg-type]
            over=over,  # type: ignore[arg-type]
            metric=metric,
            progress=report,
        )
    _save(frame, save)
    if figure is not None:
        from interp.plot import patch_map, write

        for path in write(patch_map(frame), figure.with_suffix(""), (figure.suffix.lstrip(".") or "html",)):  # type: ignore[arg-type]
            say("wrote", str(path))
    columns = ["kind", "direction", "layer", "position", "token", "role", "head", "value", "recovery", "n"]
    emit(frame.sort_values("recovery", ascending=False)[columns].head(20) if not json else frame, json)


def atlas(
    model: Annotated[
        str | None, typer.Argument(help="A default model, a hub id, a folder or a .gguf file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/MODEL.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes in place of half an hour.")] = False,
    spec: SpecFile = None,
    set_: Field = None,
    seed: SeedOfSpec = None,
    device: DeviceOfSpec = None,
    dtype: DtypeOfSpec = None,
    json: Json = False,
) -> None:
    """Locate, cut, measure: tables, figures and a page in one folder. Run again, it skips what is done."""
    from interp.atlas import AtlasSpec, run

    asked = spec_of(AtlasSpec, "atlas", model, spec, quick, set_, seed=seed, device=device, dtype=dtype)
    folder = out or Path("runs") / Path(asked.model).name
    job = run(asked, folder, stage=progress)
    if json:
        emit(
            {
                "folder": str(folder),
                "page": str(folder / "report.html"),
                "done": job.done,
                "skipped": job.skipped,
            },
            json,
        )
        return
    say("done", f"{len(job.done)} parts computed, {len(job.skipped)} were there")
    say("page", f"{(folder / 'report.html').resolve()}")


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder of `interp atlas`.")],
    json: Json = False,
) -> None:
    """Write the page and the figures of a run folder again, from its tables."""
    from interp.atlas import pages

    if not (folder / "spec.yaml").is_file():
        raise UsageError(
            f"'{folder}' is no run folder (no spec.yaml); make one: interp atlas MODEL --out {folder}"
        )
    path = pages(folder)
    if json:
        emit({"page": str(path)}, json)
    else:
        say("page", str(path.resolve()))
