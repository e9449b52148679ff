"""`interp memorization`: models whose memory is known, and what they replicate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli import memory_attack, memory_cuts, memory_demo
from interp.cli.console import Json, emit, progress, say
from interp.cli.memory_items import (
    Images,
    OrdinaryFile,
    PromptFile,
    Source,
    case_of,
    opened,
    read_texts,
    savable,
    sizes,
)
from interp.cli.options import Device, Dtype, Save, Seed
from interp.cli.work import _save
from interp.errors import UsageError

app = typer.Typer(
    help="Memorized items: train a pipeline that has them, find them, delete them, attack the deletion.",
    no_args_is_help=True,
)

app.command()(memory_demo.demo)


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


@app.command()
def detect(
    source: Source,
    prompts: PromptFile = None,
    reference: OrdinaryFile = None,
    images: Images = None,
    seeds: Annotated[int, typer.Option(min=1, help="Samples of each prompt.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    stop: Annotated[
        int | None, typer.Option(min=1, help="Run only so many of them; the spread needs all.")
    ] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance of the runs.")] = 1.5,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also say which tokens give it away.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Prompts shown.")] = 20,
    save: Save = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Which prompts does a pipeline answer by heart? Told from its noise, without the training images."""
    from interp.measure.memorization.detection import SIGNALS, attribution, signals

    savable(save)
    case = case_of(source, prompts, None, reference, images, device=device, dtype=dtype)
    if not case.pipeline:
        raise UsageError(f"{source} is a language model: ask it with `interp memorization recite {source}`")
    asked = [(name, item.prompt) for name, items in case.groups.items() if name != "unseen" for item in items]
    with progress("denoising") as report:
        found = signals(
            case.subject,
            [prompt for _, prompt in asked],
            range(seeds),
            steps=steps,
            stop=stop,
            guidance=guidance,
            progress=report,
        )
    table = found.table.assign(group=[asked[i][0] for i in found.table["item"]])
    _save(table, save)
    names = [name for name in SIGNALS if table[name].notna().all()]
    told = table.groupby(["item", "group", "prompt"], sort=False)[names].mean().reset_index()
    told = told.sort_values("first", ascending=False, kind="stable").drop(columns="item")
    apart = _separations(table, names)
    result = {"prompts": told if json else told.head(top), "told_apart": apart}
    if tokens:
        shown = told["prompt"].head(min(top, 5)).tolist()
        result["tokens"] = attribution(
            case.subject, shown, range(seeds), steps=steps, guidance=guidance
        ).drop(columns="item")
    _print(result, json)
    say("looked at", f"{sizes(case.groups)} prompts; each signal is a mean over {seeds} seeds")


def _separations(table: Any, names: Sequence[str]) -> Any:
    """How well each signal tells memorized prompts from each other group."""
    import pandas as pd

    from interp.measure.memorization.detection import SIGNALS
    from interp.measure.memorization.separation import separation

    yes = table[table["group"].isin(("targeted", "held_out"))]
    rows = []
    for other in dict.fromkeys(table["group"]):
        no = table[table["group"] == other]
        if other in ("targeted", "held_out"):
            continue
        for name in names:
            found = separation(
                yes[name].to_numpy(),
                no[name].to_numpy(),
                clusters=(yes["prompt"].tolist(), no["prompt"].tolist()),
                sign=SIGNALS[name],
            )
            kept = ("auc", "auc_lo", "auc_hi", "tpr", "prompts_positive", "prompts_negative")
            rows.append({"signal": name, "against": other, **{key: found[key] for key in kept}})
    return pd.DataFrame(rows)


@app.command()
def recite(
    model: Annotated[
        str, typer.Argument(help="A language model: smollm2, a hub id, a folder or a .gguf file.")
    ],
    file: Annotated[
        Path | None,
        typer.Argument(help="Passages, one a line, or .jsonl with 'all' and 'category'; default ours."),
    ] = None,
    prefixes: Annotated[str, typer.Option(help="Tokens that are given, joined by commas.")] = "8,16,32",
    suffix: Annotated[int, typer.Option(min=1, help="Tokens that have to be recited.")] = 32,
    generate: Annotated[
        bool,
        typer.Option("--generate", help="Let the model go on where it leaves the passage: how near it is."),
    ] = False,
    edit: Annotated[Path | None, typer.Option(help="Under an edit that `locate --out` wrote.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows shown.")] = 20,
    save: Save = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """What does a language model recite word for word, and after how much of it?"""
    try:
        given = [int(part) for part in prefixes.split(",")]
    except ValueError as error:
        raise UsageError(f"--prefixes {prefixes}: write numbers joined by commas, as 8,16,32") from error
    if min(given) < 1:
        raise UsageError(f"--prefixes {prefixes}: at least one token is given")
    savable(save)
    texts = read_texts(file)
    subject, _ = opened(model, device, dtype)
    if subject.kind == "pipeline":
        raise UsageError(f"{model} is a pipeline: ask it with `interp memorization detect {model}`")
    from contextlib import nullcontext

    from interp.intervene.weights import PartEdit
    from interp.measure.memorization.recite import screen

    applied = nullcontext() if edit is None else PartEdit.load(edit, subject).applied(subject)
    with applied, progress("passages") as report:
        table = screen(subject, texts, prefixes=given, suffix=suffix, generate=generate, progress=report)
    _save(table, save)
    by = table.groupby(["prefix", "group"], sort=False).agg(
        recited=("exact", "sum"), passages=("exact", "size"), run=("run", "mean"), nll=("nll", "mean")
    )
    shown = table.sort_values(["run", "prefix"], ascending=[False, True], kind="stable")
    columns = ["name", "group", "prefix", "exact", "run", "left", "hits", "nll"]
    columns += ["accuracy", "similarity"] if generate else []
    _print({"passages": shown if json else shown[columns].head(top), "groups": by.reset_index()}, json)
    most = table[table["prefix"] == max(table["prefix"])]
    say(
        "found",
        f"{int(most['exact'].sum())} of {len(most)} passages recited for {suffix} tokens "
        f"after {max(table['prefix'])}",
    )


def _print(tables: Mapping[str, Any], json: bool) -> None:
    """Tables one below the other, or all as one JSON object."""
    if json:
        emit(tables, json)
        return
    for table in tables.values():
        if len(table):
            emit(table, json)


app.command()(memory_cuts.locate)
app.command()(memory_cuts.delete)
app.command()(memory_attack.attack)
