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

from interp.cli import app, memory_demo
from interp.errors import UsageError
from interp.intervene.weights import ModelDelta, Prune, Stack, parameter
from interp.locate.memorization.masks import share_of
from interp.measure.memorization import encoder
from interp.models.parts import parts, weight_of
from interp.models.zoo.digits import subject
from interp.studies.memorization.audit import (
    NEGATED,
    TUNED,
    UNHELD,
    block_of,
    floored,
    unheld,
)
from interp.studies.memorization.bench import Bench
from interp.studies.memorization.controls import JUDGED, Controls, control_name, kind_of
from interp.studies.memorization.cuts import NONE, REFERENCE, RULES, Cuts, chosen, dose_of, early
from interp.studies.memorization.detect import detection, exposure_curves
from interp.studies.memorization.measures import measured
from interp.studies.memorization.shared import strata_of
from interp.studies.memorization.spec import MemorizationSpec
from interp.studies.memorization.study import MemorizationStudy, run
from interp.tasks.memorized import ImageItem

MINI: dict[str, Any] = {
    "memorized": 4, "exposures": 8, "controls": 2, "control_exposures": 4, "varied": 1, "template": 1,
    "levels": (2, 100), "early_levels": (2,), "per_level": 1, "base_images": 40, "base": 2,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "model": "mini", "train_seeds": (0,), "guidance": 1.5, "also": (), "steps": 3, "samples": 1, "base": 20,
    "held_out": 8, "doses": (0.03, 0.5), "ranks": (1,), "masses": (0.6,), "dear": ("contrastive",), "tau": 2,
    "draws": 19, "attacked": 2, "starts": ("normal",), "restarts": 1, "attack_steps": 2, "updates": 2, "rounds": 1,
    "trajectory": (0.5, 1.0), "cheap": ("subspace", "flat"), "attack_sets": ("targeted", "unseen"), "taus": (1,),
    "random": 2,
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
    lost = "parts/edit-0-random-1-wanda-reference", "parts/attack-0-oracle-unseen", "findings"
    for name in lost:
        (folder / f"{name}.parquet").unlink()
    job = run(spec, folder)
    assert set(job.done) == set(lost)
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
    assert {i.prompt for i in (*bench.base, *bench.kept)} <= set(bench.reference), (
        "kept captions are not measured"
    )
    digit = [[i.prompt.split()[-1] for i in some] for some in (unheld(bench), bench.sets["targeted"])]
    assert digit[0] == digit[1] and {i.group for i in unheld(bench)} == {"unseen"}


def test_a_row_of_edits_is_the_mean_of_its_items(folder: Path) -> None:
    edits, items = table(folder, "edits"), table(folder, "edit_items")
    beside = {
        control_name(k, e) for e in JUDGED for k in ("random 0", "random 1", "magnitude", "ordinary", "words")
    }
    others = {control_name(k, "subspace") for k in ("random 0", "ordinary")}
    assert set(edits[edits["control"]]["edit"]) == beside | others | {
        "random 0 (contrastive)",
        *UNHELD.values(),
    }
    assert set(edits[~edits["control"]]["edit"]) == {
        NONE,
        *JUDGED,
        "subspace",
        "flat",
        "contrastive",
        TUNED,
        NEGATED,
    }
    assert set(edits[edits["edit"] == UNHELD[TUNED]]["of"]) == {TUNED}
    for (edit, name), own in items.groupby(["edit", "set"]):
        row = edits[(edits["edit"] == edit) & (edits["measure"] == name)]
        assert row["value"].item() == pytest.approx(own["value"].mean()) and row["n"].item() == len(own)
    costs = table(folder, "costs").set_index("edit")
    assert costs.loc[REFERENCE, "rows"] > 0 and costs.loc[TUNED, "rows"] > 0
    assert costs.loc["random 0 (wanda reference)", "rows"] == 0
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


def test_the_demo_names_findings_that_there_are(folder: Path) -> None:
    found = table(folder, "findings")["finding"]
    for begins in memory_demo._MAIN:
        assert found.str.startswith(begins).any(), begins


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
    for name in RULES:
        for part, mask in cuts.mask(name, share).items():
            assert bool((mask.sum(1) <= reference[part].sum(1)).all()), name
    controls = Controls(cuts)
    for edit in JUDGED:
        of, seen = cuts.cut(edit, share), []
        own = {single.part: single.mask for single in of.made().singles}
        assert all(torch.equal(mask, cuts.mask(edit, share)[part]) for part, mask in own.items())
        for names in controls.of(edit).values():
            for name in names:
                made = controls.cut(name, of).made()
                masks = {single.part: single.mask for single in made.singles}
                assert set(masks) == set(own)
                for part, mask in masks.items():
                    assert torch.equal(mask.sum(1), own[part].sum(1)), name
                seen.append(torch.cat([masks[part].flatten() for part in sorted(masks)]))
        seen.append(torch.cat([own[part].flatten() for part in sorted(own)]))
        # No two of them are the same, and draws are not.
        assert len({tuple(s.nonzero().flatten().tolist()) for s in seen}) == len(seen) == 6


def test_draws_of_controls_differ_between_trainings(bench: Bench) -> None:
    cuts = Cuts(bench)
    of = cuts.cut(REFERENCE, 0.1)
    name = control_name("random 0", REFERENCE)
    here = Controls(cuts).cut(name, of).made()
    again = Controls(cuts).cut(name, of).made()
    there = Controls(cuts)
    there.bench = Bench(bench.spec, 1)
    assert there.seed != Controls(cuts).seed
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(here.singles, again.singles, strict=True))
    assert kind_of(name) == "random" and kind_of(REFERENCE) == kind_of("random") == ""


def test_controls_of_directions_have_their_rank_and_norm(bench: Bench) -> None:
    cuts = Cuts(bench)
    of = cuts.cut("subspace", 1)
    norm = of.made().budget(bench.pipeline).norm
    controls = Controls(cuts)
    assert controls.of("flat") == {} and set(controls.of("subspace")) == {"random", "ordinary"}
    for names in controls.of("subspace").values():
        made = controls.cut(names[0], of).made()
        assert made.budget(bench.pipeline).norm == pytest.approx(norm, rel=1e-3)


def test_fewer_steps_are_those_of_the_locator(bench: Bench) -> None:
    cuts = Cuts(bench)
    for rule in JUDGED:
        whole, first = cuts.mask(rule, 0.1), cuts.mask(early(rule, 1), 0.1)
        assert any(not torch.equal(whole[part], first[part]) for part in whole)
    own = cuts.mask(early(REFERENCE, 1), 0.1)
    assert all(torch.equal(m, own[p]) for p, m in cuts.wanda.mask(0.1, rule="reference", tau=1).items())


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
    edit = Cuts(bench).made(REFERENCE, 0.5)
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


def test_the_dose_is_the_smallest_that_erases() -> None:
    rows = [(REFERENCE, d, v) for d, v in ((0.01, 1.0), (0.1, 0.4), (0.3, 0.0))]
    rows += [("wanda corrected", d, v) for d, v in ((0.01, 1.0), (0.1, 0.1), (0.3, 0.0))]
    rows += [(early(REFERENCE, 1), 0.01, 0.0)]
    rows += [("flat", d, v) for d, v in ((0.5, 0.9), (0.9, 0.2), (0.99, 0.6))]
    frame = doses(rows)
    control = doses([("random 0 (wanda reference)", 0.001, 0.0)]).assign(family="control")
    found = chosen(pd.concat([frame, control]), 0.1).set_index("edit")
    assert found["asked"].to_dict() == {REFERENCE: 0.3, "wanda corrected": 0.1, "flat": 0.9}
    assert found["erases"].to_dict() == {REFERENCE: True, "wanda corrected": True, "flat": False}
    none = chosen(doses([(REFERENCE, 0.1, 0.9), (REFERENCE, 0.3, 0.9), (REFERENCE, 0.5, 1.0)]), 0.1)
    assert none["asked"].tolist() == [0.1] and not none["erases"].any()


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
        {"taus": (10,)},
        {"random": 1, "random_other": 2},
        {"dear": ("x",)},
        {"doses": (0.3, 0.1)},
    ):
        with pytest.raises(ValidationError):
            MemorizationSpec(**wrong)
    assert set(JUDGED) <= set(RULES)
    assert json.loads(quick.model_dump_json())["first"] == 5000
    assert MemorizationStudy.__doc__
