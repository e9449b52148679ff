"""The graph of writers and readers, circuits as sets of its nodes or edges, and how they are chosen and stored."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest

from interp.errors import BrokenData, UsageError
from interp.locate.circuits.circuit import Circuit, auroc, ranked, select
from interp.locate.circuits.graph import KV, Edge, Embed, Graph, Logits, Reader, edge, node, reader
from interp.models.sites import MLP, Head
from tests.subjects import subject

SMALL = Graph(3, 4, 2)
SHAPES = [SMALL, Graph(2, 3, 3), Graph(3, 4, 2, parallel=True), Graph(2, 2, 1, parallel=True)]


def naive_edges(g: Graph) -> list[str]:
    """Every writer before every reader, by steps of execution: attention at 2 L, MLP at 2 L + 1 or beside it."""
    step = 0 if g.parallel else 1
    writers = [("embed", -1)]
    readers = []
    for layer in range(g.n_layers):
        writers += [(f"L{layer}H{h}", 2 * layer) for h in range(g.n_heads)]
        writers += [(f"M{layer}", 2 * layer + step)]
        readers += [(f"L{layer}H{h}.q", 2 * layer) for h in range(g.n_heads)]
        readers += [(f"L{layer}KV{i}.{s}", 2 * layer) for s in "kv" for i in range(g.n_kv_heads)]
        readers += [(f"M{layer}", 2 * layer + step)]
    readers.append(("logits", 2 * g.n_layers))
    return [f"{w}->{r}" for r, late in readers for w, early in writers if early < late]


@pytest.mark.parametrize("g", SHAPES, ids=repr)
def test_edges_are_all_causal_pairs_in_order(g):
    wanted = naive_edges(g)
    assert [repr(e) for e in g.edges] == wanted
    assert g.n_edges == len(wanted) == g.full.sum()
    assert g.frame().edge.tolist() == wanted
    assert [repr(e) for e in g.named(g.matrix(wanted))] == wanted
    assert [edge(repr(e)) for e in g.edges] == list(g.edges)


def test_counts_of_a_small_graph():
    # 3 layers of 8 attention readers that see 1, 6, 11 writers; MLPs that see 5, 10, 15; logits that see all 16.
    assert SMALL.n_edges == 8 * (1 + 6 + 11) + (5 + 10 + 15) + 16
    assert Graph(3, 4, 2, parallel=True).n_edges == 9 * (1 + 6 + 11) + 16
    assert (len(SMALL.writers), len(SMALL.readers)) == (16, 28)
    assert repr(SMALL) == "Graph(3 layers x 4 heads (2 KV): 16 writers, 28 readers, 190 edges)"
    row = SMALL.frame().set_index("edge").loc["L0H1->L2KV1.v"]
    assert row.tolist() == ["L0H1", "L2KV1", "v", 0, 2]
    assert SMALL.frame()[["writer_layer", "reader_layer"]].agg(["min", "max"]).to_numpy().tolist() == [
        [-1, 0],
        [2, 3],
    ]


@pytest.mark.parametrize("family", ["gpt2", "neox", "neox sequential", "llama", "qwen3"])
def test_a_subject_has_the_graph_of_its_shape(family):
    s = subject(family)
    g = Graph.of(s)
    assert g == Graph(3, 4, 2 if family in ("llama", "qwen3") else 4, parallel=family == "neox")


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
def test_post_norm_families_have_nodes_and_no_edges(family):
    with pytest.raises(UsageError, match=f"{family} .* norms what attention writes"):
        Graph.of(subject(family))
    assert len(Graph.of(subject(family), edges=False).writers) == 16


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (node, "L1KV0"),
        (node, "L1H2.q"),
        (reader, "L1H2"),
        (reader, "L1KV0.q"),
        (reader, "embed"),
        (edge, "L0H1"),
    ],
)
def test_what_is_no_name_is_refused(parse, text):
    with pytest.raises(UsageError, match=f"'{text}' is no"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("L9H0->logits", "no L9H0"),
        ("embed->L0KV2.k", "no L0KV2.k"),
        ("L1H0->L1H1.q", "reads before"),
        ("M0->M0", "reads before"),
    ],
)
def test_edges_that_do_not_exist_are_refused(text, told):
    with pytest.raises(UsageError, match=told):
        SMALL.matrix([text])


def on_a_path(g: Graph, edges: set[str]) -> set[str]:
    """Edges on a path from the embeddings to the logits, by search over nodes of query heads."""
    per = g.n_heads // g.n_kv_heads
    steps = []
    for text in edges:
        own = edge(text)
        end = own.reader.node
        ends = [Head(end.layer, end.group * per + i) for i in range(per)] if isinstance(end, KV) else [end]
        steps += [(own.writer, e, text) for e in ends]

    def spread(start, forward):
        known, todo = {start}, [start]
        while todo:
            here = todo.pop()
            for a, b, _ in steps:
                a, b = (a, b) if forward else (b, a)
                if a == here and b not in known:
                    known.add(b)
                    todo.append(b)
        return known

    first, last = spread(Embed(), True), spread(Logits(), False)
    return {t for a, b, t in steps if a in first and b in last}


@pytest.mark.parametrize("g", SHAPES, ids=repr)
def test_connected_edges_are_those_on_a_path(g):
    every = naive_edges(g)
    rng = np.random.default_rng(0)
    sizes = []
    for share in (0.05, 0.1, 0.2, 0.7) * 3:
        chosen = {e for e in every if rng.random() < share}
        found = {repr(e) for e in g.named(g.connected(g.matrix(chosen)))}
        assert found == on_a_path(g, chosen)
        sizes.append(len(found) / max(1, len(chosen)))
    assert min(sizes) < 0.1 and max(sizes) > 0.5
    assert (g.connected(g.full) == g.full).all()


def test_a_key_connects_every_head_of_its_group():
    chosen = ["embed->L0KV1.k", "L0H3->logits", "embed->L0H2.q", "L0H0->logits"]
    kept = select(chosen, 4, SMALL, connected=True)
    assert [repr(e) for e in kept.edges] == ["embed->L0KV1.k", "L0H3->logits"]
    assert kept.heads == (Head(0, 2), Head(0, 3))


def test_a_circuit_of_edges_knows_its_nodes():
    c = Circuit("c", {edge("embed->L0KV1.v"), edge("L0H3->M1"), edge("M1->logits")}, SMALL)
    assert c.level == "edge" and len(c) == 3
    assert c.nodes == {Embed(), Head(0, 2), Head(0, 3), MLP(1), Logits()}
    assert c.heads == (Head(0, 2), Head(0, 3)) and c.mlps == (MLP(1),)
    assert "L0H3->M1" in c and "L0H2->M1" not in c
    assert repr(c) == "Circuit(c: 3 edges, 2 heads, 1 MLPs: embed L0H2 L0H3 M1 logits)"
    assert c == Circuit("c", reversed(c.edges), SMALL)


def test_a_circuit_of_nodes_needs_no_graph():
    c = Circuit("c", {MLP(0), Head(5, 1), Head(0, 3)})
    assert c.level == "node" and c.edges == () and c.heads == (Head(0, 3), Head(5, 1))
    assert repr(c) == "Circuit(c: 2 heads, 1 MLPs: L0H3 M0 L5H1)"
    with pytest.raises(UsageError, match="no L5H1"):
        Circuit("c", c.items, SMALL)
    with pytest.raises(UsageError, match="mixes"):
        Circuit("c", {MLP(0), edge("embed->M0")}, SMALL)
    with pytest.raises(UsageError, match="needs its graph"):
        Circuit("c", {edge("embed->M0")})


@pytest.mark.parametrize(
    "c",
    [
        Circuit("e", frozenset(map(edge, ["M0->L2H3.q", "embed->logits", "L0H0->L1KV0.k"])), SMALL),
        Circuit("n", frozenset({MLP(0), Head(2, 1)}), SMALL),
        Circuit("bare", frozenset({Embed(), Head(40, 1)})),
    ],
    ids=lambda c: c.name,
)
def test_circuits_are_stored_and_read_again(c, tmp_path):
    path = tmp_path / "c.json"
    c.save(path)
    assert Circuit.load(path) == c
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    if c.graph:
        assert Circuit.load(path, SMALL) == c
        with pytest.raises(UsageError, match="the model has"):
            Circuit.load(path, Graph(3, 4, 4))
    first = path.read_bytes()
    c.save(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "x"}, "no circuit of format"),
        ({"items": ["M0->L2H3.q", "M0->L2H3.q"]}, "each once"),
        ({"items": ["M0->L9H3.q"]}, "no L9H3.q"),
        ({"items": ["M0"]}, "no edge"),
        ({"items": "M0"}, "list of items"),
        ({"level": "path"}, "a level"),
        ({"graph": {"n_layers": 3}}, "missing"),
        ({"graph": None}, "needs its graph"),
    ],
)
def test_broken_files_are_refused(change, told, tmp_path):
    path = tmp_path / "c.json"
    Circuit("e", frozenset({edge("M0->L2H3.q")}), SMALL).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BrokenData, match=told):
        Circuit.load(path)
    path.write_text("{")
    with pytest.raises(BrokenData, match="can be read"):
        Circuit.load(path)


def table(**scores: float) -> pd.DataFrame:
    return pd.DataFrame({"node": list(scores), "score": list(scores.values())})


def test_scores_are_ranked_by_size_or_loss():
    scores = table(L0H0=0.5, L0H1=-2.0, L0H2=3.0, L0H3=-0.5, M0=0.0)
    assert ranked(scores) == ["L0H2", "L0H1", "L0H0", "L0H3", "M0"]
    assert ranked(scores, "loss") == ["L0H1", "L0H3", "M0", "L0H0", "L0H2"]
    assert select(scores, 2, SMALL, by="loss", name="x") == Circuit("x", {Head(0, 1), Head(0, 3)}, SMALL)
    assert select(scores, 0, SMALL).items == frozenset()
    with pytest.raises(UsageError, match="6 items were asked for, but 5"):
        select(scores, 6, SMALL)
    with pytest.raises(UsageError, match="by='value'"):
        ranked(scores, "value")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="NaN"):
        ranked(table(L0H0=float("nan")))
    with pytest.raises(UsageError, match="connected=False"):
        select(scores, 2, SMALL, connected=True)


def naive_auroc(values: dict[str, float], positive: set[str], g: Graph) -> float:
    worst = min(values.values(), default=0.0) - 1
    score = {e: values.get(e, worst) for e in naive_edges(g)}
    pairs = list(product(positive, set(score) - positive))
    return sum((score[a] > score[b]) + 0.5 * (score[a] == score[b]) for a, b in pairs) / len(pairs)


def test_auroc_counts_absent_edges_last():
    rng = np.random.default_rng(0)
    every = naive_edges(SMALL)
    positive = set(rng.choice(every, 12, replace=False))
    reference = Circuit("r", frozenset(map(edge, positive)), SMALL)
    frame = SMALL.frame(score=np.round(rng.normal(size=SMALL.full.shape), 1))
    values = dict(zip(frame.edge, frame.score, strict=True))
    assert auroc(frame, reference) == pytest.approx(
        naive_auroc({e: abs(v) for e, v in values.items()}, positive, SMALL)
    )
    assert auroc(frame, reference, by="loss") == pytest.approx(
        naive_auroc({e: -v for e, v in values.items()}, positive, SMALL)
    )
    # A hypothesis of 20 edges, 6 of them right: the other 6 are tied with all edges that it lacks.
    short = [*sorted(positive)[:6], *[e for e in every if e not in positive][:14]]
    wanted = naive_auroc({e: -i for i, e in enumerate(short)}, positive, SMALL)
    assert auroc(short, reference) == pytest.approx(wanted)
    assert 0.6 < wanted < 0.8
    assert auroc(sorted(positive), reference) == 1.0
    assert auroc([], reference) == 0.5
    with pytest.raises(UsageError, match="twice"):
        auroc([short[0], short[0]], reference)
    with pytest.raises(UsageError, match="some edges"):
        auroc(short, Circuit("n", frozenset({MLP(0)}), SMALL))


def test_names_print_as_they_are_read():
    assert [repr(x) for x in (Embed(), Logits(), KV(1, 0), Reader(MLP(2), "mlp"))] == [
        "embed",
        "logits",
        "L1KV0",
        "M2",
    ]
    assert repr(Edge(Embed(), Reader(KV(1, 0), "k"))) == "embed->L1KV0.k"
    assert node("logits") == Logits() and node("M3") == MLP(3)
