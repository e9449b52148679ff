"""All kinds of causal maps against the loop of single passes; many prompts, resumed; averages and their intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.trace import (
    How,
    Noise,
    aggregate,
    noise_level,
    noisy,
    places_of,
    trace_map,
    trace_maps,
)
from interp.intervene.tracing.cells import asked
from interp.models.engines.base import Record
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span
from interp.trace.each import Spent
from tests.subjects import subject

FIVE = ("gpt2", "neox", "llama", "gemma2", "olmo2")
KINDS = ("resid_post", "attn_out", "mlp_out")
SEVER = ("mlp_out", "attn_out")


def prompt(n: int = 7, first: int = 1, last: int = 4, seed: int = 0) -> Example:
    draw = torch.randint(0, 250, (n + 3,), generator=torch.Generator().manual_seed(100 * n + seed)).tolist()
    ids, answer, foil = tuple(draw[:n]), (draw[n],), (draw[n + 1],)
    spans = (Span(first, last, "subject"),)
    swapped = (*ids[:first], *((i + 3) % 250 for i in ids[first:last]), *ids[last:])
    again = (*ids[: last - 1], (ids[last - 1] + 7) % 250, *ids[last:])
    twins = {
        name: Example("t", other, foil, spans=spans, chance=0.5)
        for name, other in {"swap": swapped, "near": again}.items()
    }
    return Example(
        "t", ids, answer, spans=spans, foil_ids=foil, corrupt=twins, chance=0.5, cluster=f"c{seed // 2}"
    )


def loop(model: CausalLM, example: Example, how: How, targets: list[int]) -> dict[tuple, np.ndarray]:
    """Metrics x targets x draws of every cell: one pass of the whole model a cell and draw, by taps of its own."""
    sites = [Site(kind, i) for kind in KINDS for i in range(model.n_layers)]
    clean = model.run([example], {s: Record() for s in sites})
    (span,) = example.spans
    runs = []
    for draw in range(how.samples if how.noise else len(how.corruption)):
        if how.noise:
            assert how.sigma is not None
            added = Noise(how.sigma, seed=how.seed).values(noisy(example, draw + 1)[draw], model.d_model)

            def corrupt(x: torch.Tensor, added: torch.Tensor = added) -> torch.Tensor:
                return torch.cat(
                    [x[:, : span.start], x[:, span.start : span.end] + added, x[:, span.end :]], 1
                )

            runs.append((example, {Site("embed"): corrupt}))
        else:
            runs.append((replace(example, ids=example.corrupt[how.corruption[draw]].ids), {}))

    def metrics(run: Example, taps: dict) -> np.ndarray:
        logits = model.run([run], taps).logits[0, -1].double()
        logprob = logits - logits.exp().sum().log()
        foil = logits[example.foil_ids[0]]
        return np.array([[logprob[t].exp(), logprob[t], logits[t] - foil] for t in targets]).T

    out: dict[tuple, list[np.ndarray]] = {}
    for run, base in runs:
        broken = model.run([run], {**base, **{s: Record() for s in sites}})
        out.setdefault(("low",), []).append(metrics(run, base))
        for kind, severed in [*((k, "") for k in KINDS), *(("resid_post", k) for k in SEVER)]:
            for layer in range(model.n_layers):
                for position in range(len(example.ids)):
                    width = how.window if kind != "resid_post" else 1
                    # As the reference code has it.
                    window = range(max(0, layer - width // 2), min(model.n_layers, layer - (-width // 2)))
                    sources = {Site(kind, i): clean for i in window}
                    if severed:
                        sources |= {Site(severed, i): broken for i in range(layer + 1, model.n_layers)}

                    def write(site: Site, source, at: int = position):
                        def edit(x: torch.Tensor) -> torch.Tensor:
                            x = x.clone()
                            x[:, at] = source[site][:, at]
                            return x

                        return edit

                    taps = base | {s: write(s, source) for s, source in sources.items()}
                    out.setdefault((kind, severed, layer, position), []).append(metrics(run, taps))
    return {cell: np.stack(found, -1) for cell, found in out.items()}


# Windows that are cut off at one end, at both, and that are wider than the model.
WIDTHS = dict(zip(FIVE, (2, 3, 2, 4, 10), strict=True))


@pytest.mark.parametrize(
    ("family", "corruption"),
    [*((family, ("noise",)) for family in FIVE), *((family, ("swap", "near")) for family in FIVE[::3])],
)
def test_every_kind_equals_the_loop(family: str, corruption: tuple[str, ...]) -> None:
    model, example = subject(family), prompt(5, 1, 3)
    how = How(
        kinds=KINDS,
        window=WIDTHS[family],
        corruption=corruption,
        samples=2,
        sigma=2.0,
        sever=SEVER,
        metrics=("probability", "logprob", "logit_diff"),
        targets=("answer", "top0", 5),
    )
    top = int(model.run([example]).logits[0, -1].argmax())
    wanted = loop(model, example, how, [example.answer_ids[0], top, 5])
    maps = trace_maps(model, [example], how)
    assert len(maps) == (len(wanted) - 1) * 3 * 3 * 2
    shapes = maps.groupby(["kind", "severed", "layer", "position"], sort=False)
    gaps, moved = [], []
    for cell, part in shapes:
        value, low = (part[name].to_numpy().reshape(3, 3, 2) for name in ("value", "low"))
        gaps.append(np.abs(value - wanted[cell]).max((1, 2)))
        np.testing.assert_allclose(low, wanted["low",], atol=2e-4)
        moved.append(np.abs(value - low).max())
    probability, logprob, difference = np.max(gaps, 0)
    assert probability <= 1e-5
    assert max(logprob, difference) <= 2e-4  # of logits of size 10 and more
    assert np.mean(np.array(moved) > 1e-3) > 0.5  # the maps are not flat, so agreement means something


def test_what_is_severed_must_show_what_severing_means() -> None:
    model, example = subject("gpt2"), prompt()
    frame = trace_map(model, example, sever=SEVER, samples=2, sigma=2.0, targets="top0")
    plain, *others = (frame[frame.severed == k].reset_index(drop=True) for k in ("", *SEVER))
    top, noised = plain.layer == model.n_layers - 1, plain.position >= 1
    for other in others:
        np.testing.assert_array_equal(plain.effect[top], other.effect[top])  # nothing is left to sever
        assert (other.effect - plain.effect)[~top & noised].abs().max() > 1e-3
        assert (other.effect[~noised] == 0).all()
    assert set(frame.window) == {1} and set(frame.corruption) == {"noise"}


def test_metrics_and_targets_of_one_map_are_those_of_maps_of_their_own() -> None:
    model, example = subject("llama"), prompt()
    options = {"samples": 3, "sigma": 1.0, "window": 2}
    both = trace_map(
        model, example, KINDS, metric=("logprob", "logit_diff"), targets=("answer", "foil"), **options
    )
    for kind in KINDS[1:]:
        for metric in ("logprob", "logit_diff"):
            alone = trace_map(model, example, kind, metric=metric, targets="foil", **options)
            mine = both[(both.kind == kind) & (both.metric == metric) & (both.target == "foil")]
            for name in ("value", "low", "high", "effect", "se", "recovery"):
                np.testing.assert_allclose(mine[name], alone[name], rtol=1e-3, atol=1e-5)
    assert (both[(both.metric == "logit_diff") & (both.target == "foil")].value == 0).all()
    assert set(both[both.target == "foil"].token_id) == {example.foil_ids[0]}


def deep(layers: int = 12) -> CausalLM:
    config = hf.GPT2Config(
        vocab_size=60,
        n_positions=16,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CausalLM(hf.GPT2LMHeadModel(config), None, name="deep")


def test_a_map_costs_what_is_left_of_the_loop_without_repetition() -> None:
    model, samples, n, layers, window = deep(), 10, 9, 12, 10
    ids = tuple(range(3, 3 + n))
    example = Example("t", ids, (50,), spans=(Span(0, 3, "subject"),), chance=0.1)
    spent = Spent()
    trace_map(model, example, KINDS, window=window, samples=samples, spent=spent, budget=2**14)
    suffixes = n * (n + 1) // 2
    hidden = samples * suffixes * layers * (layers - 1) // 2
    windowed = samples * suffixes * sum(layers - max(0, c - window // 2) for c in range(layers))
    intact = (1 + samples) * n * layers
    loops = 3 * (samples + 1) * n**2 * layers**2
    assert (hidden + 2 * windowed, loops) == (140_400, 384_912)
    # Less than that: a cell's first layer runs one token, and of the last layer one token is read.
    assert spent.token_layers == intact + 119_160
    assert loops / spent.token_layers > 3.15


def test_the_answer_is_asked_for_where_candidates_part() -> None:
    model, base = subject("llama"), prompt()
    options = ((9, 20, 30), (9, 21, 31))
    example = replace(base, answer_ids=options[0], foil_ids=options[1], candidates=options, corrupt={})
    short = asked(example)
    assert (short.ids, short.answer_ids, short.foil_ids) == ((*base.ids, 9), (20,), (21,))
    frame = trace_map(model, example, samples=2, sigma=1.0, metric="logit_diff")
    logits = model.run([replace(base, ids=short.ids, answer_ids=(20,))]).logits[0, -1]
    assert frame.high[0] == pytest.approx(float(logits[20] - logits[21]), abs=1e-4)
    assert frame.position.max() == len(base.ids) and list(frame.place)[-1] == "last"
    apart = replace(example, foil_ids=(8, 21), candidates=())
    assert asked(apart).foil_ids == (8,) and asked(replace(apart, candidates=options)).foil_ids == ()


def test_places_of_tokens() -> None:
    def told(n: int, first: int, last: int) -> list[str]:
        return places_of(prompt(n, first, last))

    assert told(9, 2, 5) == [
        *["before"] * 2, "first subject", "middle subject", "last subject", "first after", *["further"] * 2, "last",
    ]  # fmt: skip
    assert told(4, 0, 1) == ["last subject", "first after", "further", "last"]
    assert told(4, 1, 4) == ["before", "first subject", "middle subject", "last"]
    frame = trace_maps(
        subject("llama"), [prompt()], How(samples=1, sigma=1.0, places=("last subject", "last"), layers=(1,))
    )
    assert list(frame.position) == [3, 6] and list(frame.place) == ["last subject", "last"]


MANY = [prompt(7, 1, 4, 0), prompt(8, 2, 4, 1), prompt(6, 0, 1, 2), prompt(9, 3, 7, 3), prompt(7, 1, 3, 4)]


class _Killed(Exception):
    pass


def test_maps_go_on_where_they_stopped(tmp_path) -> None:
    model, how = subject("llama"), How(kinds=("mlp_out",), window=2, samples=2, sigma=1.0)
    whole = trace_maps(model, MANY, how)

    def kill(done: int, total: int, what: str) -> None:
        if done > 250:
            raise _Killed

    first, rest = Spent(), Spent()
    with pytest.raises(_Killed):
        trace_maps(model, MANY, how, folder=tmp_path / "maps", progress=kill, spent=first)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "maps" / "prompts").iterdir()}
    assert len(kept) == 2
    told: list[int] = []
    again = trace_maps(
        model, MANY, how, folder=tmp_path / "maps", progress=lambda d, t, w: told.append(d), spent=rest
    )
    pd.testing.assert_frame_equal(again, whole)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept and told == sorted(told) and told[-1] == 500
    everything, nothing = Spent(), Spent()
    trace_maps(model, MANY, how, spent=everything)
    assert 0 < rest.token_layers < everything.token_layers
    trace_maps(model, MANY, how, folder=tmp_path / "maps", spent=nothing)
    assert nothing.token_layers == 0
    with pytest.raises(UsageError, match="another spec"):
        trace_maps(model, MANY, replace(how, samples=3), folder=tmp_path / "maps")
    with pytest.raises(UsageError, match="other weights"):
        trace_maps(CausalLM(_other().hf, None, name=model.name), MANY, how, folder=tmp_path / "maps")
    with pytest.raises(NoAcceptedExample):
        trace_maps(model, [], how)
    assert set(whole.cluster) == {"c0", "c1", "c2"}


def _other() -> CausalLM:
    from tests.tiny import tiny

    return CausalLM(tiny("llama", seed=3), None, name="other")


def test_noise_of_many_prompts_has_one_size() -> None:
    model = subject("llama")
    ids = [i for e in MANY for s in e.spans for i in e.ids[s.start : s.end]]
    embedded = model.hf.get_input_embeddings()(torch.tensor(ids)).detach()
    assert noise_level(model, MANY) == pytest.approx(3 * float(embedded.std()), rel=1e-5)
    maps = trace_maps(model, MANY[:2], How(samples=2, layers=(0,)))
    alone = trace_map(model, MANY[1], samples=2, layers=[0], sigma=noise_level(model, MANY[:2]))
    mine = maps[maps.example == 1].groupby("position").value.mean()
    np.testing.assert_allclose(mine, alone.value, rtol=1e-5)


def maps_of(effects: np.ndarray, totals: np.ndarray, clusters: list[str]) -> pd.DataFrame:
    """The table of one cell: prompts x draws of IE and TE."""
    cell = {"kind": "mlp_out", "severed": "", "window": 3, "corruption": "noise", "metric": "probability"}
    rows = [
        {**cell, "target": "answer", "layer": 1, "place": "last", "example": i, "cluster": clusters[i], "draw": j,
         "value": 0.1 + effects[i, j], "low": 0.1, "high": 0.1 + totals[i, j]}
        for i in range(len(effects)) for j in range(effects.shape[1])
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_averages_are_sums_over_sums_and_prompts_count_alike() -> None:
    maps = trace_maps(
        subject("llama"), MANY, How(kinds=KINDS, window=2, samples=3, sever=("mlp_out",)), by=()
    )
    found = aggregate(maps)
    cell = (maps.kind == "mlp_out") & (maps.layer == 1) & (maps.place == "further")
    per = (
        maps[cell]
        .assign(ie=maps.value - maps.low, te=maps.high - maps.low)
        .groupby("example")[["ie", "te"]]
        .mean()
    )
    row = found[(found.kind == "mlp_out") & (found.layer == 1) & (found.place == "further")].iloc[0]
    assert (
        row.n == len(per)
        and row.aie == pytest.approx(per.ie.mean())
        and row.te == pytest.approx(per.te.mean())
    )
    assert row.share == pytest.approx(per.ie.sum() / per.te.sum())
    assert (found.aie_lo <= found.aie + 1e-12).all() and (found.aie <= found.aie_hi + 1e-12).all()
    short = found[(found.place == "first subject") & (found.layer == 0)]
    assert set(short.n) == {4} and set(short.n_clusters) == {3}  # one prompt's subject is a single token
    assert list(dict.fromkeys(found[found.kind == "mlp_out"].place)) == [
        "before", "first subject", "middle subject", "last subject", "first after", "further", "last",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(found, aggregate(maps))
    with pytest.raises(UsageError, match="no column 'place'"):
        aggregate(maps.drop(columns="place"))


def test_intervals_hold_prompts_and_noise() -> None:
    rng = np.random.default_rng(0)
    clusters = [f"c{i}" for i in range(40)]
    one = np.ones((40, 8))
    prompts = one * rng.normal(0.3, 0.1, (40, 1))  # prompts differ, draws do not
    draws = 0.3 + rng.normal(0, 0.4, (40, 8))  # draws differ around the same mean
    widths = {}
    for name, effects in (("prompts", prompts), ("draws", draws)):
        (row,) = aggregate(maps_of(effects, one, clusters)).itertuples()
        assert row.aie == pytest.approx(effects.mean()) == pytest.approx(row.share)
        widths[name] = row.aie_hi - row.aie_lo
    assert widths["prompts"] == pytest.approx(2 * 1.96 * prompts[:, 0].std() / 40**0.5, rel=0.15)
    # Prompts resampled, and their draws in them: the variance of the draws counts in both stages.
    between, within = draws.mean(1).var() / 40, draws.var(1).mean() / (8 * 40)
    assert widths["draws"] == pytest.approx(2 * 1.96 * (between + within) ** 0.5, rel=0.15)
    alike = aggregate(maps_of(prompts, one, ["c"] * 40)).iloc[0]
    assert np.isnan([alike.aie_lo, alike.aie_hi, alike.share_lo]).all() and alike.n_clusters == 1
    halves = aggregate(maps_of(np.tile(prompts, (2, 1)), np.ones((80, 8)), clusters * 2)).iloc[0]
    assert halves.aie_hi - halves.aie_lo == pytest.approx(widths["prompts"], rel=0.15)  # copies add nothing
    wild = one * 1e-6
    wild[0] = 1.0  # one prompt has all of the total effect: ratios a prompt would be in the hundred thousands
    assert aggregate(maps_of(prompts, wild, clusters)).iloc[0].share == pytest.approx(
        prompts[:, 0].sum() / wild[:, 0].sum()
    )


def test_groups_are_averaged_apart() -> None:
    told = [replace(e, meta={"scenario": "exact" if i % 2 else "guess"}) for i, e in enumerate(MANY)]
    maps = trace_maps(subject("llama"), told, How(samples=2, sigma=1.0), by=["scenario"])
    split = aggregate(maps, ["scenario"])
    exact = aggregate(maps[maps.scenario == "exact"])
    mine = split[split.scenario == "exact"].drop(columns="scenario").reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, exact)
    with pytest.raises(UsageError, match="no such field"):
        trace_maps(subject("llama"), MANY, How(samples=2), by=["scenario"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "z"}, "kind='z'"),
        ({"metric": "rank"}, "metric='rank'"),
        ({"sever": "resid_post"}, "sever='resid_post'"),
        ({"kind": "mlp_out", "sever": "mlp_out"}, "variant of resid_post"),
        ({"corruption": "needle_drop"}, "no corruption 'needle_drop'"),
        ({"targets": "best"}, "no target 'best'"),
        ({"targets": 1000}, "ids run from 0"),
        ({"metric": ()}, "metric is empty"),
    ],
)
def test_what_means_nothing_is_refused(options: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        trace_map(subject("llama"), prompt(), **options)
    with pytest.raises(UsageError, match="no foil"):
        trace_map(subject("llama"), replace(prompt(), foil_ids=()), metric="logit_diff")


def test_a_folder_of_maps_belongs_to_its_twins_and_scored_tokens(tmp_path) -> None:
    model, how = subject("llama"), How(kinds=("mlp_out",), corruption=("swap",), layers=(0,))
    first = replace(MANY[0], corrupt={})
    ids = list(first.ids)
    ids[first.spans_of("subject")[0].start] += 1
    twin = replace(first, ids=tuple(ids))
    ids[first.spans_of("subject")[0].start] += 1
    other = replace(first, ids=tuple(ids))
    mine, again = replace(first, corrupt={"swap": twin}), replace(first, corrupt={"swap": other})
    trace_maps(model, [mine], how, folder=tmp_path / "maps")
    trace_maps(model, [mine], how, folder=tmp_path / "maps")
    for changed in (again, replace(mine, meta={**mine.meta, "score_at": 1})):
        assert changed.key() == mine.key()
        with pytest.raises(UsageError, match="another spec"):
            trace_maps(model, [changed], how, folder=tmp_path / "maps")
