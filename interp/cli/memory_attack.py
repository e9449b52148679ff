"""`interp memorization attack`: try to get memorized items back, under edits and without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import memory_edits
from interp.cli.console import Json, emit, progress, say
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
    sizes,
)
from interp.cli.options import Device, Dtype, Save, Seed
from interp.cli.work import _save
from interp.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from interp.intervene.weights import PartEdit


def attack(
    source: Source,
    edit: Annotated[
        list[Path] | None, typer.Option(help="Attack it under this edit, too; repeatable.")
    ] = None,
    prompts: PromptFile = None,
    test: HeldOutFile = None,
    reference: OrdinaryFile = None,
    images: Images = None,
    new_images: NewImages = None,
    prefix: Prefix = 32,
    suffix: Suffix = 32,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Of digits: also the training without the memorized items.")
    ] = False,
    items: Annotated[int, typer.Option(min=1, help="Items of each kind that are attacked.")] = 4,
    updates: Annotated[int, typer.Option(min=1, help="Updates of a search.")] = 50,
    starts: Annotated[
        str, typer.Option(help="Of searches in pipelines, joined by commas: prompt, normal, other.")
    ] = "normal",
    restarts: Annotated[int, typer.Option(min=1, help="Searches from each start.")] = 1,
    samples: Samples = 2,
    steps: Steps = 25,
    guidance: Guidance = 1.5,
    seed: Seed = 0,
    save: Save = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Search embeddings (of a language model, soft prompts) that bring items back; also items it never had."""
    savable(save)
    case = case_of(source, prompts, test, reference, images, new_images, prefix, suffix, device, dtype)
    if case.pipeline and not case.pictured:
        raise UsageError("an attack on a pipeline needs pictures to get back: give --images and --held-out")
    conditions: dict[str, PartEdit | None] = {"intact": None}
    for path in edit or ():
        if path.stem in conditions:
            raise UsageError(f"two edits are called '{path.stem}'; give them names of their own")
        conditions[path.stem], _ = memory_edits.read(path, case)
    other = _oracle(case) if oracle else None
    chosen = tuple(part.strip() for part in starts.split(","))
    found = attacked_under(
        case, conditions, items, updates, chosen, restarts, samples, steps, guidance, seed, oracle=other
    )
    _save(found, save)
    told = recovered(found)
    if json:
        emit({"recovery": told, "searches": found}, json)
    else:
        emit(told, json)
    never = [name for name in ("unseen", "control") if name in set(found["group"])]
    if never:
        say(
            "read it so",
            f"what comes back of {' and '.join(never)} items was never there: the search made it up",
        )
    else:
        say("no floor", "no unseen items, so it is not known what the search makes up by itself")


def _oracle(case: Case) -> Any:
    if case.recipe is None:
        raise UsageError("--oracle is of pipelines that are trained on digits")
    from interp.models.zoo.digits.subject import digits_pipeline

    with progress("training the oracle") as report:
        return digits_pipeline(case.recipe.model_copy(update={"oracle": True}), progress=report)


def attacked_under(
    case: Case,
    conditions: Mapping[str, PartEdit | None],
    n: int,
    updates: int,
    starts: tuple[str, ...],
    restarts: int,
    samples: int,
    steps: int,
    guidance: float,
    seed: int,
    oracle: Any = None,
) -> pd.DataFrame:
    """The same attack under each condition; what each search found."""
    from interp.intervene.attack.report import audit

    chosen = case.some(n)
    items = [item for own in chosen.values() for item in own]
    if case.pipeline:
        from interp.intervene.attack.embeddings import EmbeddingSearch, Sampling, adversarial_embeddings

        search = EmbeddingSearch(steps=updates, starts=starts, restarts=restarts)  # type: ignore[arg-type]
        sampling = Sampling(tuple(range(FIRST, FIRST + samples)), steps, guidance)
        others = [item.prompt for item in case.groups.get("ordinary", ())]
        assert case.judge is not None
        judge = case.judge

        def run(subject: Any) -> Any:
            return adversarial_embeddings(
                subject, items, judge, search, sampling, others=others, seed=seed, progress=report
            )
    else:
        from interp.intervene.attack.soft_prompt import SoftPrompts, soft_prompts

        prompts = SoftPrompts(steps=updates, restarts=restarts)

        def run(subject: Any) -> Any:
            return soft_prompts(subject, items, prompts, seed=seed, progress=report)

    named: dict[str, Any] = {name: (case.subject, edit) for name, edit in conditions.items()}
    if oracle is not None:
        named["oracle"] = (oracle, None)
    say("attack on", f"{sizes(chosen)} items, {updates} updates at most, under {', '.join(named)}")
    with progress("attack") as report:
        return audit(named, run)


def recovered(found: pd.DataFrame) -> pd.DataFrame:
    """Rates of each condition and group, side by side."""
    from interp.intervene.attack.report import recovery

    table = recovery(found)
    wide = table.pivot(index=["condition", "group"], columns="metric", values="value")
    order = list(dict.fromkeys(zip(table["condition"], table["group"], strict=True)))
    names = ["before", "attacked", "attacked_any", "gained", "refused", "steps", "work"]
    wide = wide.loc[order, [name for name in names if name in wide]].reset_index()
    counts = table[table["metric"] == "attacked_any"].set_index(["condition", "group"])["n_items"]
    wide["items"] = [int(counts[key]) for key in order]
    return wide.rename_axis(columns=None)
