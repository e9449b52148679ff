"""The laundry-list study on a tiny model: its parts against direct measurements, and the whole of it gone on with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from pydantic import ValidationError
from tokenizers import AddedToken
from typer.testing import CliRunner

from interp.cli import app
from interp.errors import UsageError
from interp.intervene.ablate import ablate
from interp.intervene.coordinates import scale_coordinates
from interp.intervene.subspace import Subspace
from interp.locate.channels.factors import Factors
from interp.locate.channels.weights import Weights
from interp.measure.stats import mcnemar
from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.studies.laundry import carriers, grid, learned, screen, search, study, tables
from interp.studies.laundry.edits import Directions, Moved, Part, Pushed, Scaled
from interp.studies.laundry.spec import LaundrySpec
from interp.tasks.laundry import Laundry
from interp.tasks.pairs import data
from tests.tiny import _LLAMA_LIKE, FAMILIES, byte_tokenizer, tiny

SMALL: dict[str, Any] = {
    "model": "tiny", "items": (2, 3), "test": 10, "in_weights": 4, "train": 6, "validation": 6, "screened": 4,
    "neutral": 2, "heads": 2, "movers": 3, "cut": 2, "level": 0.5, "draws": 1, "grid": 3, "grid_prompts": 2, "learn": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> CausalLM:
    """A tiny model whose tokenizer has a token for each of twenty things, and bytes for the rest."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(f" {thing}", normalized=False) for thing in data("words")["goods"][:20]])
    config = {**_LLAMA_LIKE, "vocab_size": len(tokenizer)}
    FAMILIES["wordy"] = lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    try:
        return CausalLM(tiny("wordy"), Tokens(tokenizer), name="tiny")
    finally:
        del FAMILIES["wordy"]


@pytest.fixture(scope="module")
def prompts(model):
    return [e for n in (2, 4) for e in Laundry(items=n, n=4, seed=3).examples(model)]


@pytest.fixture(scope="module")
def directions(model):
    return Directions(Weights(model))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """A study that was left alone."""
    out = tmp_path_factory.mktemp("laundry") / "run"
    job = study.run(LaundrySpec(**SMALL), out, subject=model)
    assert {
        "clean",
        "heads",
        "components",
        "channels",
        "search",
        "grid-1",
        "parts/test-02",
        "gains",
        "neutral",
    } <= {*job.done}
    return out


def last(model, example, *edits):
    """Logits at the last token of a prompt."""
    with model.apply(*edits):
        return model.run(Batch.of_ids([example.ids]), keep=1).logits[0, -1]


def test_answers_are_those_of_one_run_each(model, prompts):
    conditions = {"clean": None, "cut": ablate(["L1H2", "L2H0"], "zero", "answer"), "other": ablate("L0H1")}
    rows = tables.answers(model, prompts, conditions)
    assert len(rows) == 3 * len(prompts) and rows["condition"].drop_duplicates().tolist() == list(conditions)
    for name, condition in conditions.items():
        own = rows[rows["condition"] == name].set_index("example")
        for i, e in enumerate(prompts):
            # The last prompt token is the scope `answer` of a prompt whose answer is one token.
            with model.apply(*([condition] if condition else [])):
                logits = model.run([e]).logits[0, 0]
            things = torch.stack([logits[c[0]] for c in e.candidates])
            best = int(things.argmax())
            assert own.loc[i, "right"] == float(best == 0)
            assert own.loc[i, "full"] == float(int(logits.argmax()) == e.answer_ids[0])
            assert own.loc[i, "nll"] == pytest.approx(-float(things.log_softmax(0)[0]), abs=1e-4)
            assert own.loc[i, "margin"] == pytest.approx(float(things[0] - things[1:].mean()), abs=1e-4)
            thing = model.tokens.decode(list(e.candidates[best])).strip()
            assert e.meta["listed"][own.loc[i, "place"] - 1] == thing


def test_what_all_things_begin_with_belongs_to_the_prompt(prompts):
    e = prompts[-1]
    assert tables.asked(e) is e
    longer = replace(e, answer_ids=(7, *e.answer_ids), candidates=tuple((7, *c) for c in e.candidates))
    asked = tables.asked(longer)
    assert asked.ids == (*e.ids, 7) and asked.candidates == e.candidates and asked.answer_ids == e.answer_ids


def test_gains_are_paired_and_told_by_length():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"example": np.tile(np.arange(20), 2), "items": np.repeat([3, 5], 20), "template": list("abcd") * 10}
    )
    rows["held"] = rows["template"] == "d"
    parts = []
    for name, share in (("clean", 0.3), ("edit", 0.8)):
        right = (rng.random(40) < share).astype(float)
        more = dict.fromkeys(("full", "nll", "margin"), right)
        parts.append(rows.assign(condition=name, right=right, **more, chance=1 / rows["items"]))
    # Rows in another order are paired by prompt all the same.
    whole = pd.concat([parts[0], parts[1].sample(frac=1, random_state=1)])
    found = tables.gains(whole, seed=0).set_index(["templates", "condition", "items"])
    clean, edit = parts[0]["right"].to_numpy(), parts[1]["right"].to_numpy()
    for items, where in ((0, slice(None)), (3, slice(0, 20)), (5, slice(20, 40))):
        row = found.loc["all", "edit", items]
        assert row["gain"] == pytest.approx((edit[where] - clean[where]).mean())
        assert row["p"] == pytest.approx(mcnemar(clean[where], edit[where]))
        assert (
            row["gain_lo"] <= row["gain"] <= row["gain_hi"] and row["ci_lo"] < row["accuracy"] < row["ci_hi"]
        )
    assert found.loc["all", "clean", 0]["gain"] == 0 and found.loc["held", "edit", 0]["n"] == 10


def test_edits_are_held_against_the_mean_of_their_controls():
    rows = pd.DataFrame({"example": range(8), "items": [3] * 4 + [5] * 4, "template": list("abab") * 2})
    right = {"x": [1, 1, 1, 0, 1, 1, 1, 1], "x: o, draw 0": [0, 1, 0, 0, 1, 0, 0, 0], "x: o, draw 1": [0] * 8}
    whole = pd.concat([rows.assign(condition=name, right=values) for name, values in right.items()])
    kinds = {"x": "x", "x: o, draw 0": "x: o", "x: o, draw 1": "x: o"}
    found = tables.over_controls(whole.sample(frac=1, random_state=0), kinds, seed=0).set_index("items")
    assert found["gain"].to_dict() == pytest.approx({0: 7 / 8 - 1 / 8, 3: 3 / 4 - 1 / 8, 5: 1 - 1 / 8})
    assert (found["draws"] == 2).all() and (found["control"] == "x: o").all() and found.loc[3, "n"] == 4


def test_heads_are_cut_one_by_one_and_what_they_look_at_is_the_model_s(model, prompts):
    found = screen.screen_heads(model, prompts, seed=0).set_index("component")
    clean, cut = [], []
    for e in prompts:
        things = [c[0] for c in e.candidates]
        for into, edits in ((clean, ()), (cut, (ablate("L1H2", scope=(len(e.ids) - 1,)),))):
            own = last(model, e, *edits)[things]
            into.append(float(own[0] - own[1:].mean()))
    assert found.loc["L1H2", "change"] == pytest.approx(np.mean(cut) - np.mean(clean), abs=1e-4)
    assert found["change"].is_monotonic_increasing
    eager = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        again, listed = [], []
        for e in prompts:
            with torch.no_grad():
                row = model.hf(torch.tensor([e.ids]), output_attentions=True).attentions[1][0, 2, -1]
            roles = {r: [i for s in e.spans if s.role == r for i in range(s.start, s.end)] for r in
                     ("value", "distractor_value", "again")}  # fmt: skip
            again.append(float(row[roles["again"]].sum()))
            listed.append(float(row[roles["value"] + roles["distractor_value"]].sum()))
    finally:
        model.hf.set_attn_implementation(eager)
    assert found.loc["L1H2", "again"] == pytest.approx(np.mean(again), abs=1e-5)
    assert found.loc["L1H2", "listed"] == pytest.approx(np.mean(listed), abs=1e-5)


def test_inhibitors_look_at_what_is_listed_again_and_are_needed():
    rows = pd.DataFrame(
        [
            (0, 0, 0.5, 0.1, -0.2),
            (0, 1, 0.1, 0.5, -0.3),
            (1, 0, 0.5, 0.1, 0.1),
            (1, 1, 0.6, 0.2, -0.1),
            (1, 2, 0.04, 0.01, -0.1),
        ],
        columns=["layer", "head", "again", "listed", "ci_hi"],
    )
    assert screen.inhibitors(rows, 5) == [Head(0, 0), Head(1, 1)]
    assert screen.inhibitors(rows, 1) == [Head(0, 0)]
    assert screen.movers(rows, 0, 1) == [Head(1, 1)]


def test_readings_are_the_share_of_queries_along_a_component(model):
    weights = Weights(model)
    found = carriers.readings(weights, [Head(0, 1), Head(2, 0)], [Head(1, 3), Head(2, 2)])
    assert set(found["writer"]) == {"L0H1"}, "a head of the same or a later layer cannot be read"
    write = Factors(weights.layer(0)).ov.write[1]
    q = weights.layer(1).q[3]
    row = found[(found["reader"] == "L1H3") & (found["component"] == 4)].iloc[0]
    assert row["value"] == pytest.approx(float((write[4] @ q).norm() / q.norm()), rel=1e-4)
    assert found["p"].is_monotonic_increasing and (found["q"] >= found["p"] * (1 - 1e-9)).all()
    heads = {"L0H1": Head(0, 1)}
    every = carriers.carriers(weights, found, heads, level=1.0, rank=2)
    assert {len(c.components) for c in every} == {1, 2}
    assert len({frozenset(c.components) for c in every}) == len(every)
    one = next(c for c in every if c.rank == 1)
    head, number = one.components[0]
    torch.testing.assert_close(one.space.basis[0], Factors(weights.layer(0)).ov.write[head.head][number])
    assert carriers.carriers(weights, found, heads, level=0.0, rank=2) == []


def test_parts_of_heads_are_scaled_at_the_last_token_and_in_the_weights(model, prompts, directions):
    edit = Scaled("x", (Part(Head(1, 2), weight=2.0), Part(Head(0, 1), (0, 3))), {2: 3.0, 4: 0.5})
    assert edit.factors(2) == [5.0, 3.0] and edit.factors(4) == [0.0, 0.5]
    whole = Subspace(Site("z", 1, 2), torch.eye(model.d_head))
    some = Subspace.spanned(Site("head_out", 0, 1), Factors(Weights(model).layer(0)).ov.write[1][[0, 3]])
    for e in prompts[:1] + prompts[-1:]:
        f = edit.factors(e.meta["items"])
        at = (len(e.ids) - 1,)
        wanted = last(model, e, scale_coordinates(whole, f[0], at) + scale_coordinates(some, f[1], at))
        with model.apply(edit.at(e.meta["items"], directions)):
            torch.testing.assert_close(model.run([e]).logits[0, 0], wanted, atol=1e-5, rtol=0)
        every = last(model, e, scale_coordinates(whole, f[0]) + scale_coordinates(some, f[1]))
        torch.testing.assert_close(last(model, e, edit.as_weights(e.meta["items"], directions.weights)), every,
                                   atol=1e-4, rtol=0)  # fmt: skip
        assert (every - last(model, e)).abs().max() > 1e-3


def test_learned_factors_lower_the_loss_they_are_learned_on(model, prompts, directions):
    change = learned.learn_factors(model, prompts, 6)
    assert change.shape == (model.n_layers, model.n_heads) and np.abs(change).max() > 0.1

    def losses(factors):
        parts = tuple(Part(h, weight=float(factors[h.layer, h.head])) for h in model.heads())
        rows = tables.answers(model, prompts, {"x": Scaled("x", parts, 2.0).at(2, directions)})
        return rows["nll"].mean()

    assert losses(change) < losses(0 * change) - 0.05
    some = learned.learn_factors(model, prompts, 3, heads=[Head(1, 2), Head(2, 0)])
    assert {tuple(map(int, at)) for at in np.argwhere(some)} == {(1, 2), (2, 0)}
    # One loss of a step against the logits of a plain run.
    held = learned._hold(model, prompts)
    loss = float(learned._loss(model, held, torch.tensor(change)).detach())
    parts = tuple(Part(h, weight=float(change[h.layer, h.head])) for h in model.heads())
    edit = Scaled("x", parts, 2.0).at(2, directions)
    wanted = 0.0
    for e in prompts:
        with model.apply(edit):
            logits = model.run([e]).logits[0, 0]
        among = logits[[c[0] for c in e.candidates]].log_softmax(0)[0]
        wanted -= float(among + learned.VOCABULARY * logits.log_softmax(0)[e.answer_ids[0]]) / len(prompts)
    assert loss == pytest.approx(wanted, abs=1e-4)


def test_controls_are_as_large_and_elsewhere(model, prompts, directions):
    spec = LaundrySpec(**{**SMALL, "draws": 3})
    edit = Scaled("channel", (Part(Head(1, 2), (0, 4)), Part(Head(2, 1), (1,))), 3.0)
    avoid = {Head(1, 2): [1, 2], Head(2, 1): [], Head(1, 0): []}
    found = search.controls(model, edit, spec, avoid, prompts, directions)
    assert len(found) == 9
    for control in found.values():
        if isinstance(control, Pushed):
            continue
        assert control.size == 3.0
        assert [len(p.components) for p in control.parts] == [2, 1]
        for part, own in zip(control.parts, edit.parts, strict=True):
            if "components" in control.kind:
                assert part.head == own.head and not {*part.components} & {*own.components, *avoid[own.head]}
            else:
                assert part.head not in avoid and part.head.layer == own.head.layer
    pushed = [c for c in found.values() if isinstance(c, Pushed)]
    few = [e for e in prompts if e.meta["items"] == 4]
    site = Site("attn_out", 2)
    for control in pushed:
        # Alone, so that nothing below moves what is compared.
        alone = replace(
            control, edit=replace(edit, parts=edit.parts[1:]), lengths={4: {2: control.lengths[4][2]}}
        )
        moved = []
        for e in few:
            clean = model.run([e], {site: Record()})[site][0, len(e.ids) - 1]
            with model.apply(alone.at(4, directions)):
                moved.append(model.run([e], {site: Record()})[site][0, len(e.ids) - 1] - clean)
        assert float(moved[0].norm()) == pytest.approx(control.lengths[4][2], rel=1e-4)
        torch.testing.assert_close(moved[0], moved[1], atol=1e-5, rtol=0)
    own = []
    for e in few:
        clean = model.run([e], {site: Record()})[site][0, len(e.ids) - 1]
        with model.apply(replace(edit, parts=edit.parts[1:]).at(4, directions)):
            own.append(float((model.run([e], {site: Record()})[site][0, len(e.ids) - 1] - clean).norm()))
    assert pushed[0].lengths[4][2] == pytest.approx(np.mean(own), rel=1e-3)
    assert len({str(c.parts) for c in found.values() if "components" in c.kind}) > 1


def test_factors_of_most_heads_change_places(model):
    parts = tuple(Part(h, weight=float(i + 1)) for i, h in enumerate(model.heads()))
    other = search.other_heads(Scaled("learned", parts, 2.0), [], 4, 3, 0, 0)
    assert {p.head for p in other.parts} == {*model.heads()}
    assert sorted(p.weight for p in other.parts) == sorted(p.weight for p in parts)
    assert sum(a.head == b.head for a, b in zip(parts, other.parts, strict=True)) < 6
    few = search.other_heads(Scaled("learned", parts[:2], 2.0), model.heads()[:4], 4, 3, 0, 0)
    assert all(p.head.layer == 1 for p in few.parts) and len({p.head for p in few.parts}) == 2
    # All heads but one are to be avoided, and yet none of the edit's own is drawn.
    free = Head(2, 3)
    for draw in range(20):
        scarce = search.other_heads(
            Scaled("cut", parts[4:8], 0.0), [h for h in model.heads() if h != free], 4, 3, draw, 0
        )
        drawn = [p.head for p in scarce.parts]
        assert len({*drawn}) == 4 and free in drawn and not {*drawn} & {p.head for p in parts[4:8]}


def test_edits_are_ranked_and_sized():
    rows = pd.DataFrame(
        [
            ("clean", 3, 0.2, 2.0),
            ("a", 3, 0.6, 1.0),
            ("b", 3, 0.6, 0.5),
            ("c", 3, 0.1, 3.0),
            ("clean", 5, 0.2, 2.0),
            ("a", 5, 0.6, 1.0),
            ("b", 5, 0.6, 2.0),
            ("c", 5, 0.9, 3.0),
        ],
        columns=["condition", "items", "right", "nll"],
    ).assign(full=0.0, margin=0.0)
    part = (Part(Head(0, 1)),)
    edits = {"a": Scaled("x", part, 2.0), "b": Scaled("x", part, 4.0), "c": Scaled("y", part, 3.0)}
    table = search.ranked(rows, edits)
    assert table["condition"].tolist() == ["a", "b", "c", "clean"]
    best = search.best_of_kinds(table, edits)
    assert best == {"x": edits["a"], "y": edits["c"]}
    assert search.by_length(rows, edits, "x") == {3: 4.0, 5: 2.0}
    sizes = {e.size for e in search.around(best, (0.5, 2.0)).values()}
    assert sizes == {1.5, 3.0, 2.0, 5.0}
    space = Subspace.spanned("resid_pre[1]", torch.eye(48)[:2])
    moved = Moved("coordinates", "c", space, (1.0, 2.0), (0.5, 0.25), 1, -2.0)
    assert moved.finer(0.5) == -1.0
    edit = moved.at(3, None)
    assert (edit.factor, edit.offset) == ((1.0, 0.0), (0.0, 1.5))
    edit = replace(moved, shifted=True).at(3, None)
    assert (edit.factor, edit.offset) == ((1.0, 1.0), (0.0, -0.5))


def test_a_walk_tells_where_the_winner_stands(model, prompts):
    space = Subspace.spanned("resid_pre[2]", torch.eye(48)[:2])
    found = grid.walked(model, space, prompts, 7)
    points = found[["point", "c0", "c1"]].drop_duplicates()
    assert len(points) == 7 * 5 + 1 and points["c0"].nunique() == 7
    assert np.allclose(found.groupby(["point", "items"])["wins"].sum(), 1)
    clean = tables.answers(model, prompts, {"clean": None})
    for items, own in clean.groupby("items"):
        row = found[(found["point"] == -1) & (found["items"] == items)]
        assert row["right"].iloc[0] == pytest.approx(own["right"].mean())
        shares = own["place"].value_counts(normalize=True).reindex(row["place"], fill_value=0)
        np.testing.assert_allclose(row["wins"], shares.to_numpy())
    values = []
    for e in prompts:
        values.append(model.run(Batch.of_ids([e.ids]), {space.site: Record()}, keep=1)[space.site][0, -1, :2])
    values = torch.stack(values)
    corner = found[found["point"] == 0].iloc[0]
    assert corner["c0"] == pytest.approx(float(values[:, 0].mean() - 3 * values[:, 0].std()), rel=1e-4)
    assert corner["s1"] == pytest.approx(-3)


def test_the_test_prompts_are_new_and_some_templates_are_too(model):
    job = study.LaundryStudy(LaundrySpec(**SMALL), None, model)  # type: ignore[arg-type]
    assert len(job.held) == 4
    texts = {split: [e.text for e in job.prompts(split)] for split in study.SPLITS}
    assert [len(t) for t in texts.values()] == [12, 12, 20]
    assert not {*texts["train"]} & {*texts["validation"]} and not {*texts["train"]} & {*texts["test"]}
    for split in ("train", "validation"):
        assert not {e.meta["template"] for e in job.prompts(split)} & {*job.held}
    assert {e.meta["template"] for e in job.prompts("test")} & {*job.held}
    with pytest.raises(UsageError, match="8 templates"):
        _ = study.LaundryStudy(LaundrySpec(**{**SMALL, "held": 8}), None, model).held  # type: ignore[arg-type]


def test_a_study_goes_on_where_it_stopped(model, folder, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(folder, out)
    lost = ["channels", "search", "parts/test-03", "answers", "gains"]
    for name in lost:
        (out / f"{name}.parquet").unlink()
    (out / "gains.parquet.partial").write_bytes(b"half")
    job = study.run(LaundrySpec(**SMALL), out, subject=model)
    assert {*job.done} == {*lost} - {"answers"} and {"heads", "learned", "parts/test-02"} <= {*job.skipped}
    assert not list(out.rglob("*.partial"))
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.parquet"))
    assert names == sorted(str(p.relative_to(out)) for p in out.rglob("*.parquet"))
    for name in names:
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / name), pd.read_parquet(out / name), check_exact=True
        )
    with pytest.raises(UsageError, match="another spec"):
        study.run(LaundrySpec(**{**SMALL, "seed": 1}), out, subject=model)


def test_tables_of_a_study_agree_with_each_other(folder):
    answers, gains, neutral = (
        pd.read_parquet(folder / f"{n}.parquet") for n in ("answers", "gains", "neutral")
    )
    conditions = pd.read_parquet(folder / "conditions.parquet")["condition"].tolist()
    assert answers["condition"].drop_duplicates().tolist() == ["clean", *conditions]
    assert "best size for each length" in conditions
    assert (answers.groupby("condition").size() == 20).all()
    whole = gains[(gains["items"] == 0) & (gains["templates"] == "all")].set_index("condition")
    for name, own in answers.groupby("condition"):
        assert whole.loc[name, "accuracy"] == pytest.approx(own["right"].mean())
    assert whole.loc["clean", "base"] == pytest.approx(
        answers[answers["condition"] == "clean"]["right"].mean()
    )
    told = neutral.set_index("condition")
    assert told.loc["clean", "change"] == 0 and set(conditions) < {*told.index}
    assert any(n.endswith("in the weights") for n in told.index)
    weights = pd.read_parquet(folder / "in_weights.parquet")
    assert {"clean", "cut, in the weights", "heads, in the weights"} <= {*weights["condition"]}
    assert weights["n"].max() == 8 and not weights["condition"].str.startswith("learned,").any()
    tuned = pd.read_parquet(folder / "tuned.parquet")
    assert tuned["right"].is_monotonic_decreasing
    cuts = pd.read_parquet(folder / "channels.parquet")
    assert {"cut: other heads", "cut: random directions", "cut: other components"} <= {*cuts["control"]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"items": ()}, "is empty"),
        ({"items": (3, 3)}, "twice"),
        ({"items": (1,)}, "2 to 20"),
        ({"families": ("C",)}, "A, B"),
        ({"screened": 99}, "train prompts"),
        ({"in_weights": 99}, "test prompts"),
        ({"wrong": 1}, "not permitted"),
    ],
)
def test_a_bad_spec_says_what_is_wrong(change, told):
    with pytest.raises(ValidationError, match=told):
        LaundrySpec(**{**SMALL, **change})


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    runner = CliRunner()
    for args, told in (
        (["smollm2", "--set", "items=1", "--out", str(tmp_path / "x")], "items"),
        ([], "name a model"),
        (["--spec", str(tmp_path / "none.yaml")], "no spec"),
    ):
        result = runner.invoke(app, ["study", "laundry", *args])
        assert result.exit_code == 2 and told in result.stderr
