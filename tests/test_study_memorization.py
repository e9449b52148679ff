"""The study of memorization: every part on a pipeline that is hardly trained, gone on with; and its rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from interp.cli import app
from interp.errors import UsageError
from interp.intervene.weights import ModelDelta, Prune, Stack, parameter
from interp.locate.memorization.masks import share_of
from interp.measure.memorization import encoder
from interp.models.parts import parts, weight_of
from interp.models.zoo.digits import subject
from interp.studies.memorization import findings as judge
from interp.studies.memorization.audit import ORACLE, ORIGINAL, TUNED, block_of, floored
from interp.studies.memorization.bench import Bench
from interp.studies.memorization.cuts import CONTROLS, NONE, REFERENCE, RULES, Cuts, chosen, dose_of
from interp.studies.memorization.detect import detection, exposure_curves
from interp.studies.memorization.measures import against, between, measured
from interp.studies.memorization.shared import strata_of
from interp.studies.memorization.spec import MemorizationSpec
from interp.studies.memorization.study import JUDGED, MemorizationStudy, run
from interp.tasks.memorized import ImageItem

MINI: dict[str, Any] = {
    "memorized": 4, "exposures": 8, "controls": 2, "control_exposures": 4, "varied": 1, "template": 1,
    "levels": (2, 100), "early_levels": (2,), "per_level": 1, "base_images": 40, "base": 2,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "model": "mini", "train_seeds": (0,), "guidance": 1.5, "also": (), "steps": 3, "samples": 1, "base": 20,
    "held_out": 8, "doses": (0.03, 0.5), "ranks": (1,), "masses": (0.6,), "dear": ("contrastive",), "tau": 2,
    "draws": 19, "attacked": 2, "starts": ("normal",), "restarts": 1, "attack_steps": 2, "updates": 2, "rounds": 1,
    "trajectory": (0.5, 1.0), "cheap": ("nemo", "flat"), "attack_sets": ("targeted", "unseen"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A recipe of a second's training, its pipelines in a cache of their own, and an encoder of few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(subject.PRESETS, "mini", MINI)
        patch.setattr(encoder, "train_encoder", partial(encoder.train_encoder, steps=5))
        yield


@pytest.fixture(scope="module")
def spec() -> MemorizationSpec:
    return MemorizationSpec(**SMALL)


@pytest.fixture(scope="module")
def bench(spec: MemorizationSpec) -> Bench:
    return Bench(spec, 0)


@pytest.fixture(scope="module")
def folder(spec: MemorizationSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("memorization") / "run"
    job = run(spec, where)
    assert "findings" in job.done and not job.skipped
    return where


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


# -- the run -----------------------------------------------------------------------------------------------------------


def test_all_tables_are_there_and_a_second_run_makes_none(spec: MemorizationSpec, folder: Path) -> None:
    import interp.studies.memorization.study as study

    named = [line.split("|")[1].strip(" `") for line in study.__doc__.splitlines() if line.startswith("| `")]
    assert len(named) == 23
    before = {name: table(folder, name) for name in named}
    job = run(spec, folder)
    assert not job.done and len(job.skipped) > 40
    for name, found in before.items():
        pd.testing.assert_frame_equal(table(folder, name), found)


def test_a_killed_run_goes_on(spec: MemorizationSpec, folder: Path) -> None:
    whole = {name: table(folder, name) for name in ("edits", "attacks", "findings")}
    for name in ("parts/edit-0-random", "parts/attack-0-oracle-unseen", "findings"):
        (folder / f"{name}.parquet").unlink()
    job = run(spec, folder)
    assert set(job.done) == {"parts/edit-0-random", "parts/attack-0-oracle-unseen", "findings"}
    for name, found in whole.items():
        pd.testing.assert_frame_equal(table(folder, name), found, check_exact=False)


def test_pipelines_other_than_before_are_refused(spec: MemorizationSpec, folder: Path) -> None:
    path = folder / "parts/subject-0-oracle.parquet"
    kept = path.read_bytes()
    pd.read_parquet(path).assign(fingerprint="0" * 32).to_parquet(path)
    with pytest.raises(UsageError, match="another oracle of seed 0"):
        run(spec, folder)
    path.write_bytes(kept)


def test_edits_are_measured_on_sets_that_were_not_located(folder: Path, bench: Bench) -> None:
    items = table(folder, "edit_items")
    for name, own in items[items["edit"] == REFERENCE].groupby("set"):
        if name in bench.sets:
            assert set(own["item"]) == {i.name for i in bench.sets[str(name)]}
    a, b = ({i.name for i in bench.sets[n]} for n in ("targeted", "held_out"))
    assert len(a) == len(b) == 2 and not a & b
    assert set(bench.seeds).isdisjoint(bench.choosing)
    assert set(bench.reference).isdisjoint(text for text, _ in bench.ordinary)


def test_a_row_of_edits_is_the_mean_of_its_items(folder: Path) -> None:
    edits, items = table(folder, "edits"), table(folder, "edit_items")
    assert {NONE, *JUDGED, *CONTROLS, "flat", "contrastive", TUNED} <= set(edits["edit"])
    for (edit, name), own in items.groupby(["edit", "set"]):
        row = edits[(edits["edit"] == edit) & (edits["measure"] == name)]
        assert row["value"].item() == pytest.approx(own["value"].mean()) and row["n"].item() == len(own)
    costs = table(folder, "costs").set_index("edit")
    assert (
        costs.loc[REFERENCE, "rows"] > 0 and costs.loc[TUNED, "rows"] > 0 and costs.loc["random", "rows"] == 0
    )
    assert costs.loc[REFERENCE, "norm"] == edits[edits["edit"] == REFERENCE]["norm"].iloc[0] > 0
    assert edits[edits["edit"] == NONE]["dose"].unique().tolist() == [0.0]


def test_pictures_are_those_of_the_items(folder: Path, bench: Bench) -> None:
    shown = table(folder, "pictures")
    item = bench.sets["targeted"][0]
    row = shown[(shown["item"] == item.name) & (shown["state"] == "original")].iloc[0]
    image = torch.tensor(np.array(row["image"])).view(row["height"], row["width"])
    assert torch.allclose(image, item.image[0].double(), atol=1e-4)
    states = set(shown["state"])
    assert {"original", "oracle", "wanda reference, attacked", f"{TUNED}, attacked"} - states == {
        "original"
    } - states
    drawn = bench.draw(bench.pipeline, [item.prompt], bench.seeds[:1])[0, 0, 0]
    before = shown[(shown["item"] == item.name) & (shown["state"] == "before")]["image"]
    assert np.allclose(np.stack(before)[0], drawn.flatten(), atol=1e-3)


def test_the_command(tmp_path: Path) -> None:
    out = CliRunner().invoke(app, ["study", "memorization", "nowhere", "--out", str(tmp_path)])
    assert out.exit_code == 2 and "no preset 'nowhere'" in out.output
    assert "memorization" in CliRunner().invoke(app, ["study", "--help"]).output


# -- edits of equal budget ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.001, 0.1])
def test_masks_and_controls_have_as_many_weights_a_row(bench: Bench, share: float) -> None:
    cuts = Cuts(bench)
    reference = cuts.mask(REFERENCE, share)
    assert 0 < share_of(reference) < 10 * share
    for name in CONTROLS:
        for part, mask in cuts.mask(name, share).items():
            assert torch.equal(mask.sum(1), reference[part].sum(1)), name
    for name in RULES:
        for part, mask in cuts.mask(name, share).items():
            assert bool((mask.sum(1) <= reference[part].sum(1)).all()), name
    assert share_of({p: m & reference[p] for p, m in cuts.mask("ordinary", share).items()}) < share_of(
        reference
    )


def test_the_published_rule_is_that_of_the_locator(bench: Bench) -> None:
    from interp.locate.memorization.wanda import WandaContrast

    found = WandaContrast("reference", null="empty", tau=2, steps=3).fit(
        bench.pipeline, list(bench.sets["targeted"])
    )
    own = Cuts(bench).mask(REFERENCE, 0.1)
    assert all(torch.equal(mask, own[part]) for part, mask in found.mask(0.1).items())


def test_a_dose_is_of_all_parts_of_a_kind(bench: Bench) -> None:
    pipe = bench.pipeline
    every = parts(pipe, "ff_out")
    sizes = [weight_of(pipe, part).numel() for part in every]
    one = Stack((Prune.units(pipe, every[0], [0, 1]),))
    assert dose_of(pipe, one) == pytest.approx(2 * weight_of(pipe, every[0]).shape[0] / sum(sizes))
    change = ModelDelta({"unet.conv_in.bias": torch.ones_like(parameter(pipe, "unet.conv_in.bias"))}, "")
    both = Stack((*one.singles, change))
    assert dose_of(pipe, both) == dose_of(pipe, one)


def test_measures_are_those_of_the_edited_pipeline(bench: Bench) -> None:
    edit = Cuts(bench).made("magnitude", 0.5)
    before, _ = measured(bench, bench.pipeline, None, (1,))
    after, items = measured(bench, bench.pipeline, edit, (1,))
    again, _ = measured(bench, bench.pipeline, None, (1,))
    pd.testing.assert_frame_equal(before, again)
    losses = [float(f.loc[f["measure"] == "loss", "value"].iloc[0]) for f in (before, after)]
    assert abs(losses[1] - losses[0]) > 1e-4
    assert items["set"].nunique() == len(after) - 1  # Frechet is of all samples together


# -- rules -------------------------------------------------------------------------------------------------------------


def doses(rows: list[tuple[str, float, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["edit", "asked", "value"])
    return frame.assign(family="located", measure="targeted", dose=frame["asked"], norm=1.0)


def test_the_budget_is_the_smallest_dose_that_erases() -> None:
    rows = [(REFERENCE, d, v) for d, v in ((0.01, 1.0), (0.1, 0.4), (0.3, 0.0))]
    rows += [("wanda corrected", d, v) for d, v in ((0.01, 1.0), (0.1, 0.1), (0.3, 0.0))]
    rows += [("random", d, 1.0) for d in (0.01, 0.1, 0.3)]
    rows += [("flat", d, v) for d, v in ((0.5, 0.9), (0.9, 0.2), (0.99, 0.6))]
    found = chosen(doses(rows), 0.1).set_index("edit")
    assert found["asked"].to_dict() == {REFERENCE: 0.1, "wanda corrected": 0.1, "random": 0.1, "flat": 0.9}
    assert found["erases"].to_dict() == {
        REFERENCE: False,
        "wanda corrected": True,
        "random": False,
        "flat": False,
    }
    none = chosen(doses([(REFERENCE, 0.1, 1.0), (REFERENCE, 0.3, 0.9)]), 0.1)
    assert none["asked"].tolist() == [0.3]


def claim(**changes: Any) -> judge.Claim:
    told = {
        "finding": "f",
        "source": "s",
        "statistic": "t",
        "value": -0.5,
        "lo": -0.7,
        "hi": -0.3,
        "boundary": 0.0,
    }
    return judge.Claim(**{**told, "above": False, "n": 10, "n_seeds": 1, **changes})


def test_verdicts() -> None:
    assert claim().verdict == judge.HOLDS
    assert claim(above=True).verdict == judge.NOT
    assert claim(hi=0.0).verdict == judge.OPEN
    assert claim(n=judge.LEAST - 1).verdict == judge.FEW
    assert claim(gate=judge.NOTHING).verdict == judge.NOTHING
    with pytest.raises(UsageError, match="over no items is refused"):
        _ = claim(n=0).verdict


def edited(**by_edit: list[float]) -> pd.DataFrame:
    rows = [
        {"seed": 0, "edit": edit.replace("_", " "), "set": name, "item": f"{name}-{i}", "value": v}
        for edit, values in by_edit.items()
        for name in ("targeted", "held_out", "alignment")
        for i, v in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_differences_are_paired_by_item_and_training() -> None:
    items = edited(none=[1.0, 1.0, 0.0, 1.0], cut=[0.0, 1.0, 0.0, 0.5])
    twice = pd.concat([items, items.assign(seed=1)])
    found = against(twice, {"cut": ["none", "absent"]})
    row = found[found["measure"] == "targeted"].iloc[0]
    assert row["value"] == pytest.approx(-1.5 / 4) and row["n"] == 8 and row["n_seeds"] == 2
    assert row["ci_lo"] < row["value"] < row["ci_hi"] and set(found["against"]) == {"none"}
    once = against(items, {"cut": ["none"]})
    single = once[once["measure"] == "targeted"].iloc[0]
    assert row["ci_hi"] - row["ci_lo"] < 0.9 * (single["ci_hi"] - single["ci_lo"])  # twice as many items
    apart = pd.concat([edited(none=[1.0]), edited(cut=[0.0]).assign(seed=1)])
    with pytest.raises(UsageError, match="nothing can be judged"):
        against(apart, {"cut": ["none"]})


def test_equal_differences_have_an_interval() -> None:
    names = [str(i) for i in range(10)]
    low, high = between(np.full(10, -1.0), names, seed=0)
    assert low == -1.0 and high == pytest.approx(0.30849710781876083 - 1)
    low, high = between(np.zeros(10), names, seed=0)
    assert low == pytest.approx(-high) and high == pytest.approx(0.30849710781876083)
    assert all(np.isnan(between(np.full(3, 7.0), names[:3], seed=0)))


def shared(cut: list[float], ordinary: list[float], keep: float = 1.0) -> pd.DataFrame:
    items = edited(**{"none": [1.0] * 8, "wanda_reference": cut, "ordinary": ordinary})
    at = (items["edit"] == REFERENCE) & (items["set"] == "alignment")
    items.loc[at, "value"] = keep
    contrasts = against(items, {REFERENCE: [NONE, "ordinary"]})
    return pd.DataFrame([c.row() for c in judge._shared(REFERENCE, items, contrasts, ())])


def test_a_shared_subspace_needs_the_ordinary_mask_to_fail_and_the_rest_to_stay() -> None:
    def verdict(found: pd.DataFrame) -> str:
        return str(found.loc[found["finding"].str.contains("held-out"), "verdict"].item())

    gone, there = [0.0] * 8, [1.0] * 8
    assert verdict(shared(gone, there)) == judge.HOLDS
    assert verdict(shared(gone, gone)) == judge.OPEN
    assert verdict(shared(there, gone)) == judge.NOTHING
    assert verdict(shared(gone, there, keep=0.0)) == judge.DAMAGE


def searches(steps: dict[str, float | None], n: int = 8) -> pd.DataFrame:
    rows = [
        {"seed": 0, "condition": c, "group": "targeted", "item": f"i{k}", "start": "normal", "restart": 0,
         "extracted": float(s is not None), "steps": np.nan if s is None else s + k % 2}
        for c, s in steps.items() for k in range(n)
    ]  # fmt: skip
    return floored(pd.DataFrame(rows), 50)


def test_ease_falls_with_steps() -> None:
    ease = searches({"a": 0.0, "b": 10.0, "c": 49.0, "d": None}).groupby("condition")["ease"].first()
    assert ease.tolist() == pytest.approx([1.0, 1 - 10 / 55, 1 - 49 / 55, 0.0])


def test_a_deletion_is_held_against_the_oracle() -> None:
    def verdicts(edit: float | None, oracle: float | None, left: float = 0.0) -> list[str]:
        items = edited(**{"wanda_reference": [left] * 8})
        rows = searches({REFERENCE: edit, ORACLE: oracle, ORIGINAL: 0.0})
        return [c.verdict for c in judge._survives(REFERENCE, items, rows)]

    assert verdicts(10.0, None) == [judge.NOT, judge.NOT]
    # What the attack makes up from the oracle as soon says nothing of memory.
    assert verdicts(10.0, 10.0) == [judge.OPEN, judge.OPEN]
    assert verdicts(None, 10.0) == [judge.HOLDS, judge.HOLDS]
    assert verdicts(10.0, None, left=1.0) == [judge.NOTHING, judge.NOTHING]
    floor = [c.verdict for c in judge._floor(searches({ORIGINAL: 0.0, ORACLE: 25.0}))]
    assert floor == [judge.NOT, judge.HOLDS]


def test_what_the_attack_makes_up_is_not_memory() -> None:
    items = edited(**{"wanda_reference": [0.0] * 8})

    def verdict(held: float | None, new: float | None, condition: str = REFERENCE) -> str:
        rows = pd.concat(
            [searches({condition: s}).assign(group=g) for s, g in ((held, "targeted"), (new, "unseen"))]
        )
        easy = rows.assign(start="prompt", ease=1.0)  # starts at the prompt do not count
        (found,) = judge._new(condition, items, pd.concat([rows, easy[easy["group"] == "targeted"]]))
        return found.verdict

    assert verdict(10.0, 10.0) == verdict(None, 10.0) == judge.HOLDS
    assert verdict(10.0, None) == verdict(10.0, 40.0) == judge.NOT
    assert verdict(10.0, 10.0, ORIGINAL) == judge.OPEN and verdict(10.0, 40.0, ORIGINAL) == judge.HOLDS


def test_what_tests_of_whole_sets_notice_is_told() -> None:
    def verdict(c_t: float) -> str:
        rows = {"seed": [0, 1, 0], "set": ["mixed", "mixed", "memorized"], "c_t": [0.1, c_t, -9.0], "extracted": 0.1,
                "n": 60}  # fmt: skip
        (found,) = judge._unnoticed(pd.DataFrame(rows))
        return found.verdict

    assert verdict(-0.5) == judge.HOLDS and verdict(-2.0) == judge.NOT


def test_existence_is_judged_in_every_training() -> None:
    def verdicts(memorized: float, control: float) -> list[str]:
        rows = [
            {"seed": s, "role": r, "group": g, "item": f"{g}{i}", "extracted": v if r == "model" else 0.0}
            for s in (0, 1) for r in ("model", "oracle") for g, v in (("memorized", 1.0), ("control", 0.0))
            for i in range(8)
        ]  # fmt: skip
        frame = pd.DataFrame(rows)
        second = (frame["seed"] == 1) & (frame["role"] == "model")
        frame.loc[second & (frame["group"] == "memorized"), "extracted"] = memorized
        frame.loc[second & (frame["group"] == "control"), "extracted"] = control
        return [c.verdict for c in judge._exists(frame)]

    assert verdicts(1.0, 0.0) == [judge.HOLDS, judge.HOLDS]
    assert verdicts(0.7, 0.0)[0] == judge.NOT and verdicts(1.0, 0.1)[0] == judge.NOT
    with pytest.raises(UsageError, match="no samples of the group memorized"):
        judge._exists(pd.DataFrame({"role": ["model"], "group": ["control"], "seed": [0], "item": ["a"]}))


# -- tables ------------------------------------------------------------------------------------------------------------


def test_signals_are_compared_with_each_group() -> None:
    rows = [
        {"seed": 0, "role": "model", "group": g, "item": f"{g}{i}", "first": v + i / 100, "all": -v, "one_step": v,
         "similarity": v, "spread": -v}
        for g, v in (("memorized", 1.0), ("control", 1.0), ("base", 0.0)) for i in range(6)
    ]  # fmt: skip
    auc = detection(pd.DataFrame(rows)).set_index(["against", "signal"])["auc"]
    assert auc["base", "first"] == 1.0 and auc["base", "spread"] == 1.0 and auc["base", "all"] == 0.0
    assert auc["control", "one_step"] == 0.5


def test_curves_over_exposures() -> None:
    rows = pd.DataFrame(
        {"seed": [0, 0, 1, 0], "part": 1.0, "group": "graded", "planned": [3, 3, 3, 30], "item": ["a", "b", "a", "c"],
         "recall": [0.0, 1.0, 1.0, 1.0], "recognized": [0.5, 0.75, 1.0, 1.0]}
    )  # fmt: skip
    found = exposure_curves(rows).set_index(["exposures", "measure"])
    assert found.loc[(3, "recall"), "value"] == pytest.approx(2 / 3)
    assert found.loc[(3, "recall"), "n"] == 3 and found.loc[(3, "recall"), "n_seeds"] == 2
    assert found.loc[(30, "recognition"), "value"] == 1.0 and found.loc[(3, "recognition"), "value"] == 0.75


def test_items_are_dealt_with_their_like() -> None:
    def items(*digits: str) -> list[ImageItem]:
        return [
            ImageItem(f"{d}-{i}", f"a zorax poster of the digit {d}", torch.zeros(1, 8, 8))
            for i, d in enumerate(digits)
        ]

    balanced = strata_of({"A": items("one", "two"), "B": items("two", "one"), "controls": items("one")})
    assert balanced == ["one", "two", "two", "one", "one"]
    mixed = strata_of({"A": items("one", "five"), "B": items("six", "one")})
    assert mixed == ["one", "others", "others", "one"]
    assert strata_of({"A": items("one", "five"), "B": items("one", "one")}) is None


def test_blocks_of_parameters() -> None:
    assert block_of("unet.down_blocks.0.attentions.1.proj_in.weight") == "unet.down_blocks.0.attentions.1"
    assert block_of("unet.mid_block.resnets.0.conv1.weight") == "unet.mid_block.resnets.0"
    assert block_of("unet.conv_in.weight") == "unet.conv_in"


def test_specs() -> None:
    quick = MemorizationSpec.quick("full", seed=3)
    assert quick.model == "quick" and quick.seed == 3 and quick.train_seeds == (0,)
    for wrong in (
        {"model": "huge"},
        {"train_seeds": ()},
        {"train_seeds": (1, 1)},
        {"tau": 30},
        {"dear": ("x",)},
        {"doses": (0.3, 0.1)},
    ):
        with pytest.raises(ValidationError):
            MemorizationSpec(**wrong)
    assert set(JUDGED) <= set(RULES)
    assert json.loads(quick.model_dump_json())["first"] == 5000
    assert MemorizationStudy.__doc__
