"""The main job on the real model, small: stopped in the middle, gone on with, and found done."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest

from interp.atlas import AtlasSpec, run
from interp.measure.effects import COLUMNS
from interp.tasks.registry import task

SPEC = AtlasSpec(
    model="smollm2",
    locate_kinds=("words",),
    locate_lengths=(96,),
    locate_n=4,
    measure_kinds=("names",),
    measure_lengths=(96,),
    measure_n=4,
    doses=(1, 5),
    dose_length=96,
    dose_n=4,
    modes=("zero",),
    controls=3,
    all_doses=(5,),
    all_controls=2,
    top=5,
    facts_n=20,
    facts_keep=4,
    prose_n=2,
    induction_n=3,
    channels=300,
    channel_modes=("K",),
    channel_doses=(4, 12),
    channel_controls=2,
    fact_trace_n=4,
    fact_exact=2,
    fact_neuron_layers=1,
    fact_neuron_cuts=(8,),
    fact_controls=1,
    fact_length=64,
    patch_n=1,
    patch_length=64,
)


@pytest.fixture(scope="module")
def folder(smollm2, tmp_path_factory) -> Path:
    """A run that was interrupted after its first measurement and started again."""
    place = tmp_path_factory.mktemp("atlas") / "run"
    stages: list[str] = []

    def until_induction(name: str):
        stages.append(name)
        if "induction" in name:
            raise KeyboardInterrupt
        return nullcontext(None)

    with pytest.raises(KeyboardInterrupt):
        run(SPEC, place, subject=smollm2, stage=until_induction)
    assert "locate retrieval heads" in stages and not list(place.rglob("*.partial"))
    there = {str(p.relative_to(place)) for p in place.rglob("*.parquet")}
    assert there == {
        f"{n}.parquet" for n in ("scores", "groups", "instances", "parts/dose-zero", "parts/all-niah-96")
    }
    job = run(SPEC, place, subject=smollm2, static=False)
    assert job.skipped == ["scores", "groups", "instances", "parts/dose-zero", "parts/all-niah-96"]
    assert "patch" in job.done and "rows" in job.done
    assert {"channels", "channel_spectrum", "channel_effects"} <= set(job.done)
    assert {f"fact_{n}" for n in ("census", "profile", "layers", "neurons", "effects")} <= set(job.done)
    return place


def test_the_run_folder_holds_what_it_should(folder):
    for name in (
        "spec.yaml",
        "provenance.json",
        "rows.json",
        "report.html",
        "effects.parquet",
        "patch.parquet",
    ):
        assert (folder / name).stat().st_size > 100, name
    assert (folder / "figures" / "heads.json").exists()
    effects = pd.read_parquet(folder / "effects.parquet")
    assert list(effects.columns) == COLUMNS
    assert set(effects.task) == {"niah", "niah 96", "induction", "facts", "prose"}
    assert set(effects.role) == {"target", "control_task", "off_target"}
    assert set(effects[effects.task == "prose"].metric) == {"nll"}


def test_the_cut_takes_recall_and_controls_do_not(folder):
    effects = pd.read_parquet(folder / "effects.parquet").query("metric == 'logit_diff' and scope == 'all'")
    niah = effects[effects.task == "niah 96"]
    cut, controls = niah[niah.condition == "cut"].delta.item(), niah[niah.condition == "control"].delta
    assert len(controls) == 2 and cut < -0.5 and cut < controls.min() - 0.5


def test_components_that_the_heads_read_are_deleted(folder, smollm2):
    from interp.atlas_channels import read_by
    from interp.models.sites import component

    edges, rows = (pd.read_parquet(folder / f"{n}.parquet") for n in ("channels", "channel_effects"))
    assert list(rows.columns) == COLUMNS and set(rows.task) == {"niah 96", "prose"}
    assert set(rows.mechanism) == {"channels"} and set(rows.locator) == {"Channels"}
    assert set(edges["mode"]) == {"K"}
    scores = pd.read_parquet(folder / "scores.parquet").query("method == 'copy'")
    top = scores.sort_values("score", ascending=False, kind="stable").component[:5]
    parts = [repr(p) for p in read_by(smollm2, edges, [component(c) for c in top])]
    niah = rows.query("metric == 'logprob'")
    cuts = niah[niah.condition == "cut"]
    assert cuts.components.tolist() == [" ".join(parts[:k]) for k in cuts.k]
    # A dose of more components than these heads read is all that they read, and says how many.
    assert len(parts) > 4 and cuts.k.tolist() == sorted({min(k, len(parts)) for k in (4, 12)})
    assert niah[niah.condition == "control"].groupby("k").size().tolist() == [2, 2]
    assert rows[(rows.task == "prose") & (rows.condition == "cut")].k.tolist() == [cuts.k.max()]


def test_facts_are_cut_where_they_were_found_and_on_other_subjects(folder, smollm2):
    from interp.measure.known import census

    told, layers, rows = (
        pd.read_parquet(folder / f"fact_{n}.parquet") for n in ("census", "layers", "effects")
    )
    want = census(smollm2, task("facts", n=20, seed=0)).set_index("relation")
    own = told.set_index("relation")
    assert own.known[:-1].tolist() == want.known.tolist() and own.loc["all", "asked"] == 20
    best = int(layers.sort_values("score", ascending=False).layer.iloc[0])
    cut = rows[(rows.mechanism == "fact MLPs") & (rows.condition == "cut")]
    assert set(cut.components) == {" ".join(f"M{i}" for i in range(max(0, best - 1), min(30, best + 2)))}
    facts = rows[(rows.task == "held-out facts") & (rows.metric == "accuracy")]
    # Every fact of the other half is answered right by the intact model, and the same ones are asked of each cut.
    assert (
        facts[facts.condition == "clean"].value.eq(1).all()
        and facts.n.nunique() == 1
        and facts.n.iloc[0] == 4
    )
    profile = pd.read_parquet(folder / "fact_profile.parquet")
    assert profile.groupby("said").n.max().to_dict() == {
        "facts it knows": 4,
        "what it says where it is wrong": 4,
    }


def test_done_is_done(folder, smollm2):
    before = {p: p.read_bytes() for p in folder.rglob("*.parquet")}
    again = run(SPEC, folder, subject=smollm2, static=False)
    assert again.done == []
    assert {p: p.read_bytes() for p in folder.rglob("*.parquet")} == before


def test_a_fresh_run_gives_the_same_numbers(folder, smollm2, tmp_path):
    from interp.locate.retrieval_heads import RetrievalHeads

    niah = task("niah", length=96, kinds=("words",), n=4, seed=0, haystack="train")
    scores = RetrievalHeads().fit(smollm2, niah).scores_
    pd.testing.assert_frame_equal(scores, pd.read_parquet(folder / "scores.parquet"))
