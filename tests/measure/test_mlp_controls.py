"""Matched windows of MLPs and matched neurons: what they are matched on, how many there are, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from interp.errors import UsageError
from interp.intervene.reference import Reference
from interp.measure.mlp_controls import matched_neurons, matched_windows, mlp_activity, mlp_norms
from interp.models.engines.base import Record
from interp.models.sites import MLP, Neuron, Site
from tests.intervene.test_tracing import deep
from tests.subjects import examples, subject


@pytest.mark.parametrize("scope", ["all", "value"])
def test_norms_and_activity_are_means_over_the_tokens_of_a_scope(scope: str) -> None:
    model, data = subject("llama"), examples((24, 17))  # padded
    norms, sizes = [], []
    for example in data:
        trace = model.run([example], {Site(k, i): Record() for k in ("mlp_out", "neurons") for i in range(3)})
        at = slice(3, 6) if scope == "value" else slice(0, len(example.full_ids) - 1)
        norms.append(np.stack([trace[Site("mlp_out", i)][0, at].norm(dim=-1).numpy() for i in range(3)], 1))
        sizes.append(trace[Site("neurons", 1)][0, at].abs().numpy())
    reference = Reference(data)
    np.testing.assert_allclose(mlp_norms(model, reference, scope), np.concatenate(norms).mean(0), rtol=1e-4)
    found = mlp_activity(model, reference, [1], scope)
    np.testing.assert_allclose(found[1], np.concatenate(sizes).mean(0), rtol=1e-4, atol=1e-6)


def test_windows_are_all_others_of_the_same_shape_nearest_first() -> None:
    model = deep()
    data = [e for e in _prompts()]
    norm = mlp_norms(model, Reference(data))
    found = matched_windows(model, ["M4", "M5", "M6"], 99, data)
    starts = [parts[0].layer for parts in found]
    assert sorted(starts) == [0, 1, 7, 8, 9] and found.n_distinct == len(found) == 5
    assert all([p.layer for p in parts] == [s, s + 1, s + 2] for s, parts in zip(starts, found, strict=True))
    gaps = [abs(norm[s : s + 3].mean() - norm[4:7].mean()) for s in starts]
    assert gaps == sorted(gaps) and gaps[0] < gaps[-1]
    first = found.table[found.table.draw == 0]
    assert first.wanted.to_numpy() == pytest.approx(norm[4:7]) and list(first.chosen) == ["M4", "M5", "M6"]
    assert first.gap.to_numpy() == pytest.approx(np.abs(norm[starts[0] : starts[0] + 3] - norm[4:7]))
    assert found.gaps[0] == pytest.approx(first.gap.mean())
    assert len(matched_windows(model, ["M4"], 2, data)) == 2
    for chosen, says in ((["L0H1"], "defined for MLP"), ([], "defined for MLP"), (["M12"], "layers 0 to 11")):
        with pytest.raises(UsageError, match=says):
            matched_windows(model, chosen, 3, data)
    with pytest.raises(UsageError, match="no other window of 7 layers"):
        matched_windows(model, [MLP(i) for i in range(3, 10)], 3, data)


def test_sets_with_gaps_are_drawn_layer_by_layer_near_in_norm() -> None:
    model, data, chosen = deep(), _prompts(), [MLP(1), MLP(5), MLP(10)]
    norm = mlp_norms(model, Reference(data))
    found = matched_windows(model, chosen, 12, data, seed=3, avoid=[MLP(11)])
    assert len(found) == len(set(found)) == 12 and found.n_distinct == 8 * 7 * 6 // 6
    free = [i for i in range(11) if i not in (1, 5, 10)]
    for parts in found:
        assert len({p.layer for p in parts}) == 3 and {p.layer for p in parts} <= set(free)
    for row in found.table.itertuples():
        own = norm[int(row.chosen[1:])]
        # The fourth nearest at most, or two places on where those before it are drawn already.
        assert row.gap <= np.sort(np.abs(norm[free] - own))[5] + 1e-9
        assert row.gap == pytest.approx(abs(own - norm[int(row.component[1:])]))
    assert list(matched_windows(model, chosen, 12, data, seed=3, avoid=[MLP(11)])) == list(found)
    assert list(matched_windows(model, chosen, 12, data, seed=4, avoid=[MLP(11)])) != list(found)
    with pytest.raises(UsageError, match="too few to draw"):
        matched_windows(model, [MLP(i) for i in (0, 1, 2, 3, 4, 5, 7)], 3, data)


def _prompts() -> list:
    from interp.tasks.base import Example

    return [Example("t", tuple(range(i, i + 9)), (3,), chance=0.1) for i in range(4)]


def test_neurons_are_drawn_among_the_nearest_of_their_layer() -> None:
    model, data = subject("llama"), examples((24, 17))
    size = mlp_activity(model, Reference(data), [0, 2])
    chosen = (Neuron(0, 5), Neuron(0, 6), Neuron(2, 7))
    found = matched_neurons(model, chosen, 20, data, seed=3, avoid=[Neuron(0, 9)])
    assert len(found) == 20 == len(set(found)) and found.n_distinct == 77 * 76 // 2 * 79
    for parts in found:
        assert sorted(p.layer for p in parts) == [0, 0, 2] and not set(parts) & {*chosen, Neuron(0, 9)}
    free = {0: [j for j in range(80) if j not in (5, 6, 9)], 2: [j for j in range(80) if j != 7]}
    for row in found.table.itertuples():
        layer, own = int(row.chosen[1]), int(row.chosen.partition("N")[2])
        gaps = np.sort(np.abs(size[layer][free[layer]] - size[layer][own]))
        assert row.gap <= gaps[8] and row.wanted == pytest.approx(
            size[layer][own]
        )  # one may be drawn already
        assert row.gap == pytest.approx(abs(row.wanted - row.value))
    assert list(matched_neurons(model, chosen, 20, data, seed=3, avoid=[Neuron(0, 9)])) == list(found)
    assert list(matched_neurons(model, chosen, 20, data, seed=4, avoid=[Neuron(0, 9)])) != list(found)
    every = matched_neurons(model, ["L1N0"], 200, data)
    assert len(every) == 79 == every.n_distinct
    for parts, says in ((["M1"], "defined for neurons"), (["L1N80"], "neurons 0 to 79")):
        with pytest.raises(UsageError, match=says):
            matched_neurons(model, parts, 2, data)
    with pytest.raises(UsageError, match="too few"):
        matched_neurons(model, [Neuron(1, j) for j in range(41)], 2, data)
