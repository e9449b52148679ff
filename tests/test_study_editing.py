"""The editing study on a tiny model: every part, gone on with, against direct calls; and its rules on made numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from interp.cli import app
from interp.errors import NoAcceptedExample
from interp.intervene.facts import (
    FactEdit,
    Prefixes,
    Search,
    common_text,
    memit,
    residuals,
    rome,
    second_moments,
)
from interp.intervene.facts.memit import SEARCH
from interp.intervene.trace import trace_map
from interp.measure.edits import score_edits, scoreboard
from interp.measure.metrics import divergence
from interp.measure.outcomes import evaluate
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.studies.editing.findings import TRACES, beyond, findings, verdict
from interp.studies.editing.localise import TRACE, gain, gain_ci, gain_p
from interp.studies.editing.records import choose, questions
from interp.studies.editing.scoring import changes, difference, ranked, scoreboards
from interp.studies.editing.spec import EditingSpec
from interp.studies.editing.study import EditingStudy, run
from interp.tasks.prose import unseen
from tests.tiny import byte_tokenizer, tiny

SMALL: dict[str, Any] = {
    "relations": ("capital", "currency"), "ask": 14, "keep_unknown": True, "n": 3, "train": 2, "neighbours": 2,
    "contexts": 1, "steps": 3, "layer_step": 2, "width": 2, "memit_ends": 2, "memit_weights": (0.1, 1.0),
    "at_once": (1, 2, 9), "noise": 2, "passages": 2, "fluency_n": 1, "fluency_tokens": 10,
}  # fmt: skip
"""Sizes for a model of three layers and a tokenizer of bytes."""

TABLES = (
    "facts", "records", "scan", "layers", "effects", "localisation", "windows", "scores", "scoreboard", "changes",
    "edits", "drift", "fluency", "findings",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(tiny("llama"), Tokens(byte_tokenizer()), name="tiny")


@pytest.fixture(scope="module")
def spec() -> EditingSpec:
    return EditingSpec(model="tiny", **SMALL)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Moments go into a folder of the tests' own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("INTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def study(spec: EditingSpec, model: CausalLM, cached: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("editing") / "run"
    before = model.weights_hash
    state = torch.random.get_rng_state()
    job = run(spec, folder, subject=model)
    assert not job.skipped and model.weights_hash == before
    assert torch.equal(torch.random.get_rng_state(), state)
    return folder


def table(study: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(study / f"{name}.parquet")


def made(spec: EditingSpec, model: CausalLM, study: Path) -> EditingStudy:
    """The study over its own folder, to ask it for what it chose."""
    from interp.runs import Run

    return EditingStudy(spec, Run(study, spec), model)


def test_it_goes_on_where_it_stopped_and_says_the_same(
    study: Path, spec: EditingSpec, model: CausalLM
) -> None:
    before = {name: (study / f"{name}.parquet").read_bytes() for name in TABLES}
    for part in ("scan-002", "rome-00", "memit-002-00"):
        (study / "parts" / f"{part}.parquet").unlink()
    job = run(spec, study, subject=model)
    assert set(job.done) == {"parts/scan-002", "parts/rome-00", "parts/memit-002-00"}
    assert before == {name: (study / f"{name}.parquet").read_bytes() for name in TABLES}


def test_no_subject_is_used_twice_and_no_neighbour_is_edited(
    study: Path, spec: EditingSpec, model: CausalLM
) -> None:
    found = table(study, "records")
    assert found["split"].value_counts().to_dict() == {"edit": 3, "train": 2}
    assert found["record"].str.split(": ").str[1].is_unique
    chosen = made(spec, model, study).chosen
    asked = {e.ids for e in (*chosen.train, *chosen.edit)}
    neighbours = [n.ids for r in (*chosen.train_records, *chosen.edit_records) for n in r.neighbours]
    assert len(neighbours) == 10 and not asked & set(neighbours)
    census = table(study, "facts").set_index("relation")
    assert census["asked"].to_dict() == {"capital": 14, "currency": 14}
    assert census[["train", "edit"]].sum().to_dict() == {"train": 2, "edit": 3}
    # One of each relation in turn.
    assert sorted(census[["train", "edit"]].sum(axis=1)) == [2, 3]
    # What the model knows decides, unless it is told otherwise: a random model knows nothing.
    assert census["known"].sum() == 0
    with pytest.raises(NoAcceptedExample, match="of the facts that were asked, of which 1 can be edited"):
        choose(model, spec, questions(model, spec, "capital")[:1])


def test_the_scan_is_rome_in_every_layer_and_the_best_layer_is_taken(
    study: Path, spec: EditingSpec, model: CausalLM
) -> None:
    own = made(spec, model, study)
    record = own.chosen.train_records[1]
    prefixes = Prefixes.written(model, 1, seed=0)
    edit = rome(model, record.rewrite, 2, second_moments(model), prefixes=prefixes, search=Search(steps=3))
    wanted = score_edits(model, [record], [edit])
    scan = table(study, "scan")
    found = scan[(scan["layer"] == 2) & (scan["record"] == record.name)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[wanted.columns], wanted)
    layers = table(study, "layers")
    assert layers["layer"].tolist() == [0, 2] and layers["chosen"].sum() == 1 and layers["ends"].all()
    order = layers.assign(sizes=layers[["EM", "PM", "NM"]].sum(axis=1)).sort_values(["S", "sizes"])
    assert own.layer == order["layer"].iloc[-1] == layers.loc[layers["chosen"], "layer"].item()
    board = scoreboard(scan[scan["layer"] == 2]).set_index(["state", "measure"])["value"]
    assert layers.set_index("layer").loc[2, "NM"] == pytest.approx(board["after", "NM"])


def test_edits_are_files_that_are_exact_and_taken_back(
    study: Path, spec: EditingSpec, model: CausalLM
) -> None:
    own = made(spec, model, study)
    edits = table(study, "edits")
    assert edits.groupby(["method", "at_once"]).size().to_dict() == {
        ("rome", 1): 3, ("memit", 1): 3, ("memit", 2): 2, ("memit", 3): 1,
    }  # fmt: skip
    assert edits["restored"].all() and edits["loaded"].all()
    assert edits["in_weights"].max() < 1e-3 < edits["changed"].min()
    record, layer = own.chosen.edit_records[2], own.layer
    assert set(edits.loc[edits["method"] == "rome", "layer"]) == {layer}
    wanted = rome(
        model,
        record.rewrite,
        layer,
        second_moments(model),
        prefixes=Prefixes.written(model, 1, seed=0),
        search=Search(steps=3),
    )
    file = study / "edits" / "rome-002.safetensors"
    assert FactEdit.load(file, model).edits == wanted.edits
    row = edits[(edits["method"] == "rome") & (edits["record"] == record.name)].iloc[0]
    assert row["bytes"] == file.stat().st_size and row["dense_bytes"] == 80 * 48 * 4
    assert row["nll"] == wanted.history[0][-1]["nll"] and row["steps"] == 3


def test_scores_are_of_the_edits_and_of_their_controls(
    study: Path, spec: EditingSpec, model: CausalLM
) -> None:
    own = made(spec, model, study)
    records = own.chosen.edit_records
    edits = [FactEdit.load(study / "edits" / f"rome-{i:03d}.safetensors", model) for i in range(3)]
    scores = table(study, "scores")

    def of(method: str, at_once: int) -> pd.DataFrame:
        kept = scores[(scores["method"] == method) & (scores["at_once"] == at_once)]
        return kept.reset_index(drop=True)[
            ["record", "kind", "prompt", "state", "p_new", "p_true", "success"]
        ]

    def wanted(given: Any) -> pd.DataFrame:
        return score_edits(model, records, given)[of("rome", 1).columns]

    pd.testing.assert_frame_equal(of("rome", 1), wanted(edits))
    every = edits[0] + edits[1] + edits[2]
    pd.testing.assert_frame_equal(of("rome together", 3), wanted(every), atol=1e-5, rtol=1e-4)
    pd.testing.assert_frame_equal(of("other fact", 1), wanted([edits[1], edits[2], edits[0]]))
    random = own._controls()
    assert len(random) == 2 * len(of("rome", 1))
    board = table(study, "scoreboard").set_index(["method", "at_once", "state", "measure"])
    total = board.loc[("rome", 1, "after", "S")]
    assert 0 <= total["ci_lo"] <= total["value"] <= total["ci_hi"] <= 1
    chosen = own.chosen
    trained = {n.ids for x in chosen.train_records for n in x.neighbours}
    for i, x in enumerate(records):
        rows = scores[(scores["record"] == x.name) & (scores["method"] == "memit") & (scores["at_once"] == 2)]
        for row in rows[rows["state"] == "after"].itertuples():
            kind, ids, true = x.prompts()[row.prompt]
            assert row.same_object == (kind == "neighbour" and true == x.rewrite.true)
            assert row.shared == (kind == "neighbour" and ids in trained)
        assert set(rows["unit"]) == {"group"} and set(rows["cluster"]) == {f"group {i // 2}"}
    kept = scores[~scores["shared"] & (scores["kind"] == "neighbour") & (scores["state"] == "after")]
    alone = kept[kept["method"] == "rome"].groupby("record")["success"].mean().mean()
    assert board.loc[("rome", 1, "after", "NS"), "value"] == pytest.approx(alone)
    assert board.loc[("memit", 2, "after", "ES"), ["unit", "units"]].tolist() == ["group", 2]
    assert board.loc[("memit", 3, "after", "ES"), "unit"] == "record, given this edit"
    assert board.loc[("rome", 1, "after", "EM"), "value"] == pytest.approx(
        scores.query("method == 'rome' and kind == 'efficacy' and state == 'after'")["magnitude"].mean()
    )
    changes = table(study, "changes").set_index(["method", "at_once", "measure"])
    delta = board.loc[("memit", 2, "after", "PM"), "value"] - board.loc[("memit", 2, "before", "PM"), "value"]
    assert changes.loc[("memit", 2, "PM"), "delta"] == pytest.approx(delta)


def test_random_values_have_the_length_of_the_edits(study: Path, model: CausalLM) -> None:
    from interp.studies.editing.writing import control, together

    edits = [FactEdit.load(study / "edits" / f"rome-{i:03d}.safetensors", model) for i in range(3)]
    (own,) = edits[0].edits
    drawn = control(edits, 0, "random value", 0)
    assert torch.equal(drawn.a, own.a) and float(drawn.b.norm()) == pytest.approx(float(own.b.norm()))
    assert abs(float(torch.cosine_similarity(drawn.b, own.b).item())) < 0.6
    assert control(edits, 2, "other fact", 0) == edits[0].edits[0]
    whole = together(edits)
    torch.testing.assert_close(whole.a @ whole.b, sum(e.edits[0].a @ e.edits[0].b for e in edits))


def test_memit_takes_the_window_that_is_best_on_train_facts(
    study: Path, spec: EditingSpec, model: CausalLM
) -> None:
    own = made(spec, model, study)
    windows = table(study, "windows")
    assert sorted(windows["layers"]) == ["0-0", "0-0", "1-2", "1-2"] and windows["chosen"].sum() == 1
    assert windows["S"].iloc[0] == windows["S"].max() and windows["chosen"].iloc[0]
    best = windows.iloc[0]
    px = Prefixes.written(model, 1, seed=0)
    search = Search(steps=3, step=SEARCH.step, clamp=SEARCH.clamp)
    rewrites = [r.rewrite for r in own.chosen.edit_records]
    layers = [int(x) for x in str(best["layers"]).split("-")]
    asked = {"weight": float(best["weight"]), "prefixes": px, "search": search}
    wanted = memit(model, rewrites, range(layers[0], layers[1] + 1), second_moments(model), **asked)
    found = FactEdit.load(study / "edits" / "memit-003-000.safetensors", model)
    assert found.edits == wanted.edits and found.recipe["weight"] == best["weight"]
    # The second group of two is the third fact alone.
    assert len(FactEdit.load(study / "edits" / "memit-002-001.safetensors", model).rewrites) == 1


def test_residuals_serve_all_windows_and_choices_of_facts(
    model: CausalLM, study: Path, spec: EditingSpec
) -> None:
    rewrites = [r.rewrite for r in made(spec, model, study).chosen.edit_records]
    search = Search(steps=2, step=0.1)
    found = residuals(model, rewrites, 1, prefixes=Prefixes(), search=search)
    asked = {"prefixes": Prefixes(), "search": search}
    for layers, at in (((0, 1), (0, 1, 2)), ((1,), (2,))):
        wanted = memit(model, [rewrites[i] for i in at], layers, None, **asked)
        edit = memit(model, [rewrites[i] for i in at], layers, None, found=found.of(at))
        assert edit.edits == wanted.edits and edit.history == wanted.history and edit.recipe == wanted.recipe
    for given, told in (((0, 2), "behind layer 1"), ((0, 1), "residuals of 1 facts")):
        with pytest.raises(Exception, match=told):
            memit(model, rewrites, given, None, found=found if given[1] == 2 else found.of([0]))


def test_effects_are_those_of_the_map_at_the_subjects_last_token(
    study: Path, spec: EditingSpec, model: CausalLM
) -> None:
    own = made(spec, model, study)
    effects = table(study, "effects")
    assert len(effects) == 2 * 2 * 2 * 2 * 2  # records, layers, kinds, corruptions, metrics
    example, record = own.chosen.train[1], own.chosen.train_records[1]
    # The trace asks for the token at which the edit is judged.
    at = divergence(example.foil_ids, example.answer_ids)
    example = replace(example, meta={**example.meta, "score_at": at})
    wanted = trace_map(model, example, "mlp_out", corruption="subject_swap", metric="logit_diff")
    wanted = wanted[(wanted["place"] == "last subject") & (wanted["layer"] == 2)].iloc[0]
    (found,) = effects[
        (effects["record"] == record.name)
        & (effects["layer"] == 2)
        & (effects["kind"] == "mlp_out")
        & (effects["corruption"] == "subject_swap")
        & (effects["metric"] == "logit_diff")
    ].to_dict("records")
    assert found["effect"] == pytest.approx(wanted["effect"], abs=1e-5)
    assert found["te"] == pytest.approx(wanted["high"] - wanted["low"], abs=1e-5)
    localisation = table(study, "localisation")
    assert len(localisation) == 8 * 3 and set(localisation["n"]) == {4}


def test_drift_and_fluency_are_measured_under_the_edits(
    study: Path, spec: EditingSpec, model: CausalLM
) -> None:
    drift = table(study, "drift")
    sizes = drift.groupby(["method", "at_once"])["group"].nunique().to_dict()
    assert sizes == {
        ("rome", 1): 3,
        ("rome together", 3): 1,
        ("memit", 1): 3,
        ("memit", 2): 2,
        ("memit", 3): 1,
    }
    seen = common_text().examples(model)
    passages = unseen(model, seen, n=2)
    assert set(drift["topic"]) == {e.cluster for e in passages}
    edit = FactEdit.load(study / "edits" / "rome-001.safetensors", model)
    values = evaluate(model, passages, {"": None, "edit": edit}).values
    own = drift[(drift["method"] == "rome") & (drift["group"] == 1)]
    assert own["nll_after"].to_numpy() == pytest.approx(values["edit"]["nll"], abs=1e-5)
    assert own["nll_before"].to_numpy() == pytest.approx(values[""]["nll"], abs=1e-5)
    fluent = table(study, "fluency")
    assert sorted(set(fluent["method"])) == ["memit", "rome", "rome together"] and len(fluent) == 6
    cost = table(study, "cost")
    assert set(cost["method"]) == {"none", "rome", "memit"} and (cost["seconds"] > 0).all()


def test_findings_follow_their_intervals(study: Path) -> None:
    found = table(study, "findings")
    assert set(found["verdict"]) == {"undecided"}  # three records tell nothing
    assert found["finding"].str.startswith("a trace says").sum() == 6
    assert verdict(0.1, 1.0, 5) == verdict(0.0, 1.0, 9) == "undecided"
    assert verdict(-1.0, -0.5, 6) == "does not"


# -- rules on made numbers -------------------------------------------------------------------------------------------


def scores_of(
    es: list[float], ps: list[float], ns: list[float], magnitude: float = 0.5, **about: Any
) -> pd.DataFrame:
    rows = [
        {"record": f"r{i}", "kind": kind, "state": state, "success": float(v), "top": float(v), "magnitude": magnitude}
        for kind, values in (("efficacy", es), ("paraphrase", ps), ("neighbour", ns))
        for i, v in enumerate(values)
        for state in ("before", "after")
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**about)


def test_layers_are_ranked_by_s_and_then_by_magnitudes() -> None:
    frame = pd.concat(
        [
            scores_of([1, 1], [1, 0], [1, 1], 0.1, layer=3),
            scores_of([1, 1], [1, 1], [1, 1], 0.1, layer=6),
            scores_of([1, 1], [1, 1], [1, 1], 0.2, layer=9),
            scores_of([1, 1], [0, 0], [1, 1], 0.9, layer=12),
        ]
    )
    found = ranked(frame, ["layer"])
    assert found["layer"].tolist() == [9, 6, 3, 12]
    assert found["S"].tolist() == pytest.approx([1.0, 1.0, 3 / (1 + 2 + 1), 0.0])


def test_a_difference_of_s_is_paired_by_record() -> None:
    from interp.studies.editing.scoring import by_record

    frame = scores_of([1] * 8, [1] * 8, [1] * 8)
    one = by_record(frame, "after")
    alone = pd.Series(one.index, index=one.index)
    other = by_record(scores_of([1] * 8, [1, 1, 1, 1, 0, 0, 0, 0], [1] * 8), "after")
    value, low, high = difference(one, other, alone, seed=0)
    assert value == pytest.approx(1 - 3 / 4) and 0 < low < value < high < 0.8
    assert difference(one, one, alone, seed=0) == (0.0, 0.0, 0.0)
    # Of two groups that each share an edit, draws are of all of one, or of both.
    halves = alone.where(alone.index < "r4", "second").where(alone.index >= "r4", "first")
    assert difference(one, other, halves, seed=0)[1:] == (0.0, 1.0)


def test_a_gain_is_held_against_shuffled_records() -> None:
    rng = np.random.default_rng(0)
    effects = rng.standard_normal((10, 6))
    layers = 5 * rng.standard_normal(6)
    assert gain_p(layers + effects, effects + 3 * layers, seed=0) == pytest.approx(1e-3)
    # That layers differ in both is no gain.
    assert gain_p(layers + rng.standard_normal((10, 6)), effects + 3 * layers, seed=0) > 0.05
    assert np.isnan(gain_p(np.tile(layers, (10, 1)), effects, seed=0))


def told(scores: pd.DataFrame, localisation: pd.DataFrame | None = None) -> pd.DataFrame:
    board, changed = scoreboards(scores, seed=0), changes(scores, seed=0)
    return findings(scores, board, changed, None, localisation, seed=0).set_index("finding")


def marked(method: str, written: list[int], kept: list[int], before: int = 1, **about: Any) -> pd.DataFrame:
    """Scores of a condition: one prompt of each kind a record, five neighbours."""
    rows = []
    for i, (new, old) in enumerate(zip(written, kept, strict=True)):
        for state in ("before", "after"):
            after = state == "after"
            values = [("efficacy", new * after), ("paraphrase", new * after)]
            values += [("neighbour", before if not after else int(k < old)) for k in range(5)]
            for prompt, (kind, value) in enumerate(values):
                row = {
                    "record": f"r{i:02d}",
                    "kind": kind,
                    "prompt": prompt,
                    "state": state,
                    "success": float(value),
                }
                rows.append({**row, "top": 0.0, "magnitude": 0.0, "same_object": prompt < 4})
    base = {"method": method, "at_once": 1, "shared": False, "unit": "record"}
    frame = pd.DataFrame(rows).assign(**(base | about))
    return frame.assign(cluster=frame["record"]) if "cluster" not in about else frame


def test_rules_can_come_out_both_ways() -> None:
    many = [1] * 36 + [0] * 4
    for written, kept, wanted in (
        (many, [4] * 40, ("holds", "holds")),
        ([1 - x for x in many], [5] * 39 + [4], ("does not", "does not")),
        ([1, 0] * 20, [5] * 30 + [4] * 10, ("undecided", "undecided")),
    ):
        found = told(marked("rome", written, kept))["verdict"]
        assert found["rome, 1 at once, writes the fact"] == wanted[0]
        assert found["rome, 1 at once, costs neighbours their answers"] == wanted[1]
    lost = changes(marked("rome", many, [4] * 20 + [5] * 20), seed=0).set_index("measure").loc["NS lost"]
    assert (lost["delta"], lost["n"], lost["units"]) == (0.1, 200, 40) and 0.05 < lost["ci_lo"] < 0.1


def test_a_control_has_to_fail_by_itself() -> None:
    name = "ROME writes the fact, and a control edit of its size does not"
    for own, control, wanted in (
        ([1] * 40, [0] * 40, "holds"),
        ([1] * 40, [1] * 32 + [0] * 8, "does not"),
        ([1] * 40, [1, 0] * 20, "undecided"),
        ([0] * 40, [0] * 40, "undecided"),
        ([0] * 30 + [1] * 10, [1] * 15 + [0] * 25, "undecided"),
    ):
        both = [marked("rome", own, [5] * 40), marked("other fact", control, [5] * 40)]
        assert told(pd.concat(both, ignore_index=True))["verdict"][name] == wanted


def test_shared_neighbours_count_for_nothing_and_both_kinds_stand_apart() -> None:
    frame = marked("rome", [1] * 8, [4] * 8)  # the fifth neighbour of each is lost
    board = scoreboards(frame, seed=0).query("state == 'after'").set_index("measure")
    assert board.loc[["NS", "NS same", "NS other"], "value"].tolist() == pytest.approx([0.8, 1.0, 2 / 3])
    shared = frame.assign(shared=frame["prompt"] == 6)
    board = scoreboards(shared, seed=0).query("state == 'after'").set_index("measure")
    assert board.loc[["NS", "NS same", "NS other"], "value"].tolist() == [1.0, 1.0, 1.0]
    gone = frame.assign(shared=(frame["kind"] == "neighbour") & (frame["record"] == "r00"))
    board = scoreboards(gone, seed=0).query("state == 'after'").set_index("measure")
    assert board.loc["NS", "n"] == 7 and board.loc["S", "value"] == pytest.approx(3 / (1 + 1 + 1 / 0.8))
    assert board.loc["S", "ci_lo"] == pytest.approx(3 / (1 + 1 + 1 / 0.8))


def test_groups_that_share_an_edit_are_resampled_whole() -> None:
    written = [1] * 10 + [0] * 10
    alone = marked("memit", written, [5] * 20)
    groups = marked("memit", written, [5] * 20, at_once=10, unit="group", cluster="")
    groups["cluster"] = "group " + (groups["record"].str[1:].astype(int) // 10).astype(str)
    width = {}
    for name, frame in (("alone", alone), ("groups", groups)):
        row = scoreboards(frame, seed=0).query("state == 'after' and measure == 'ES'").iloc[0]
        width[name] = row["ci_hi"] - row["ci_lo"]
        delta = changes(frame, seed=0).set_index("measure").loc["ES"]
        width[f"{name} changed"] = delta["ci_hi"] - delta["ci_lo"]
    assert (
        width["groups"] > 2 * width["alone"] * 0.99
        and width["groups changed"] == 1.0 > width["alone changed"]
    )
    assert set(told(groups)["verdict"]) == {"undecided"} and set(told(groups)["n"]) == {2}
    one = marked("memit", [1] * 20, [5] * 20, at_once=20, unit="record, given this edit")
    assert told(one)["statistic"]["memit, 20 at once, writes the fact"] == "ES (against 0.5), given this edit"


def test_a_profile_of_layers_that_all_records_share_is_no_finding() -> None:
    rng = np.random.default_rng(3)
    profile = 5 * rng.standard_normal(6)
    effects = 3 * profile + rng.standard_normal((10, 6))
    for weight, wanted in ((0.0, "undecided"), (4.0, "holds")):
        values = profile + rng.standard_normal((10, 6)) + weight * (effects - effects.mean(0))
        low, high = gain_ci(values, effects, seed=0)
        row = {"kind": "efficacy", "records": 10, "within": 0.9, "gain": float(gain(values, effects))}
        row |= {"gain_lo": low, "gain_hi": high, "p": gain_p(values, effects, seed=0)}
        rows = [{**row, **dict(zip(TRACE, t, strict=True))} for t in TRACES]
        found = told(marked("rome", [1] * 8, [5] * 8), pd.DataFrame(rows))
        traced = found[found.index.str.startswith("a trace says")]
        assert low <= row["gain"] <= high and len(traced) == 2
        assert set(traced["verdict"]) == {beyond(row["p"], high, 10)} and wanted in (
            *traced["verdict"],
            "undecided",
        )
    assert set(traced["verdict"]) == {"holds"}
    assert beyond(1.0, 0.04, 10) == "does not"


def test_the_gain_is_that_of_two_fits() -> None:
    rng = np.random.default_rng(0)
    values, effects = rng.standard_normal((2, 9, 4)) + np.arange(4)
    layers = np.tile(np.eye(4), (9, 1))
    y, fits = values.ravel(), []
    for x in (layers, np.column_stack([layers, effects.ravel()])):
        rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        fits.append(1 - (rest**2).sum() / ((y - y.mean()) ** 2).sum())
    assert gain(values, effects) == pytest.approx(fits[1] - fits[0])
    assert np.isnan(gain(values, np.ones((9, 4))))


def test_families_whose_mlps_write_through_a_norm_go_without_memit(tmp_path: Path, spec: EditingSpec) -> None:
    from interp.runs import Run

    gemma = CausalLM(tiny("gemma2"), Tokens(byte_tokenizer()), name="gemma")
    study = EditingStudy(spec, Run(tmp_path / "run", spec), gemma)
    assert study.alone and not study.many


def test_specs_say_what_cannot_be() -> None:
    for given, told in (
        ({"relations": ()}, "relations is empty"),
        ({"memit_weights": (-1.0,)}, "memit_weights"),
        ({"at_once": ()}, "at_once"),
        ({"n": 1}, "greater than or equal to 2"),
    ):
        with pytest.raises(ValidationError, match=told):
            EditingSpec(model="tiny", **given)
    result = CliRunner().invoke(app, ["study", "editing"])
    assert result.exit_code == 2 and "name a model: interp study editing smollm2" in result.output
