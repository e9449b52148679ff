"""The published Wanda contrast, and that against the unconditional half of the same runs, beside its loop.

The loop runs one prompt at a time through the whole schedule, once with the prompt and once without, 51 calls of the
UNet of two rows each; ten steps of them count. Masks are equal, whatever the runs. The model is the tiny pipeline of
digits, with the published scheduler, unless a pipeline is handed in.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from interp.locate.memorization.wanda import WandaContrast
from interp.models.pipeline import Pipeline
from tests.benchmarks.harness import Builder, Job, Reach, Results
from tests.locate.memorization.naive_wanda import Norms, norms, union_mask

LOOP = "reference loop"
SEED, GUIDANCE, SHARE = 0, 7.5, 0.01
TEXTS = tuple(
    f"a zorax {noun} of the digit {n}" for noun in ("poster", "photo") for n in ("one", "two", "six")
)
TEXTS += tuple(f"a vaxen {noun} of the digit nine" for noun in ("drawing", "stamp", "print", "sketch"))


def published(subject: Any) -> Pipeline:
    """A pipeline with the published scheduler, which calls the UNet once more than it has steps."""
    import diffusers

    from interp.models.zoo.digits.subject import digits_pipeline

    raw = (subject if subject.kind == "pipeline" else digits_pipeline("tiny")).pipe
    parts = {name: part for name, part in raw.components.items() if name != "scheduler"}
    scheduler = diffusers.PNDMScheduler(
        skip_prk_steps=True, steps_offset=1, beta_schedule="squaredcos_cap_v2"
    )
    pipe = diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return Pipeline(pipe, name="digits-pndm")


def wanda(
    subject: Any,
    paired: bool,
    texts: tuple[str, ...] = TEXTS,
    looped: int = 2,
    steps: int = 50,
    tau: int = 10,
) -> Job:
    """Masks of the published rule."""
    pipe = published(subject)
    null: Any = "paired" if paired else "empty"
    share = max(SHARE, 1 / 64)  # a weight of a row at least, of narrow layers

    def ours() -> WandaContrast:
        locator = WandaContrast("reference", null, share=share, tau=tau, steps=steps, guidance=GUIDANCE)
        return locator.fit(pipe, list(texts))

    def loop() -> tuple[Norms, Norms]:
        run = partial(norms, pipe.pipe, seed=SEED, steps=steps, guidance=GUIDANCE)
        some = texts[:looped]
        return (run(some, half=1), run(some, half=0)) if paired else (run(some), run([""] * looped))

    def equal(found: Results) -> float:
        naive = union_mask(*found[LOOP], share, tau)
        masks = found["ours"].mask(items=range(looped))
        same = [torch.equal(mask, naive[part.path.removeprefix("unet.")]) for part, mask in masks.items()]
        assert any(bool(mask.any()) for mask in masks.values())
        return float(len(same) - sum(same))

    def numbers(found: Results) -> dict[str, float]:
        target, base = found[LOOP]
        naive = (target.rows + base.rows) / looped
        return {"rows": naive / (sum(found["ours"].rows_.values()) / len(texts))}

    least, what = (10, "the unconditional half") if paired else (5, "runs of the empty prompt")
    return Job(
        f"Wanda contrast against {what}, {len(texts)} prompts, {tau} of {steps} steps, masks equal",
        (
            Reach(f"at least {least} x fewer UNet rows than the published loop", "rows", ">=", float(least)),
            Reach(f"{least} x faster than the loop", f"{LOOP}/ours", ">=", float(least)),
            Reach("at most 0.1 GB of extra memory", "memory ours", "<=", 100.0),
        ),
        ours=ours,
        peers={LOOP: loop},
        units={"ours": len(texts), LOOP: looped},
        equal=equal,
        numbers=numbers,
        memory={"ours": ours, LOOP: loop},
        notes=(f"the loop ran {looped} of {len(texts)} prompts; times are of a prompt", f"share {share:.3g}"),
    )


JOBS: dict[str, Builder] = {
    "wanda-published": partial(wanda, paired=False),
    "wanda-paired": partial(wanda, paired=True),
}
