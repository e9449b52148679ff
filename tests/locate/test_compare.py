"""Two lists of heads, compared: exact nulls, ties, ceilings, KV groups, shapes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import interp
from interp.errors import UsageError
from interp.locate.compare import Comparison, compare, compare_depth, compare_methods
from interp.locate.head_scores import HeadScores, means
from interp.locate.interop import read_heads
from interp.locate.nulls import by_layer, correlations, hypergeometric
from tests.planted.retrieval import plant, planted_task


def grid(scores: np.ndarray, **more: object) -> HeadScores:
    """A grid of scores (layers, heads) as a source."""
    frame = means(scores[None].astype(float), "copy")
    return HeadScores(frame.assign(**more), "grid", "frame")


def measured(values: np.ndarray, name: str = "run") -> HeadScores:
    """Per-instance scores (instances, layers, heads) as a source."""
    return HeadScores(means(values, "copy"), name, "locator", {"copy": values})


def masks(layers: int, heads: int, per_layer: tuple[int, ...]) -> list[np.ndarray]:
    """Every set with so many heads in each layer."""
    out = []
    for chosen in itertools.product(*(itertools.combinations(range(heads), k) for k in per_layer)):
        mask = np.zeros((layers, heads), bool)
        for layer, picked in enumerate(chosen):
            mask[layer, list(picked)] = True
        out.append(mask)
    return out


def test_the_hypergeometric_null_counts_all_sets():
    a = set(range(4))
    every = [len(a & set(b)) for b in itertools.combinations(range(9), 3)]
    for both in range(4):
        expected, p = hypergeometric(9, 4, 3, both)
        assert expected == pytest.approx(np.mean(every))
        assert p == pytest.approx(np.mean([e >= both for e in every]))


def test_the_layer_null_counts_all_sets_with_the_same_layers():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a = rng.random((3, 4)) < 0.5
        b = rng.random((3, 4)) < 0.4
        every = [int((a & m).sum()) for m in masks(3, 4, tuple(b.sum(1)))]
        expected, p = by_layer(a, b)
        assert expected == pytest.approx(np.mean(every))
        assert p == pytest.approx(np.mean([e >= (a & b).sum() for e in every]))


def test_lists_that_only_share_their_layers_do_not_pass_for_alike():
    """Twenty heads each, drawn from the same two of thirty layers: far above chance, and explained by the layers."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sides = []
        for _ in range(2):
            scores = rng.random((30, 20)) * 0.1
            picked = rng.permutation(40)[:20]
            scores[10:12].reshape(-1)[picked] += 1
            sides.append(grid(scores))
        found.append(compare(*sides, top=20, draws=0))
    naive = np.array([c.value("overlap", "top 20", column="p") for c in found])
    layered = np.array([c.value("overlap", "top 20", column="p_layers") for c in found])
    assert (naive < 1e-4).all()
    assert (layered < 0.05).mean() <= 0.1
    assert 0.3 < (layered < 0.5).mean() < 0.7
    assert np.mean([c.value("overlap", "top 20", column="shared") for c in found]) == pytest.approx(
        10, abs=0.8
    )


def test_overlap_jaccard_and_who_is_alone():
    a, b = np.zeros((4, 8)), np.zeros((4, 8))
    a[0, :4] = [0.9, 0.8, 0.7, 0.6]
    b[0, 2:6] = [0.6, 0.9, 0.8, 0.5]
    found = compare(grid(a), grid(b), top=4, threshold=0.65, names=("old", "new"))
    assert (found.a, found.b) == ("old", "new")
    assert found.value("overlap", "top 4") == 0.5
    assert found.value("jaccard", "top 4") == pytest.approx(2 / 6)
    assert found.value("overlap", "score >= 0.65") == 0.0
    row = found.frame.set_index(["measure", "set"]).loc[("overlap", "score >= 0.65")]
    assert (row["n_a"], row["n_b"], row["shared"], row["n"]) == (3, 2, 0, 32)
    assert row["p"] == 1.0
    assert found.only("a") == ("L0H0", "L0H1") and found.only("b") == ("L0H4", "L0H5")
    alone = found.heads[(found.heads["set"] == "top 4") & (found.heads["component"] == "L0H5")].iloc[0]
    assert (alone["score_a"], alone["score_b"], alone["rank_a"], alone["rank_b"]) == (0.0, 0.5, 5, 4)
    with pytest.raises(UsageError, match="no overlap of 'top 3'"):
        found.value("overlap", "top 3")


def test_ties_do_not_agree():
    """Two lists of mostly zeros: heads tied at the edge of the top k are in neither set."""
    a, b = np.zeros((5, 8)), np.zeros((5, 8))
    a[4, :3] = [0.9, 0.8, 0.7]
    b[3, :3] = [0.9, 0.8, 0.7]
    found = compare(grid(a), grid(b), top=10)
    assert found.value("overlap", "top 10") == 0.0
    assert found.value("overlap", "top 10", column="n_a") == 3
    nothing = compare(grid(np.zeros((5, 8))), grid(b), top=10)
    assert math.isnan(nothing.value("overlap", "top 10")) and math.isnan(nothing.value("pearson"))
    assert math.isnan(nothing.value("overlap", "top 10", column="p"))


def test_correlations_their_intervals_and_nulls():
    rng = np.random.default_rng(1)
    layer = np.linspace(0, 3, 12)[:, None]
    a, b = (layer + rng.normal(size=(12, 10)) for _ in range(2))  # alike by layer alone
    rows = {r["measure"]: r for r in correlations(a, b)}
    assert rows["pearson"]["value"] == pytest.approx(stats.pearsonr(a.reshape(-1), b.reshape(-1))[0])
    assert rows["spearman"]["value"] == pytest.approx(stats.spearmanr(a.reshape(-1), b.reshape(-1))[0])
    for row in rows.values():
        assert row["ci_lo"] < row["value"] < row["ci_hi"]
        assert abs(row["expected"]) < 0.02 and row["p"] == 1 / 1001
        assert row["expected_layers"] == pytest.approx(row["value"], abs=0.15) and row["p_layers"] > 0.05
    same = {r["measure"]: r for r in correlations(a, a + 0.3 * b)}
    assert same["spearman"]["p_layers"] == 1 / 1001
    assert correlations(a, b, seed=3) == correlations(a, b, seed=3)


def test_the_interval_covers_the_correlation():
    """Layers that move together: intervals over layers hold the true correlation as often as they say."""
    hits = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        common = rng.normal(size=(24, 1))
        a = common + rng.normal(size=(24, 6))
        b = common + rng.normal(size=(24, 6))
        row = correlations(a, b, draws=200, seed=seed)[0]
        hits.append(row["ci_lo"] <= 0.5 <= row["ci_hi"])
    assert np.mean(hits) > 0.85


def test_what_noise_takes_the_ceiling_gives_back():
    """Two runs of one truth: the overlap is short of 1, of what each run reaches with itself it is all."""
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((6, 20)) < 0.4, rng.random((6, 20)), 0)
    other = rng.permutation(truth.reshape(-1)).reshape(6, 20)

    def run(of: np.ndarray, seed: int) -> HeadScores:
        return measured(of + 0.5 * np.random.default_rng(seed).normal(size=(24, 6, 20)))

    alike = compare(run(truth, 1), run(truth, 2), top=10, draws=0)
    apart = compare(run(truth, 1), run(other, 2), top=10, draws=0)
    assert alike.value("overlap", "top 10") < 0.95
    assert alike.value("overlap", "top 10", column="of_ceiling") == pytest.approx(1, abs=0.12)
    assert alike.value("pearson", column="of_ceiling") == pytest.approx(1, abs=0.05)
    assert alike.value("pearson") < 0.95
    assert apart.value("overlap", "top 10", column="of_ceiling") < 0.5
    silent = compare(grid(truth), run(truth, 2), top=10, draws=0)
    assert math.isnan(silent.value("overlap", "top 10", column="of_ceiling"))


def test_kv_groups_by_their_best_head():
    a, b = np.zeros((6, 8)), np.zeros((6, 8))
    for i in range(5):
        a[i, i] = b[i, i ^ 1] = 1 - i / 10  # the other head of the same group of two
    found = compare(grid(a), grid(b), top=5, kv_heads=4)
    assert found.value("overlap", "top 5") == 0.0
    assert found.value("overlap", "top 5", "kv_group") == 1.0
    assert found.value("overlap", "top 5", "kv_group", "n") == 24
    assert found.only("a", unit="kv_group") == () and len(found.only("a")) == 5
    known = compare(grid(a, kv_head=np.tile(np.arange(8) // 2, 6)), grid(b), top=5)
    assert known.value("overlap", "top 5", "kv_group") == 1.0
    with pytest.raises(UsageError, match="8 heads do not divide into 3"):
        compare(grid(a), grid(b), top=5, kv_heads=3)
    with pytest.raises(UsageError, match="4 KV heads a layer"):
        compare(
            grid(a, kv_head=np.tile(np.arange(8) // 2, 6)), grid(b, kv_head=np.tile(np.arange(8) // 4, 6))
        )


def test_gates_of_kv_heads_against_scores_of_heads(tmp_path):
    scores = np.zeros((6, 8))
    scores[2, 5], scores[4, 0] = 0.9, 0.8
    gates = np.full((6, 4), 0.1)
    gates[2, 2], gates[4, 0], gates[0, 1] = 1.0, 0.9, 0.8
    np.savetxt(tmp_path / "g.tsv", gates, delimiter="\t")
    found = compare(grid(scores), tmp_path / "g.tsv", top=3)
    assert set(found.frame["unit"]) == {"kv_group"}
    assert (
        found.value("overlap", "top 3", "kv_group") == 1.0
    )  # two of two: the third of the heads is a tie at 0
    assert found.only("b", unit="kv_group") == ("L0KV1",)
    np.savetxt(tmp_path / "h.tsv", gates[:5], delimiter="\t")
    with pytest.raises(UsageError, match="6 layers and h 5"):
        compare(grid(scores), tmp_path / "h.tsv")


def test_a_list_without_scores_is_compared_by_its_order(tmp_path):
    scores = np.random.default_rng(0).random((6, 8))
    order = [divmod(int(i), 8) for i in np.argsort(-scores.reshape(-1))]
    listed = [*order[:3], order[40], order[41]]
    path = tmp_path / "heads.yaml"
    path.write_text('attn_head_set: "' + ",".join(f"{la}-{h}" for la, h in listed) + '"\n')
    found = compare(path, grid(scores))
    assert list(found.frame["set"].unique()) == ["top 5"]
    assert found.value("overlap", "top 5") == 0.6
    assert found.only("a") == tuple(f"L{la}H{h}" for la, h in listed[3:])
    assert compare(path, grid(scores), top=3).value("overlap", "top 3") == 1.0
    with pytest.raises(UsageError, match="sets of 1 to 5"):
        compare(path, grid(scores), top=6)
    with pytest.raises(UsageError, match="both lists"):
        compare(path, read_heads(path))
    with pytest.raises(UsageError, match="names head"):
        compare(path, grid(scores[:2]))


def test_models_of_other_shapes_are_refused():
    with pytest.raises(UsageError, match=r"4 x 8 heads and .* 8 x 4.*--relative-depth"):
        compare(grid(np.ones((4, 8))), grid(np.ones((8, 4))))
    with pytest.raises(UsageError, match="top 32 was asked for"):
        compare(grid(np.ones((4, 8))), grid(np.ones((4, 8))), top=32)


def test_relative_depth_of_models_of_other_shapes():
    rng = np.random.default_rng(0)
    a, b, c = rng.random((12, 10)), rng.random((30, 16)), rng.random((30, 16))
    a[6] += 1
    b[15:17] += 1
    c[:2] += 1
    near = compare_depth(grid(a), grid(b))
    assert (near["n_a"], near["n_b"]) == (6, 24)
    assert near["depth_a"] == pytest.approx(6 / 11) and near["distance"] < 0.06
    assert near["p"] < 0.05
    far = compare_depth(grid(a), grid(c))
    assert far["distance"] > 0.4 and far["p"] > 0.9
    with pytest.raises(UsageError, match="are tied"):
        compare_depth(grid(np.zeros((4, 8))), grid(a))
    with pytest.raises(UsageError, match="between 0 and 1"):
        compare_depth(grid(a), grid(b), share=5)


def test_all_pairs_of_a_locators_scores():
    planted = plant("llama", seed=0)
    model = interp.load(planted.module, tokenizer=None)
    located = interp.RetrievalHeads().fit(model, planted_task(planted, 8, 0, 60))
    k = len(planted.retrieval)
    frame = compare_methods(located, top=k)
    methods = list(dict.fromkeys(located.scores_["method"]))
    matrix = frame.pivot(index="a", columns="b", values="overlap").loc[methods, methods]
    assert (np.diag(matrix) == 1).all()
    pd.testing.assert_frame_equal(matrix, matrix.T, check_names=False)
    # Planted heads copy, so both definitions find them all.
    assert matrix.loc["copy", "copy_position"] == 1.0
    row = frame[(frame["a"] == "copy") & (frame["b"] == "copy_position")].iloc[0]
    assert row["shared"] == k and row["p"] < 0.05 and 0.9 < row["of_ceiling"] <= 1.0 + 1e-9


def test_a_comparison_is_json_able_and_seeded():
    rng = np.random.default_rng(0)
    a, b = measured(rng.random((10, 8, 6)), "a"), measured(rng.random((10, 8, 6)), "b")
    one, two = compare(a, b), compare(a, b)
    assert isinstance(one, Comparison)
    pd.testing.assert_frame_equal(one.frame, two.frame)
    assert not compare(a, b, seed=1).frame.equals(one.frame)
    assert set(one.as_dict()) == {"a", "b", "method_a", "method_b", "rows", "only"}
    assert list(one.frame["set"].unique()) == ["top 5", "top 10", "all"]
