"""The study of knowledge conflicts on a tiny model: every part, gone on with, against direct calls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers as hf
from pydantic import ValidationError
from typer.testing import CliRunner

import tests.tokenizers
from interp.cli import app
from interp.errors import NoAcceptedExample
from interp.intervene.ablate import ablate
from interp.intervene.attention import set_attention
from interp.locate.facts.context_heads import ContextHeads
from interp.measure.conflict import CONTEXT, MEMORY, memorisation, sides, taken
from interp.measure.scenarios import token_rank
from interp.models.sites import components
from interp.models.subject import CausalLM
from interp.studies.conflict import findings as judge
from interp.studies.conflict.balance import contrasts
from interp.studies.conflict.layers import best_window, scored
from interp.studies.conflict.moves import against_controls
from interp.studies.conflict.prompts import Dispute, disputes
from interp.studies.conflict.spec import ConflictSpec, Setting
from interp.studies.conflict.study import ConflictStudy, run
from interp.tasks.base import check_example, continuations
from interp.tasks.facts import last_word
from tests.tiny import _LLAMA_LIKE, FAMILIES, tiny

TOKENS = tests.tokenizers.tokens("smollm")
SETTINGS = (
    Setting(),
    Setting(memory=1, order="memory_first"),
    Setting(memory=1, order="counter_first"),
    Setting(counter=2),
    Setting(irrelevant=1),
)
SMALL: dict[str, Any] = {
    "relations": ("capital", "continent"), "ask": 8, "wordings": 2, "train": 4, "test": 6, "keep_unknown": True,
    "settings": SETTINGS, "window": 1, "sizes": (1, 2), "factors": (0.0, 4.0), "controls": 2, "costs": 1, "prose": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> CausalLM:
    """A tiny model with the vocabulary of a real tokenizer."""
    config = {**_LLAMA_LIKE, "vocab_size": max(TOKENS.n_vocab, 2600), "pad_token_id": None}
    FAMILIES["wordy"] = lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    try:
        return CausalLM(tiny("wordy"), TOKENS, name="tiny")
    finally:
        del FAMILIES["wordy"]


@pytest.fixture(scope="module")
def spec() -> ConflictSpec:
    return ConflictSpec(model="tiny", **SMALL)


@pytest.fixture(scope="module")
def folder(spec: ConflictSpec, model: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("conflict") / "run"
    job = run(spec, where, subject=model)
    assert "findings" in job.done and not job.skipped
    return where


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def questions(folder: Path, model: CausalLM, spec: ConflictSpec) -> dict[str, list[Dispute]]:
    """Disputes of each split, in the order of the tables."""
    every = disputes(TOKENS, spec)
    known = table(folder, "known")
    assert len(known) == len(every)
    return {s: [every[i] for i in known.index[known["split"] == s]] for s in ("train", "test")}


def test_it_goes_on_where_it_stopped(folder: Path, spec: ConflictSpec, model: CausalLM) -> None:
    names = [p.stem for p in folder.glob("*.parquet")]
    assert len(names) == 11
    before = {name: (folder / f"{name}.parquet").read_bytes() for name in names}
    gone = ["parts/sides-03", "parts/mlps-closed", "parts/moves-told-000", "over_controls"]
    for name in gone:
        (folder / f"{name}.parquet").unlink()
    job = run(spec, folder, subject=model)
    assert sorted(job.done) == sorted(gone) and "heads" in job.skipped
    assert before == {name: (folder / f"{name}.parquet").read_bytes() for name in names}


def test_prompts_differ_in_what_stands_in_front_alone(spec: ConflictSpec) -> None:
    every = disputes(TOKENS, spec)
    assert len(every) == 2 * 2 * 8
    for d in every[:12]:
        closed = d.closed(TOKENS)
        made = [d.behind(TOKENS, s) for s in SETTINGS] + [d.elsewhere(TOKENS)]
        for e in (closed, d.told(TOKENS), *made):
            check_example(e, TOKENS)
        question = str(closed.text)
        for e in made:
            assert str(e.text).split("\n")[-1] == question and e.answer_ids == closed.answer_ids
            assert e.foil_ids == closed.foil_ids and d.false in str(e.text)
        assert d.about not in str(made[-1].text).split("\n")[0]
        told = d.told(TOKENS)
        lines = str(told.text).split("\n")
        assert told.cluster == d.about and len(lines) == 3 and d.fictional[0] in lines[-1]
        (stated,) = (line for line in lines[:2] if d.fictional[0] in line)
        assert stated.endswith(f" {d.false}.") and TOKENS.decode(told.answer_ids).strip() == d.false
        (other,) = (line for line in lines[:2] if d.fictional[1] in line)
        assert other.endswith(f" {d.unlike}.") and TOKENS.decode(told.foil_ids).strip() == d.unlike
    last = [d.fictional[0] in str(d.told(TOKENS).text).split("\n")[1] for d in every]
    assert 0.2 < np.mean(last) < 0.8


def test_what_is_known_and_how_it_is_split(folder: Path, model: CausalLM, spec: ConflictSpec) -> None:
    known = table(folder, "known")
    every = disputes(TOKENS, spec)
    found = sides(model, [d.closed(TOKENS) for d in every])
    assert known["side"].tolist() == found["side"].tolist()
    np.testing.assert_allclose(known["margin"], found["margin"], atol=1e-4)
    assert known["known"].equals(known["side"] == MEMORY)
    chosen = known[known["split"] != ""]
    assert (chosen["split"] == "train").sum() == 4 and (chosen["split"] == "test").sum() == 6
    assert not chosen.duplicated(["relation", "subject"]).any()
    halves = [set(chosen[chosen["split"] == s]["subject"]) for s in ("train", "test")]
    assert not halves[0] & halves[1]
    own = known[known["relation"] == "capital"].drop_duplicates("subject").set_index("subject")
    ranks = token_rank(TOKENS, list(own.index))
    assert own["popularity"].to_dict() == ranks
    order = sorted(own.index, key=ranks.__getitem__)
    assert own.loc[order[0], "third"] == "low" and own.loc[order[-1], "third"] == "high"


def test_a_model_that_knows_nothing_is_told_so(model: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(
        NoAcceptedExample, match=r"tiny knows \d of 32 questions, which leaves 0 facts to train on"
    ):
        run(ConflictSpec(model="tiny", **{**SMALL, "keep_unknown": False}), tmp_path / "run", subject=model)


def test_sides_ratios_and_contrasts(
    folder: Path, model: CausalLM, questions: dict[str, list[Dispute]]
) -> None:
    found = table(folder, "sides")
    assert list(dict.fromkeys(found["setting"])) == ["closed", "elsewhere", *(s.name for s in SETTINGS)]
    order = table(folder, "known").query("split != ''")
    by = {(d.relation, d.about): d for part in questions.values() for d in part}
    asked = [by[r.relation, r.subject] for r in order.itertuples()]
    own = found[found["setting"] == "1:1 memory first"]
    direct = sides(model, [d.behind(TOKENS, SETTINGS[1]) for d in asked])
    assert own["side"].tolist() == direct["side"].tolist() and set(own["first"]) == {"memory"}
    np.testing.assert_allclose(own["margin"], direct["margin"], atol=1e-4)
    np.testing.assert_allclose(own["margin"], own["memory_logprob"] - own["context_logprob"], atol=1e-5)
    ratios = table(folder, "ratios")
    row = ratios[(ratios["by"] == "all") & (ratios["setting"] == "1:1 memory first")].iloc[0]
    (wanted,) = memorisation(own, ()).to_dict("records")
    assert (row["n"], row["f_other"], row["margin"]) == (10, wanted["f_other"], wanted["margin"])
    assert set(ratios["by"]) == {"all", "relation", "third"}
    told = table(folder, "contrasts").set_index(["contrast", "statistic"])
    margin = found.pivot_table(index="example", columns="setting", values="margin")
    delta = (margin["1:1 memory first"] - margin["1:1 counter first"]).mean()
    assert told.loc[("order 1:1", "margin"), "value"] == pytest.approx(delta)
    both = (margin["1:1 memory first"] + margin["1:1 counter first"]) / 2 - margin["1:0"]
    assert told.loc[("memory beside it", "margin"), "value"] == pytest.approx(both.mean())
    assert told.loc[("statement", "margin"), "ci_lo"] < (margin["1:0"] - margin["elsewhere"]).mean()


def test_shares_of_contrasts_and_popularity() -> None:
    rows = [
        {"example": i, "cluster": f"c{i}", "setting": s, "side": side, "margin": 0.0, "third": third}
        for i, third in enumerate(("low", "low", "high", "high", "middle"))
        for s, side in (("1:0", MEMORY if third == "high" else CONTEXT), ("2:0", CONTEXT), ("closed", MEMORY))
    ]
    found = contrasts(pd.DataFrame(rows), seed=0).set_index(["contrast", "a", "statistic"])
    assert found.loc[("context twice", "2:0", "memory"), "value"] == pytest.approx(-0.4)
    assert found.loc[("context twice", "2:0", "context"), "value"] == pytest.approx(0.4)
    assert found.loc[("popularity", "1:0 high", "memory"), "value"] == pytest.approx(1.0)
    assert found.loc[("popularity", "2:0 high", "memory"), "value"] == 0
    assert not any(a.startswith("closed") for _, a, _ in found.index)
    # Where every fact is the memory's there is no difference, and no width: not that of a mean of signed values.
    one = [r | {"side": MEMORY} for r in rows for _ in range(6)]
    same = contrasts(pd.DataFrame(one).assign(cluster=[f"c{i}" for i in range(len(one))]), seed=0)
    own = same[(same["contrast"] == "popularity") & (same["statistic"] == MEMORY)]
    assert len(own) == 2 and (own[["value", "ci_lo", "ci_hi"]] == 0).all(axis=None)


def test_a_fact_whose_answer_begins_as_a_wrong_object_does_is_left_out() -> None:
    every = disputes(
        TOKENS,
        ConflictSpec(
            model="tiny", **{**SMALL, "relations": ("author",), "ask": 12, "settings": SETTINGS[:1]}
        ),
    )
    assert len(every) > 10
    for d in every:
        closed = d.closed(TOKENS)
        at = next(
            i for i, (a, b) in enumerate(zip(closed.answer_ids, closed.foil_ids, strict=False)) if a != b
        )
        template = d.table.wordings[d.wordings[0]]
        before = last_word(template)
        for wrong in set(d.table.objects) - set(d.table.answers(d.about)):
            ids = continuations(TOKENS, before, [f" {wrong}"])[0]
            assert ids[: at + 1] != closed.answer_ids[: at + 1]


def test_heads_are_scored_on_train_facts(
    folder: Path, model: CausalLM, questions: dict[str, list[Dispute]]
) -> None:
    examples = [d.behind(TOKENS, Setting()) for d in questions["train"]]
    direct = ContextHeads().fit(model, examples)
    pd.testing.assert_frame_equal(table(folder, "heads"), direct.heads_)
    by = table(folder, "heads_by_relation")
    first = repr(direct.top(1, "read")[0])
    own = by[(by["method"] == "read") & (by["component"] == first)]
    weighted = (own["read"] * own["n"]).sum() / own["n"].sum()
    assert weighted == pytest.approx(direct.ranking("read")["score"][0]) and own["n"].sum() == 4


def test_windows_are_cut_and_vital_ones_set_apart(
    folder: Path, model: CausalLM, questions: dict[str, list[Dispute]]
) -> None:
    found = table(folder, "mlps").set_index(["question", "scope", "layer"])
    examples = [d.behind(TOKENS, Setting()) for d in questions["train"]]
    for scope in ("subject", "answer"):
        direct = taken(model, examples, {"": None, "cut": ablate("M1", scope=scope)})
        lost = direct.margin[:, 0] - direct.margin[:, 1]
        assert found.loc[("conflict", scope, 1), "margin_lost"] == pytest.approx(lost.mean(), abs=1e-4)
    assert found.loc[("conflict", "subject", 1), "components"] == "M1"
    cost = found.loc["conflict"]["d_nll"]
    assert cost["subject"].isna().all() and cost["answer"].notna().all()
    rows = [
        {
            "question": q,
            "scope": "subject",
            "layer": layer,
            "margin": 4.0,
            "margin_lo": low,
            "margin_lost": lost,
        }
        for q, low, losses in (("conflict", -1.0, (5.0, 2.0, 1.0)), ("told", 1.0, (5.0, 1.0, -1.0)))
        for layer, lost in enumerate(losses)
    ]
    given = scored(pd.DataFrame(rows))
    # What the first layer costs the memory it costs reading as well.
    assert given["score"].tolist()[:3] == [0.0, 1.5, 1.0] and best_window(given, "subject") == 1
    floor = scored(pd.DataFrame(rows).assign(margin_lo=-0.1))
    assert floor["score"].tolist()[:3] == [5.0, 2.0, 1.0] and best_window(floor, "subject") == 0


def test_moves_on_held_out_facts(
    folder: Path, model: CausalLM, spec: ConflictSpec, questions: dict[str, list[Dispute]]
) -> None:
    found = table(folder, "moves")
    own = found[(found["task"] == "conflict") & (found["control"] == "")].set_index("condition")
    heads = table(folder, "heads")
    first = heads.loc[heads["read"].nlargest(2).index, "component"].tolist()
    examples = [d.behind(TOKENS, Setting()) for d in questions["test"]]
    plan = {
        "": None,
        "scale context 2 x4 @answer": set_attention(first, "counter_value", how="scale", factor=4),
        "scale context 2 x0 @answer": ablate(first, "knockout", "answer", keys="counter_value"),
        "cut memory 1 @answer": ablate(heads.loc[heads["cut"].idxmin(), "component"], scope="answer"),
    }
    direct = taken(model, examples, plan)
    for i, name in enumerate(plan):
        assert own.loc[name, "margin"] == pytest.approx(direct.margin[:, i].mean(), abs=1e-4)
        delta = (direct.margin[:, i] - direct.margin[:, 0]).mean()
        assert own.loc[name, "d_margin"] == pytest.approx(delta, abs=1e-4)
        assert own.loc[name, "memory"] == direct.share(MEMORY)[:, i].mean()
    chosen = table(folder, "mlps").query("question == 'conflict' and scope == 'subject'")
    centre = int(chosen.loc[chosen["score"].idxmax(), "layer"])
    assert own.loc["cut mlps 1 @subject", "components"] == f"M{centre}"
    drawn = found[(found["task"] == "conflict") & (found["control"] != "")]
    assert set(drawn["control"]) == {"layer", "norm"}
    for r in drawn.itertuples():
        cut = own[(own["family"] == r.family) & (own["k"] == r.k) & (own["scope"] == r.scope)]
        # Controls of the smallest set hold no head of the largest one either.
        whole = own[(own["family"] == r.family) & (own["scope"] == r.scope)].sort_values("k")
        parts = cut if r.family == "cut mlps" else whole
        assert not set(r.components.split()) & set(parts["components"].iloc[-1].split())
        if r.control == "layer":
            assert sorted(c.layer for c in components(r.components)) == sorted(
                c.layer for c in components(cut["components"].iloc[0])
            )
    # Off target: fewer controls, and what looks at the context's answer only where there is one.
    assert set(found["task"]) == {"conflict", "closed", "elsewhere", "told"}
    closed = found[found["task"] == "closed"]
    judged = closed["family"].isin(("cut context", "cut memory")) & (closed["k"] == 2)
    judged |= (closed["family"] == "cut mlps") & (closed["k"] == 1)
    assert closed[~judged]["draw"].max() == 0 and closed[judged].groupby("family")["draw"].max().eq(1).all()
    assert "scale context" not in set(closed["family"])
    assert "scale memory" in set(closed["family"])
    # A random model is at chance where an answer can be right, so nothing is told of it.
    assert set(closed["status"]) == {"at chance"} and closed["d_margin"].isna().all()
    remarks = json.loads((folder / "provenance.json").read_text())["remarks"]
    assert any(r.startswith("closed: the model is at chance") for r in remarks)


def test_moves_against_their_controls(folder: Path) -> None:
    over = table(folder, "over_controls")
    moves = table(folder, "moves").query("task == 'conflict'")
    assert set(over["task"]) == {"conflict"}
    row = over.query(
        "family == 'cut context' and k == 1 and control == 'norm' and statistic == 'margin'"
    ).iloc[0]
    drawn = moves.query("family == 'cut context' and k == 1 and control == 'norm'")["d_margin"]
    cut = moves.query("family == 'cut context' and k == 1 and control == ''")["d_margin"].iloc[0]
    assert row["d_move"] == pytest.approx(cut) and row["n_controls"] == len(drawn) == 2
    assert row["value"] == pytest.approx(cut - drawn.mean())
    assert row["z"] == pytest.approx((cut - drawn.mean()) / drawn.std(ddof=1))
    side = np.sign(cut - drawn.mean())
    assert row["beyond"] == (side * drawn >= side * cut).mean()
    scaled = over.query(
        "family == 'scale context' and k == 2 and control == 'layer' and statistic == 'margin'"
    )
    assert scaled["factor"].tolist() == [0.0, 4.0] and scaled["d_move"].nunique() == 2
    prose = table(folder, "prose")
    assert set(prose["scope"].dropna()) == {"answer"} and prose["d_nll"].iloc[0] == 0


@pytest.mark.parametrize(
    ("low", "high", "above", "verdict"),
    [(0.1, 0.3, True, "holds"), (0.1, 0.3, False, "does not"), (-0.1, 0.3, True, "undecided"),
     (-0.3, -0.1, True, "does not"), (-0.3, -0.1, False, "holds"), (np.nan, np.nan, True, "undecided")],
)  # fmt: skip
def test_verdicts_follow_from_intervals(low: float, high: float, above: bool, verdict: str) -> None:
    found = judge.Judged("f", "s", "t", above, 0.0, 0.0, low, high, 9, 6)
    assert found.verdict == verdict and found.rule == f"interval {'above' if above else 'below'} 0"
    assert replace(found, n_clusters=5).verdict == "too few subjects"


@pytest.mark.parametrize(
    ("sets", "beyond", "cost", "most", "verdict"),
    [(8, 0.0, np.nan, np.nan, "holds"), (7, 0.0, np.nan, np.nan, "too few controls"),
     (8, 0.125, np.nan, np.nan, "undecided"), (8, 0.0, 0.2, 0.2, "holds"), (8, 0.0, 0.21, 0.2, "general damage"),
     (8, 0.125, 0.21, 0.2, "undecided")],
)  # fmt: skip
def test_moves_are_judged_by_their_controls_too(
    sets: int, beyond: float, cost: float, most: float, verdict: str
) -> None:
    found = judge.Judged("f", "s", "t", True, 0.0, 0.5, 0.1, 0.9, 9, 6, sets, beyond, cost, most)
    assert found.verdict == verdict and "no control set as far" in found.rule
    assert replace(found, above=False).verdict == {"holds": "does not"}.get(verdict, verdict)


def test_a_move_is_undecided_where_one_control_goes_as_far_and_damage_where_prose_pays() -> None:
    about, rows = [], []
    changes = {"": 0.0, "cut": 3.0} | {f"c{i}": 0.1 * i for i in range(8)}
    for name in list(changes)[1:]:
        draw = -1 if name == "cut" else int(name[1:])
        about.append(
            {"condition": name, "family": "cut context", "k": 4, "factor": np.nan, "scope": "answer",
             "components": name, "control": "" if name == "cut" else "layer", "draw": draw}
        )  # fmt: skip
    rng = np.random.default_rng(0)
    plan = pd.DataFrame(about)
    prose = plan.assign(d_nll=[0.1, *np.linspace(0.0, 0.2, 8)])
    whole = pd.DataFrame({"setting": [], "side": [], "cluster": [], "margin": []})
    none = pd.DataFrame({"contrast": [], "statistic": [], "a": []})

    def judged(prose: pd.DataFrame, **other: float) -> dict[str, Any]:
        rows.clear()
        for i in range(10):
            noise = rng.normal()
            for name, change in (changes | other).items():
                rows.append({"example": i, "cluster": f"s{i}", "condition": name, "task": "conflict", "side": MEMORY,
                             "margin": noise + change * (1 + 0.01 * i)})  # fmt: skip
        over = against_controls(pd.DataFrame(rows), plan, seed=0)
        (row,) = judge.findings(whole, none, over, prose, window=3).to_dict("records")
        assert row["ci_lo"] > 0 and row["n_clusters"] == 10 and "8 controls by layer" in row["statistic"]
        return row

    held = judged(prose)
    assert held["verdict"] == "holds" and "beyond 0.00" in held["statistic"]
    assert held["rule"] == "interval above 0, no control set as far, prose no worse than +0.20 nats"
    assert "z +10.8" in held["statistic"]  # (3 - 0.35) / sd of 0, 0.1, ... 0.7, which is 0.245
    near = judged(prose, c7=3.5)
    assert near["verdict"] == "undecided" and "beyond 0.12" in near["statistic"]
    # A control on the other side is none that goes as far.
    assert judged(prose, c7=-3.5)["verdict"] == "holds"
    assert judged(prose.assign(d_nll=[0.3, *[0.2] * 8]))["verdict"] == "general damage"
    # A control far above a move that lies below their mean: the side is that of the difference, not of the move.
    over = against_controls(
        pd.DataFrame(rows).replace({"condition": {"cut": "c0", "c0": "cut"}}), plan, seed=0
    )
    own = over[over["statistic"] == "margin"].iloc[0]
    assert own["value"] < 0 and own["beyond"] == 0.0 and own["d_move"] >= 0


def test_findings_name_what_they_rest_on(folder: Path) -> None:
    found = table(folder, "findings")
    over = table(folder, "over_controls")
    row = found[found["statistic"].str.contains("scale context 2 @answer less 2 controls by layer")].iloc[0]
    (wanted,) = over.query(
        "family == 'scale context' and k == 2 and factor == 0 and control == 'layer' and statistic == 'memory'"
    ).to_dict("records")
    assert row["value"] == wanted["value"] and row["ci_hi"] == wanted["ci_hi"]
    single = found[found["statistic"] == "memorisation ratio, 1:0"].iloc[0]
    assert single["rule"] == "interval below 0.5" and single["n"] == 10
    assert not found["statistic"].str.contains("task told").any()  # at chance
    moved = found["statistic"].str.contains("controls by")
    assert set(found.loc[moved, "verdict"]) == {"too few controls"} and (found["n_clusters"] <= 10).all()
    assert set(found.loc[~moved, "verdict"]) <= {"holds", "does not", "undecided", "too few subjects"}
    assert "(by token rank)" in " ".join(found["finding"])


def test_heads_that_move_the_balance_the_other_way_are_not_ranked(
    folder: Path, spec: ConflictSpec, model: CausalLM
) -> None:
    from interp.runs import Run

    study = ConflictStudy(spec, Run(folder, spec), model)
    study.heads = pd.DataFrame(
        {"layer": [0, 1, 2], "head": [3, 2, 1], "cut": [0.5, -2.0, 1.0], "read": [0.0, 1.0, -1]}
    )
    assert list(map(repr, study.ranked("context"))) == ["L2H1", "L0H3"]
    assert list(map(repr, study.ranked("memory"))) == ["L1H2"] == list(map(repr, study.ranked("read")))
    assert list(map(repr, study.ranked("against"))) == ["L2H1"]


def test_the_command_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fake(spec: ConflictSpec, folder: Path, *, stage: Any = None) -> Any:
        seen.append((spec, folder))
        return type("Job", (), {"done": ["known"], "skipped": []})()

    monkeypatch.setattr("interp.studies.conflict.study.run", fake)
    out = CliRunner().invoke(
        app,
        ["study", "conflict", "smollm2", "--quick", "--set", "test=9", "--out", str(tmp_path), "--json"],
    )
    assert out.exit_code == 0 and json.loads(out.stdout)["done"] == ["known"]
    assert seen[0] == (ConflictSpec.quick("smollm2", test=9), tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"relations": ("opposite",)}, "'opposite' has no fictional subjects"),
        ({"settings": (Setting(counter=2),)}, "begin with the single statement"),
        ({"settings": (Setting(), Setting())}, "two settings are the same"),
        ({"sizes": (4, 1)}, "rising numbers"),
        ({"factors": (1.0,)}, "not 1, which changes nothing"),
    ],
)
def test_bad_specs_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ConflictSpec(model="tiny", **changes)
