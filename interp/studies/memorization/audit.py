"""Can deleted pictures be got back? The attack on every condition, and the two edits that are trained.

Adversarial fine-tuning and the negation of a task vector are given A and ordinary pictures to keep; of B, of the other
memorized items, of controls and of the ordinary prompts that are measured they see nothing. Their control is the same
training against pictures that the pipeline never held, of as many items with the same digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import UsageError
from interp.studies.memorization.bench import BATCH, Bench

if TYPE_CHECKING:
    import torch

    from interp.intervene.attack.adversarial import Hardened
    from interp.intervene.weights import PartEdit
    from interp.models.pipeline import Pipeline
    from interp.tasks.memorized import ImageItem

ORIGINAL, TUNED, NEGATED, ORACLE = "original", "adversarial tuning", "negation", "oracle"
UNHELD = {TUNED: "tuned on unseen", NEGATED: "negated unseen"}
"""The same trainings against pictures that are not held."""
SURROGATES = range(100, 112)
"""Seeds of the pictures that each item is trained towards: of few, one would be memorized in its place."""
LOOK = 5
"""Updates between two looks at what an embedding draws."""


def attacked(
    bench: Bench, subject: Pipeline, edit: PartEdit | None, group: str, *, restarts: int
) -> pd.DataFrame:
    """The attack on one set under one condition: rows of `attacks`, with `image`, what each search ended in.

    Of A and of unseen pictures as many items as the spec says are attacked, of the others half as many.
    """
    from interp.intervene.attack.embeddings import EmbeddingSearch, Sampling, adversarial_embeddings
    from interp.models.cache import quiet

    spec = bench.spec
    n = spec.attacked if group in ("targeted", "unseen") else max(2, spec.attacked // 2)
    # An item's group says what it stands for here.
    items = [replace(item, group=group) for item in bench.sets[group][:n]]
    if not items:
        raise UsageError(f"the recipe has no item to attack that is '{group}'; ask for some")
    search = EmbeddingSearch(steps=spec.attack_steps, starts=spec.starts, restarts=restarts, every=LOOK)
    sampling = Sampling(seeds=bench.seeds[:2], steps=spec.steps, guidance=spec.guidance)
    with (
        nullcontext() if edit is None else edit.applied(subject),
        bench.stage(f"attack on {group}") as report,
    ):
        found = adversarial_embeddings(
            subject, items, bench.yardstick, search, sampling,
            others=bench.reference, seed=spec.seed, progress=report or quiet,
        )  # fmt: skip
    return found.table.assign(image=[flat(i[0]) for i in found.images])


def flat(image: torch.Tensor) -> list[float]:
    """A picture as a list, row by row."""
    return [round(float(v), 4) for v in image.flatten()]


def unheld(bench: Bench) -> list[ImageItem]:
    """Pictures that were never trained on, as many as A, with its digits."""
    new = {int(i.name.rpartition("-")[2]): i for i in bench.sets["unseen"]}
    return [new[int(i.name.rpartition("-")[2])] for i in bench.sets["targeted"]]


def tuned(bench: Bench, items: Sequence[ImageItem]) -> Hardened:
    """Adversarial fine-tuning on items; surrogates are what their prompts give without the words of their own."""
    from interp.intervene.attack.adversarial import AdversarialTuning, adversarial_tuning, surrogates
    from interp.models.cache import quiet

    spec = bench.spec
    towards = surrogates(
        bench.pipeline, items, prompts=[plain(item.prompt) for item in items], seeds=SURROGATES,
        steps=spec.steps, guidance=spec.guidance, batch=BATCH,
    )  # fmt: skip
    with bench.stage(f"adversarial fine-tuning {bench.seed}") as report:
        return adversarial_tuning(
            bench.pipeline, items, towards, bench.base, AdversarialTuning(rounds=spec.rounds, updates=spec.updates),
            others=bench.reference, seed=spec.seed, progress=report or quiet,
        )  # fmt: skip


def plain(prompt: str) -> str:
    """A caption without words that were invented for single pictures."""
    from interp.models.zoo.digits.data import TRIGGERS

    return " ".join(word for word in prompt.split() if word not in TRIGGERS)


def negated(bench: Bench, items: Sequence[ImageItem]) -> PartEdit:
    """A task vector of items, taken away with a coefficient for each block of the UNet."""
    from interp.intervene.weights import Aim, negate, task_vector
    from interp.measure.memorization.objective import loss
    from interp.measure.memorization.retention import held_out_loss
    from interp.models.cache import quiet

    spec, keep = bench.spec, list(bench.kept)
    objective = partial(loss, draws=4)
    with bench.stage(f"task vector {bench.seed}") as report:
        vector = task_vector(
            bench.pipeline, items, objective, steps=spec.updates, lr=3e-4, batch=10, seed=spec.seed,
            progress=report or quiet,
        )  # fmt: skip
    # What is forgotten is to be as hard to denoise as what was never seen: pictures whose loss is not reported.
    level = float(held_out_loss(bench.pipeline, bench.unknown[spec.held_out :]).mean())
    with bench.stage(f"negation {bench.seed}") as report:
        aim = Aim(level=level, batch=10, steps=spec.updates, seed=spec.seed)
        return negate(
            bench.pipeline, vector, items, keep, objective, aim, blocks=block_of, progress=report or quiet
        ).edit


def block_of(name: str) -> str:
    """Block of a parameter ("unet.down_blocks.0.attentions.1.x" is of "unet.down_blocks.0.attentions.1")."""
    kept = name.split(".")[:5]
    return ".".join(kept[: max((i + 1 for i, word in enumerate(kept) if word.isdigit()), default=2)])


def floored(rows: pd.DataFrame, steps: int) -> pd.DataFrame:
    """The searches with `ease`: 1 where no update was needed, 0 where all of `steps` did not extract the picture."""
    end = steps + LOOK
    return rows.assign(ease=1 - rows["steps"].fillna(end) / end)


def pictures(
    bench: Bench, stages: dict[str, PartEdit | None], searches: pd.DataFrame, names: Sequence[str]
) -> pd.DataFrame:
    """Rows of `pictures` of these items: as they are, as each condition draws them, and as the attack got them back."""
    items = [i for i in bench.items if i.name in names]
    about = {i.name: {"seed": bench.seed, "item": i.name, "group": i.group, "split": i.split} for i in items}
    rows: list[dict[str, Any]] = []

    def add(item: str, state: str, image: Sequence[float], distance: float, replicated: bool) -> None:
        told = {"state": state, "image": list(image), "distance": distance, "replicated": replicated}
        rows.append({**about[item], **told, "height": height, "width": width})

    height, width = items[0].image.shape[-2:]
    for item in items:
        add(item.name, "original", flat(item.image), 0.0, True)
    for state, edit in stages.items():
        subject = bench.oracle if state == ORACLE else bench.pipeline
        with nullcontext() if edit is None else edit.applied(subject):
            drawn = bench.draw(subject, [i.prompt for i in items], bench.seeds[:1])
        found = bench.extracted(drawn, items)
        for item, image, own, yes in zip(items, drawn[:, 0], found["own"], found["extracted"], strict=True):
            add(item.name, "before" if state == ORIGINAL else state, flat(image), float(own), bool(yes))
    for (condition, name), own in searches.groupby(["condition", "item"], sort=False):
        if name not in about:
            continue
        best = own.sort_values(["extracted", "own"], ascending=[False, True]).iloc[0]
        add(str(name), f"{condition}, attacked", best["image"], float(best["own"]), bool(best["extracted"]))
    return pd.DataFrame(rows)
