"""The fact part of an atlas: what is known, how subjects are halved, and cuts on models whose facts are planted."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.atlas import AtlasSpec
from interp.atlas_facts import (
    MANY,
    RIGHT,
    SWAP,
    WRONG,
    FactSection,
    ask,
    census,
    halves,
    plan_of,
    profile,
    traceable,
)
from interp.intervene.ablate import Ablate
from interp.locate.facts.fact_mlps import FactMLPs, cut_values
from interp.measure.effects import COLUMNS, measure
from interp.measure.stats import proportion_ci
from interp.models.sites import MLP, Neuron
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.runs import Run
from interp.tasks.base import Example, FixedTask
from tests.planted.facts import Planted, planted
from tests.tiny import byte_tokenizer, tiny

SPEC = AtlasSpec(
    model="planted",
    fact_trace_n=12,
    fact_window=1,
    fact_exact=4,
    fact_neuron_layers=1,
    fact_neuron_cuts=(4, 12),
    fact_controls=2,
    facts_keep=10,
)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted model has five subjects."""
    monkeypatch.setattr("interp.atlas_facts.LEAST", 2)


@pytest.fixture(scope="module")
def model() -> Planted:
    return planted(0, "gpt2")


@pytest.fixture(scope="module")
def prompts(model: Planted) -> list[Example]:
    return model.prompts(np.random.default_rng(0))


def test_the_census_counts_what_is_right(model: Planted, prompts: list[Example]) -> None:
    wrong = [Example(**{**vars(e), "answer_ids": e.foil_ids, "foil_ids": e.answer_ids}) for e in prompts[:3]]
    asked = ask(model.subject, [*prompts, *wrong])
    assert asked["known"].tolist() == [True] * len(prompts) + [False] * 3
    assert asked["relation"].tolist() == [e.meta["relation"] for e in [*prompts, *wrong]]
    told = census(asked).set_index("relation")
    assert told.index[-1] == "all" and told["asked"][:-1].sum() == told.loc["all", "asked"] == len(asked)
    for name in told.index[:-1]:
        own = asked[asked["relation"].astype(str) == name]
        assert (
            told.loc[name, "known"] == own["known"].sum()
            and told.loc[name, "subjects"] == own["cluster"].nunique()
        )
        assert told.loc[name, "accuracy"] == own["known"].mean()
        low, high = proportion_ci(own["known"].to_numpy(float), own["cluster"].to_numpy())
        assert (told.loc[name, "lo"], told.loc[name, "hi"]) == (low, high)
    assert told.loc["all", "chance"] == pytest.approx(prompts[0].chance)


def test_halves_part_subjects_and_depend_on_the_seed() -> None:
    clusters = [f"s{i % 11}" for i in range(40)]
    first = halves(clusters, 0)
    inside = {c for c, f in zip(clusters, first, strict=True) if f}
    assert len(inside) == 6 and not inside & {c for c, f in zip(clusters, first, strict=True) if not f}
    assert (halves(clusters[::-1], 0)[::-1] == first).all(), "not on their order"
    assert any((halves(clusters, seed) != first).any() for seed in range(1, 5))


def test_what_cannot_be_traced_is_left_out(prompts: list[Example]) -> None:
    bare = Example(**{**vars(prompts[0]), "corrupt": {}})
    end = prompts[1].spans_of("subject")[0].end
    ending = Example(**{**vars(prompts[1]), "ids": prompts[1].ids[:end]})
    assert traceable([bare, ending, *prompts], 3) == prompts[:3]


def test_the_profile_peaks_where_facts_are_and_asks_for_what_the_model_says(
    model: Planted, prompts: list[Example]
) -> None:
    known = prompts[:6]
    # Asked for something else than what the model says: the answer of the profile is the latter, so nothing changes.
    other = [Example(**{**vars(e), "answer_ids": e.foil_ids, "foil_ids": ()}) for e in known]
    told = profile(model.subject, {RIGHT: known, WRONG: other}, 1, 0)
    assert set(told["said"]) == {RIGHT, WRONG} and set(told["place"]) == {"last subject", "last"}
    right, wrong = (
        told[told["said"] == s].drop(columns="said").reset_index(drop=True) for s in (RIGHT, WRONG)
    )
    assert wrong[["aie", "te"]].to_numpy() == pytest.approx(right[["aie", "te"]].to_numpy())
    mlps = right[(right["kind"] == "mlp_out") & (right["place"] == "last subject")].set_index("layer")
    vital = {model.layers[name] for name in model.layers if model.layers[name] == 0}
    assert mlps["aie"].drop(list(vital)).idxmax() == model.layers["facts"]
    attention = right[(right["kind"] == "attn_out") & (right["place"] == "last")].set_index("layer")["aie"]
    assert attention.max() > 0.5 and attention.idxmax() > model.layers["facts"]


def test_plans_hold_each_set_with_others_in_its_place(model: Planted, prompts: list[Example]) -> None:
    layer = model.layers["facts"]
    (cut, *controls) = plan_of(model.subject, [[MLP(layer)]], 3, prompts, 0)
    assert cut.condition == "cut" and cut.k == 1 and cut.intervention.components == (MLP(layer),)
    assert [c.draw for c in controls] == list(range(len(controls))) and 1 <= len(controls) <= 3
    assert all(c.control == "norm" and MLP(layer) not in c.intervention.components for c in controls)
    neurons = [Neuron(layer, i) for i in range(6)]
    plan = plan_of(model.subject, [neurons[:2], neurons[:4]], 2, prompts, 0, neurons)
    assert [(c.condition, c.k) for c in plan] == [
        (w, k) for k in (2, 4) for w in ("cut", "control", "control")
    ]
    for c in plan:
        parts = c.intervention.components
        assert len(parts) == c.k and c.n_distinct <= MANY
        assert (set(parts) <= set(neurons)) == (c.condition == "cut")
    assert [c.condition for c in plan_of(model.subject, [[MLP(layer)]], 0, prompts, 0)] == ["cut"]


def test_a_window_is_cut_as_it_is_restored(model: Planted, prompts: list[Example]) -> None:
    found = FactMLPs(SWAP, window=3, n_layers=0).fit(model.subject, prompts[:4], reference=prompts[4:])
    layer = model.layers["facts"]
    window = found.around(model.subject, layer)
    assert window == (MLP(layer - 1), MLP(layer), MLP(layer + 1))
    assert found.around(model.subject, 0) == (MLP(0), MLP(1))
    row = found.layers_.set_index("layer").loc[layer]
    for name, examples in (("fact", prompts[:4]), ("off", prompts[4:])):
        intact, cut = cut_values(model.subject, examples, [Ablate(window)]).mean(0)
        assert row[f"{name}_loss"] == pytest.approx(intact - cut, abs=1e-6)
    assert row["spared"] == pytest.approx(cut / intact, abs=1e-6)


class Section(FactSection):
    """The section with the planted model's own facts, and copies for needles and for plain text."""

    planted: Planted

    @property
    def examples(self) -> list[Example]:  # type: ignore[override]
        rng = np.random.default_rng(0)
        known = self.planted.prompts(rng)
        return [
            *known,
            *(Example(**{**vars(e), "answer_ids": e.foil_ids, "foil_ids": ()}) for e in known[:4]),
        ]

    @property
    def reference(self) -> list[Example]:  # type: ignore[override]
        return list(self.planted.copies(np.random.default_rng(1), 6))

    def prose(self) -> FixedTask:
        return FixedTask(self.planted.copies(np.random.default_rng(0), 6), name="copies")


def section(model: Planted, folder: Path, spec: AtlasSpec = SPEC) -> tuple[Section, list[str]]:
    stages: list[str] = []

    def stage(name: str):
        stages.append(name)
        return nullcontext(None)

    def needles(use: str, length: int, n: int) -> FixedTask:
        assert (use, length, n) == ("measure", spec.fact_length, spec.measure_n)
        return FixedTask(model.copies(np.random.default_rng(9), 6), name="niah")

    made = Section(spec, Run(folder, spec), lambda: model.subject, stage, needles)
    made.planted = model
    return made, stages


def test_the_section_finds_the_planted_layer_and_what_its_cut_takes(
    model: Planted, tmp_path: Path, few: None
) -> None:
    made, stages = section(model, tmp_path / "run")
    made.tables()
    names = ("census", "layers", "neurons", "effects")
    tables = {n: pd.read_parquet(tmp_path / "run" / f"fact_{n}.parquet") for n in names}
    layer = model.layers["facts"]
    ranked = tables["layers"].sort_values("score", ascending=False)
    assert ranked["component"].iloc[0] == f"M{layer}"
    assert {c.split("N")[0] for c in tables["neurons"]["component"]} == {f"L{layer}"}
    effects = tables["effects"]
    assert list(effects.columns) == COLUMNS and set(effects["mechanism"]) == {"fact MLPs", "fact neurons"}
    assert set(effects["task"]) == {"held-out facts", f"niah {SPEC.fact_length}", "prose"}
    first = halves(made.asked["cluster"], 0)
    held = [e for e, f, k in zip(made.examples, first, made.asked["known"], strict=True) if k and not f]
    assert effects["n"][effects["task"] == "held-out facts"].unique().tolist() == [min(10, len(held))]
    own = effects[(effects["mechanism"] == "fact MLPs") & (effects["metric"] == "logprob")]
    tasks = ("held-out facts", f"niah {SPEC.fact_length}")
    facts, needles = (own[own["task"] == t].set_index("condition") for t in tasks)
    assert facts.loc["cut", "components"] == f"M{layer}"
    assert facts.loc["cut", "delta"] < -1 and abs(needles.loc["cut", "delta"]) < 0.1
    want = measure(
        model.subject, FixedTask(held[:10], name="facts"),
        plan_of(model.subject, [[MLP(layer)]], 0, held, 0), metrics=("logprob",), off_target=(),
    )  # fmt: skip
    assert facts.loc["cut", "value"] == pytest.approx(want["value"].iloc[1], abs=1e-5)
    neurons = effects[(effects["mechanism"] == "fact neurons") & (effects["condition"] == "cut")]
    assert sorted(neurons["k"].unique()) == [4, 12]
    assert neurons["components"].iloc[0].split() == tables["neurons"]["component"][:4].tolist()
    assert any("locate" in s for s in stages)


def test_a_stopped_section_goes_on(model: Planted, tmp_path: Path, few: None) -> None:
    made, _ = section(model, tmp_path / "run")
    made.stage = lambda name: _stop() if "neurons: niah" in name else nullcontext(None)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        made.tables()
    there = {
        str(p.relative_to(tmp_path / "run")): p.read_bytes() for p in (tmp_path / "run").rglob("*.parquet")
    }
    assert "parts/fact-neurons-held-out-facts.parquet" in there and "fact_effects.parquet" not in there
    again, stages = section(model, tmp_path / "run")
    again.tables()
    assert stages == [f"cut fact neurons: niah {SPEC.fact_length}", "cut fact neurons: prose"]
    assert all((tmp_path / "run" / name).read_bytes() == data for name, data in there.items())
    whole, _ = section(model, tmp_path / "whole")
    whole.tables()
    for name in ("effects", "layers", "neurons", "profile"):
        pd.testing.assert_frame_equal(
            *(pd.read_parquet(tmp_path / run / f"fact_{name}.parquet") for run in ("run", "whole"))
        )


def _stop() -> None:
    raise KeyboardInterrupt


def test_too_few_known_facts_are_a_remark(model: Planted, tmp_path: Path) -> None:
    made, stages = section(model, tmp_path / "run")
    known = [i < 3 for i in range(len(made.examples))]
    made.__dict__["asked"] = ask(model.subject, made.examples).assign(known=known)
    made.tables()
    assert not stages and {p.name for p in (tmp_path / "run").glob("*.parquet")} == {"fact_census.parquet"}
    assert "no fact MLPs were looked for" in (tmp_path / "run" / "provenance.json").read_text()


def test_prose_that_cuts_are_measured_on_is_of_other_topics_than_what_parts_were_chosen_on(
    tmp_path: Path,
) -> None:
    model = CausalLM(tiny("llama"), Tokens(byte_tokenizer()), name="tiny")
    spec = SPEC.model_copy(update={"prose_n": 6})
    made = FactSection(spec, Run(tmp_path / "run", spec), lambda: model, lambda name: nullcontext(None), None)  # type: ignore[arg-type]
    asked = made.prose().examples(model)
    assert len(asked) == len(made.reference) == 6
    assert not {e.cluster for e in asked} & {e.cluster for e in made.reference}
