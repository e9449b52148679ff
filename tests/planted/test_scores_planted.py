"""Every score of heads against heads that are known: what it finds, what deceives it, and when it fails.

The patterns are read off the committed table (`python -m tests.planted.table`: every family, several seeds), of which a
sample of models is scored again. What follows from a score's definition is asserted, not what would be welcome.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.locate.scores import SCORES
from tests.planted.placement import Place
from tests.planted.table import (
    BY_NEEDLE,
    KINDS,
    OUT,
    ROLES,
    Unit,
    auroc,
    roles,
    rows,
    scored,
    selected,
    units,
)
from tests.test_figures import loaded

LITERAL = ("copy", "copy_position", "copy_topk")
ATTENTION = (*LITERAL, "needle_mass", "r2", "anchor", "qr", "temporal", "spatial", "induction")
WRITING = ("dla", "locos", "cri")
"""Scores that see what a head writes, and not only where it looks."""

AGAIN = (
    Unit("llama", "literal", 0.0, 0),
    Unit("gpt2", "semantic", 0.1, 0),
    Unit("llama-mha", "distance", 0.0, 1),
    Unit("gpt2", "place", 0.0, 2),
)
"""Models of the table that are scored again."""


@pytest.fixture(scope="module")
def committed() -> pd.DataFrame:
    return pd.read_parquet(OUT)


def clear(committed: pd.DataFrame, circuit: str) -> pd.DataFrame:
    """Rows of one circuit without noise: every family and seed."""
    return committed[(committed["circuit"] == circuit) & (committed["noise"] == 0)]


def of(frame: pd.DataFrame, scores: tuple[str, ...], needle: str = "value") -> pd.DataFrame:
    return frame[frame["score"].isin(scores) & (frame["needle"] == needle)]


# -- the table is what the code gives --------------------------------------------------------------------------------


def test_the_table_is_whole(committed: pd.DataFrame) -> None:
    key = ["family", "circuit", "noise", "seed"]
    assert {Unit(*map(_plain, own)) for own in committed[key].drop_duplicates().to_numpy()} == set(units())
    for unit, own in committed.groupby(key):
        expected = {(name, "value") for name in SCORES} | {(name, "evidence") for name in BY_NEEDLE}
        if unit[2] == 0 and unit[1] in ("literal", "semantic"):
            expected |= {("duo", "value")}
        assert set(zip(own["score"], own["needle"], strict=True)) == expected


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize("unit", AGAIN, ids=lambda u: f"{u.family}-{u.circuit}-{u.noise:g}")
def test_a_sample_is_scored_again(unit: Unit, committed: pd.DataFrame) -> None:
    key = ["family", "circuit", "noise", "seed"]
    mine = committed[(committed[key] == [unit.family, unit.circuit, unit.noise, unit.seed]).all(axis=1)]
    mine = mine[mine["score"] != "duo"].reset_index(drop=True)
    again = pd.DataFrame(rows(unit, gates=False))
    exact = ["score", "needle", "heads", "k", "clean"]
    pd.testing.assert_frame_equal(again[exact], mine[exact])
    # Where weights are noise a rounding may move a head to the next step of a score.
    shares = ["found", "auroc", "cut", *ROLES]
    same = np.isclose(again[shares].to_numpy(float), mine[shares].to_numpy(float), atol=1e-3, equal_nan=True)
    assert same.mean() > 0.99


def test_scores_of_a_semantic_head() -> None:
    unit = Unit("llama", "semantic", 0.0, 0)
    planted = unit.planted()
    found = scored(unit, planted, unit.task(planted), gates=False)

    def own(score: str, needle: str = "value", role: str = "semantic") -> np.ndarray:
        return np.array([found[score, needle][at] for at in getattr(planted, role)])

    assert (own("copy") == 0.0).all()
    assert (own("copy_position") == 0.0).all()
    assert own("needle_mass").max() < 1e-3
    assert own("needle_mass", "evidence").min() > 0.99
    assert own("locos").max() < 0.0, "what does not come from the needle counts against a head"
    np.testing.assert_allclose(own("locos", "evidence"), own("dla"), rtol=1e-3)
    assert own("cri").min() > 5.0
    assert (own("copy", role="silent") == 1.0).all()
    assert np.abs(own("cri", role="silent")).max() < 0.05 * own("cri").min()


# -- what each score finds, and what deceives it ---------------------------------------------------------------------


def test_silent_heads_deceive_attention_and_not_what_is_written(committed: pd.DataFrame) -> None:
    frame = clear(committed, "literal")
    writing = pd.concat([of(frame, WRITING), of(frame, ("locos",), "evidence")])
    assert (writing[["found", "auroc"]] == 1.0).all(axis=None)
    assert (writing["cut"] == 0.0).all(), "the cut of what they pick destroys recall"
    assert (of(frame, LITERAL)["found"] < 1.0).all()
    assert (of(frame, ("copy", "copy_position"))[["retrieval", "silent"]] == 0.5).all(axis=None), (
        "four tie for two"
    )
    for score in ATTENTION:
        mean = of(frame, (score,))[["retrieval", "silent"]].mean()
        assert mean["silent"] > 0.2, score
        # By attention alone they are the same heads; what difference there is is chance.
        assert mean["retrieval"] < 0.8, score


def test_sinks_and_neighbours_deceive_no_score(committed: pd.DataFrame) -> None:
    """But for ties: where LOCOS finds nothing above zero, all other heads share the top."""
    scores = committed[(committed["noise"] == 0) & ~committed["score"].isin(["locos", "echo"])]
    assert (scores["sink"] == 0.0).all()
    varied = clear(committed, "literal")
    assert (varied[varied["score"] != "duo"][["sink", "previous", "two_back", "support"]] == 0.0).all(
        axis=None
    )


def test_echo_is_another_head(committed: pd.DataFrame) -> None:
    echo = of(clear(committed, "literal"), ("echo",))
    assert (echo["found"] == 0.0).all()
    assert (echo["duplicate"] == 1.0).all()


def test_semantic_heads_escape_literal_scores(committed: pd.DataFrame) -> None:
    """With the value as needle LOCOS misses them too: it weighs what comes from the needle against all else."""
    frame = clear(committed, "semantic")
    blind = ("needle_mass", "r2", "temporal", "spatial", "locos", "induction")
    assert (of(frame, (*LITERAL, *blind))["semantic"] == 0.0).all()
    literal = of(frame, LITERAL)
    assert (of(frame, ("copy", "copy_position"))["silent"] == 1.0).all()
    assert (literal["cut"] == 1.0).all(), "heads that do nothing are picked, and their cut does nothing"
    seeing = pd.concat([of(frame, ("dla", "cri")), of(frame, ("locos",), "evidence")])
    assert (seeing[["found", "auroc"]] == 1.0).all(axis=None)
    assert (seeing["cut"] == 0.0).all()
    # With the evidence as needle attention sees them beside all else that looks there.
    wide = of(frame, ("needle_mass", "spatial"), "evidence")
    assert wide["auroc"].min() > 0.8
    assert wide["found"].max() < 1.0
    assert of(frame, ("needle_mass", "spatial"))["auroc"].max() < 0.8


def test_needles_at_one_distance_deceive_attention(committed: pd.DataFrame) -> None:
    frame = clear(committed, "distance")
    assert (of(frame, ("copy", "copy_position"))["offset"] == 0.4).all(), "five heads tie for two"
    assert (of(frame, ("needle_mass", "r2", "spatial"))["offset"] > 0.0).mean() > 0.5
    assert (of(frame, (*WRITING, "induction"))["offset"] == 0.0).all()
    assert (of(frame, WRITING)["found"] == 1.0).all()
    varied = clear(committed, "literal")
    assert (varied[varied["score"] != "duo"]["offset"] == 0.0).all(), "where distances vary it deceives none"


def test_needles_at_one_place_deceive_attention_and_not_copying(committed: pd.DataFrame) -> None:
    frame = clear(committed, "place")
    assert (of(frame, ("needle_mass", "spatial"))["place"] > 0.0).any()
    assert (of(frame, ("copy", "copy_position", *WRITING, "temporal", "induction"))["place"] == 0.0).all()


def test_both_kinds_together(committed: pd.DataFrame) -> None:
    frame = clear(committed, "mixed")
    assert (of(frame, (*LITERAL, "locos"))["semantic"] == 0.0).all()
    seeing = pd.concat([of(frame, ("dla", "cri")), of(frame, ("locos",), "evidence")])
    assert (seeing[["retrieval", "semantic"]] == 1.0).all(axis=None)
    assert (of(frame, ("locos",))["retrieval"] == 1.0).all()


def test_gates_see_whatever_comes_from_afar(committed: pd.DataFrame) -> None:
    """Training keeps hidden states and not answers: heads that write from afar what no answer needs are kept too."""
    frame = clear(committed, "literal")
    gates = of(frame, ("duo",))
    assert (gates["sink"] == 0.0).all()
    assert gates[["offset", "ahead", "salient"]].max(axis=1).min() > 0.0
    own = gates["family"] != "llama"
    assert gates[own]["auroc"].min() > 0.8
    assert gates[~own]["auroc"].max() < gates[own]["auroc"].min(), "in a group gates say less"
    assert gates["auroc"].max() < of(frame, WRITING)["auroc"].min()


def test_difficulty_ends_in_failure(committed: pd.DataFrame) -> None:
    blurred = committed[committed["circuit"].isin(["literal", "semantic"])]
    clean = blurred.groupby(["circuit", "noise"])["clean"].mean().unstack()
    assert (clean[0.0] == 1.0).all()
    assert (clean[0.6] == 0.0).all()
    assert (np.diff(clean.to_numpy(), axis=1) <= 0).all()
    found = (
        blurred[blurred["score"].isin(["dla", "cri"])].groupby(["circuit", "noise"])["found"].mean().unstack()
    )
    assert (found[0.0] == 1.0).all()
    assert (found[0.1] > 0.9).all()
    assert (found[0.6] < 0.5).all()


# -- how it is counted -----------------------------------------------------------------------------------------------


def test_ties_share_what_is_left() -> None:
    values = np.array([[3.0, 1.0, 1.0], [1.0, 0.0, 2.999]])
    assert selected(values, 1).tolist() == [[0.5, 0, 0], [0, 0, 0.5]], "0.001 of 3 is no difference"
    np.testing.assert_allclose(selected(values, 3), [[1, 1 / 3, 1 / 3], [1 / 3, 0, 1]])
    truth: frozenset[Place] = frozenset({(0, 0), (0, 1)})
    # Above three of the four others and level with one; above one and level with two.
    assert auroc(values, truth) == pytest.approx((3.5 + 2.0) / 8)


def test_every_head_has_one_role() -> None:
    planted = Unit("llama", "mixed", 0.0, 1).planted()
    every = roles(planted)
    assert len(every) == planted.n_layers * planted.n_heads
    assert list(every.values()).count("semantic") == list(every.values()).count("carrier") == 2
    assert set(every.values()) <= set(ROLES)
    assert KINDS == ("gpt2", "llama", "llama-mha")


def test_the_readme_of_the_figure_says_what_the_table_says() -> None:
    script = loaded("planted_heads")
    text = Path(script.README).read_text()
    assert script.written(text, script.tables()) == text
    assert set(script.figures()) == {"planted-heads", "planted-heads-noise"}
