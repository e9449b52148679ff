"""`interp memorization locate|delete`: find what holds memorized items, and take it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import memory_edits
from interp.cli.console import Json, emit, progress, say
from interp.cli.memory_attack import attacked_under, recovered
from interp.cli.memory_items import (
    FIRST,
    Case,
    Guidance,
    HeldOutFile,
    Images,
    NewImages,
    OrdinaryFile,
    Prefix,
    PromptFile,
    Samples,
    Source,
    Steps,
    Suffix,
    case_of,
    savable,
)
from interp.cli.memory_methods import METHODS, Options, fitted
from interp.cli.options import Device, Dtype, Save, Seed
from interp.cli.work import _save
from interp.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from interp.intervene.weights import PartEdit

_OF_TEXT = 10  # updates of `delete` in a language model, each a pass through all of it and back


def locate(
    ctx: typer.Context,
    source: Source,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "wanda",
    prompts: PromptFile = None,
    reference: OrdinaryFile = None,
    images: Images = None,
    prefix: Prefix = 32,
    suffix: Suffix = 32,
    share: Annotated[
        float,
        typer.Option(
            help="Of the weights of each row, or of all units, that is cut; of methods that cut a share."
        ),
    ] = 0.01,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Directions of each part, of the method subspace; default what is sure."),
    ] = None,
    null: Annotated[
        str | None,
        typer.Option(
            help="paired, empty or prompts, of wanda, reference and subspace; see the documentation."
        ),
    ] = None,
    tau: Annotated[int, typer.Option(min=1, help="First denoising steps that are looked at.")] = 10,
    steps: Steps = 25,
    guidance: Guidance = 1.5,
    top: Annotated[int, typer.Option(min=1, help="Components shown.")] = 20,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write the edit here, as .safetensors.")] = None,
    save: Save = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Find the weights, units or directions that hold memorized items; nothing is changed."""
    if out is not None and out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: write a name that ends in .safetensors")
    savable(save)
    case = case_of(source, prompts, None, reference, images, None, prefix, suffix, device, dtype)
    written = (
        name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    )
    options = Options(share, rank, null, min(tau, steps), steps, guidance, seed, frozenset(written))
    with progress(f"locate by {method}") as report:
        found, edit, targets, others = fitted(case, method, options, report)
    _save(found.scores_, save)
    budget = edit.budget(case.subject)
    told = {
        "method": method,
        "items": len(targets),
        "ordinary items": len(others),
        "weights cut or changed": budget.changed,
        "share of their matrices": budget.share,
        "share of the model": budget.of_model,
        "norm of the change": budget.norm,
    }
    ranked = found.ranking()
    columns = [
        c for c in ("component", "score", "se", "target", "null", "q", "p", "kept", "n") if c in ranked
    ]
    shown = ranked[columns].head(top)
    if json:
        emit({**told, "components": shown}, json)
    else:
        emit(shown, json)
        emit(told, json)
    if out is not None:
        size = memory_edits.write(edit, out, map(case.key, targets), map(case.key, others))
        say("wrote", f"{out} ({size:,} bytes); measure it: interp memorization delete {source} {out}")


# -- deletion --------------------------------------------------------------------------------------------------------


def delete(
    source: Source,
    edit: Annotated[Path, typer.Argument(help="What `locate --out` or `edit.save` wrote.")],
    prompts: PromptFile = None,
    test: HeldOutFile = None,
    reference: OrdinaryFile = None,
    images: Images = None,
    new_images: NewImages = None,
    prefix: Prefix = 32,
    suffix: Suffix = 32,
    samples: Samples = 2,
    steps: Steps = 25,
    guidance: Guidance = 1.5,
    controls: Annotated[int, typer.Option(min=0, help="Random cuts of equal budget; 0 for no controls.")] = 1,
    attacked: Annotated[
        int, typer.Option(min=0, help="Items of each kind that are attacked; 0 leaves it out, and says so.")
    ] = 4,
    updates: Annotated[
        int | None,
        typer.Option(min=1, help="Updates of a search of the attack; default 50, of a language model 10."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Also write the edited pipeline or model here; it must not exist.")
    ] = None,
    save: Save = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Take an edit's weights out: what goes, what stays, what controls do, and what an attack gets back."""
    if out is not None and out.exists():
        raise UsageError(f"{out} exists; give a folder that does not")
    savable(save)
    case = case_of(source, prompts, test, reference, images, new_images, prefix, suffix, device, dtype)
    cut, items = memory_edits.read(edit, case)
    if out is not None:
        memory_edits.keeps(cut, case)
    groups = memory_edits.told_apart(case.groups, case, items)
    conditions = _conditions(case, cut, controls, seed)
    with progress("conditions") as report:
        rows = []
        for i, (name, own) in enumerate(conditions.items()):
            report(i, len(conditions), name)
            with _under(own, case.subject):
                rows += [
                    {"condition": name, **row} for row in _measured(case, groups, samples, steps, guidance)
                ]
    table = _frame(rows)
    told: dict[str, Any] = {"effects": table}
    if attacked and (case.pictured or not case.pipeline):
        found = attacked_under(
            case,
            {"intact": None, "edited": cut},
            attacked,
            updates or (50 if case.pipeline else _OF_TEXT),
            ("normal",),
            1,
            samples,
            steps,
            guidance,
            seed,
        )
        told["attack"] = recovered(found)
    _save(table, save)
    if json:
        emit(told, json)
    else:
        emit(_side_by_side(table), json)
        if "attack" in told:
            emit(told["attack"], json)
    if "attack" not in told:
        why = "left out by --attacked 0" if not attacked else "it needs pictures: --images and --held-out"
        say("no attack", f"{why}; what no prompt brings back may still be there")
    if len(conditions) == 2 and controls:
        say("no controls", "this edit does not only prune, so there is no cut of equal budget")
    if out is not None:
        memory_edits.export(case, cut, out)


def _conditions(case: Case, cut: PartEdit, controls: int, seed: int) -> dict[str, PartEdit | None]:
    from interp.locate.memorization.controls import control_edits

    found = control_edits(case.subject, cut, draws=controls, seed=seed) if controls else {}
    return {"intact": None, "edited": cut, **found}


@contextmanager
def _under(edit: PartEdit | None, subject: Any) -> Iterator[None]:
    with nullcontext() if edit is None else edit.applied(subject):
        yield


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Groups and metrics down, conditions across."""
    wide = table.pivot(index=["group", "metric", "n"], columns="condition", values="value")
    order = list(dict.fromkeys(zip(table["group"], table["metric"], table["n"], strict=True)))
    return wide.loc[order, list(dict.fromkeys(table["condition"]))].reset_index().rename_axis(columns=None)


Groups = Mapping[str, tuple[Any, ...]]


def _measured(
    case: Case, groups: Groups, samples: int, steps: int, guidance: float
) -> Iterator[dict[str, Any]]:
    """What a subject does as it is now: one row a group and metric."""
    if case.pipeline:
        yield from _sampled(case, groups, samples, steps, guidance)
    else:
        yield from _told_by_heart(case, groups)


def _sampled(
    case: Case, groups: Groups, samples: int, steps: int, guidance: float
) -> Iterator[dict[str, Any]]:
    from interp.measure.memorization.detection import signals
    from interp.measure.memorization.extraction import extraction, rates
    from interp.measure.memorization.retention import held_out_loss

    seeds = range(FIRST, FIRST + samples)
    for group, items in groups.items():
        plain = group in ("ordinary", memory_edits.USED)
        if plain and hasattr(items[0], "image"):
            values = held_out_loss(case.subject, items)
            yield _mean(group, "denoising error", values)
        found = signals(case.subject, [item.prompt for item in items], seeds, steps=steps, guidance=guidance)
        if case.judge is not None and not plain and all(hasattr(item, "image") for item in items):
            assert found.images is not None
            own = _several(case, group, items)
            told = rates(extraction(found.images, items, case.judge, images=own).assign(group=group))
            row = told[told["metric"] == "extracted_image"].iloc[0]
            value = {key: float(row[key]) for key in ("value", "ci_lo", "ci_hi")}
            yield {"group": group, "metric": "replicated", **value, "n": int(row["n_items"])}
        by_item = found.table.groupby("item")
        yield _mean(group, "magnitude", by_item["all"].mean().to_numpy())
        if samples > 1:
            yield _mean(group, "spread of seeds", by_item["spread"].first().to_numpy())


def _several(case: Case, group: str, items: Any) -> dict[str, Any] | None:
    """All pictures of a control's word."""
    if group != "control" or case.recipe is None:
        return None
    from interp.tasks.digits import images_of

    return {item.name: images_of(case.recipe, item.name) for item in items}


def _told_by_heart(case: Case, groups: Groups) -> Iterator[dict[str, Any]]:
    from interp.measure.memorization.recite import forced, recite
    from interp.tasks.prose import Prose

    for group, items in groups.items():
        if not items:
            continue
        known = group in ("targeted", "held_out")
        table = recite(case.subject, items, generate=known)
        for metric in ("exact", "accuracy", "similarity", "nll") if known else ("exact", "nll"):
            yield _mean(group, metric, table[metric].to_numpy())
    passages = Prose(prompt=16, answer=16, n=12).examples(case.subject)
    read = forced(case.subject, [(*e.ids, *e.answer_ids) for e in passages])
    nll = [own.nll[len(e.ids) - 1 :].mean() for own, e in zip(read, passages, strict=True)]
    yield _mean("prose", "nll", nll)


def _mean(group: str, metric: str, values: Any) -> dict[str, Any]:
    """Mean over items, with its interval where there are several."""
    import numpy as np

    from interp.measure.stats import bootstrap_ci

    told = np.asarray(values, float)
    varied = len(told) > 1 and np.ptp(told) > 0
    low, high = bootstrap_ci(told, np.arange(len(told)), seed=0) if varied else (np.nan, np.nan)
    return {
        "group": group,
        "metric": metric,
        "value": told.mean(),
        "ci_lo": low,
        "ci_hi": high,
        "n": len(told),
    }
