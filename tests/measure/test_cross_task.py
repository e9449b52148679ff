"""The cross-task matrix on a model in which it is known which heads two tasks share, against plain runs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import transformers as hf
from scipy import stats

from interp.errors import UsageError
from interp.intervene.ablate import ablate
from interp.intervene.reference import Reference
from interp.measure.controls import matched
from interp.measure.cross_task import cross_task, cut_on, gathered
from interp.measure.stats import sign_flip
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.tasks.base import Example, FixedTask

SHARED, A, B, C = Head(0, 2), Head(1, 0), Head(1, 3), Head(1, 4)
CIRCUITS = {"a": [SHARED, A], "b": [SHARED, B], "c": [Head(0, 1), C], "only a": [A], "only b": [B]}
WORDS, D_HEAD, N_HEADS = 8, 16, 6


@cache
def model() -> CausalLM:
    """Two layers. One word of the context names the answer: of the sets a and b through a shared head, of c without.

    The shared head of the first layer writes which words of a or b there are; one head each of the second turns that
    into the answer. Words of c are read off the embedding by a head of their own. All look everywhere alike; the other
    heads are small noise.
    """
    d = N_HEADS * D_HEAD
    vocab = 8 + 6 * WORDS  # filler, three sets of words, three sets of answers
    config = hf.GPT2Config(
        vocab_size=vocab,
        n_layer=2,
        n_head=N_HEADS,
        n_embd=d,
        n_positions=32,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        module = hf.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    read = 8 + 3 * WORDS
    written, answers = read, read + 2 * WORDS
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "ln" not in name:
                weight.zero_()
        module.transformer.wte.weight[:read, :read] = torch.eye(read)
        module.lm_head.weight[read:, answers : answers + 3 * WORDS] = 40 * torch.eye(3 * WORDS)
        for layer in range(2):
            attention = module.transformer.h[layer].attn
            for head in range(N_HEADS):
                at = slice(head * D_HEAD, (head + 1) * D_HEAD)
                value = attention.c_attn.weight[:, 2 * d + at.start : 2 * d + at.stop]
                out = attention.c_proj.weight[at]
                part = Head(layer, head)
                eye = torch.eye(D_HEAD)
                if part == SHARED:
                    value[8 : 8 + 2 * WORDS] = eye
                    out[:, written : written + 2 * WORDS] = 4 * eye
                elif part in (A, B):
                    own = slice(0, WORDS) if part == A else slice(WORDS, 2 * WORDS)
                    value[written + own.start : written + own.stop, :WORDS] = eye[:WORDS, :WORDS]
                    out[:WORDS, answers + own.start : answers + own.stop] = eye[:WORDS, :WORDS]
                elif part == C:
                    value[8 + 2 * WORDS : read, :WORDS] = eye[:WORDS, :WORDS]
                    out[:WORDS, answers + 2 * WORDS : answers + 3 * WORDS] = eye[:WORDS, :WORDS]
                else:
                    value += 0.02 * torch.randn(value.shape, generator=generator)
                    out += 0.02 * torch.randn(out.shape, generator=generator)
    return CausalLM(module, None, name="shared heads")


@cache
def task(name: str, n: int = 24) -> FixedTask:
    """A word of a set among filler; the answer is its partner. Task d names no word, so it can only be guessed."""
    which = "abcd".index(name)
    rng = np.random.default_rng(which)
    out = []
    for i in range(n):
        word = int(rng.integers(WORDS))
        ids = rng.integers(0, 8, 6 + i % 3)
        if name != "d":
            ids[rng.integers(len(ids))] = 8 + which * WORDS + word
        first = 8 + 3 * WORDS + (which % 3) * WORDS
        every = [(int(first + j),) for j in np.roll(np.arange(WORDS), -word)]
        out.append(
            Example(
                name,
                tuple(map(int, ids)),
                every[0],
                foil_ids=every[1],
                candidates=tuple(every),
                chance=1 / WORDS,
                cluster=str(i // 2),
            )
        )
    return FixedTask(out, name=name)


TASKS = ("a", "b", "c", "d")


@cache
def found():
    tasks = {name: task(name) for name in TASKS}
    return cross_task(
        model(), CIRCUITS, tasks, controls=2, match=("layer", "size"), metrics=("choice", "logit_diff")
    )


def cell(task: str, circuit: str, metric: str = "choice", control: str = "layer"):
    m = found().matrix
    at = (m["task"] == task) & (m["circuit"] == circuit) & (m["metric"] == metric) & (m["control"] == control)
    (row,) = m[at].to_dict("records")
    return row


def test_the_matrix_shows_which_heads_are_shared():
    """Own circuits end their task; the other circuit with the shared head does too, the part it does not share not."""
    for name, hurt in (("a", ("a", "b", "only a")), ("b", ("a", "b", "only b")), ("c", ("c",))):
        for circuit in CIRCUITS:
            row = cell(name, circuit)
            assert (
                row["clean"] == 1 and row["floor"] == pytest.approx(1 / 8) and row["own"] == (circuit == name)
            )
            if circuit in hurt:
                assert row["value"] < 0.35 and row["ci_hi"] < -0.4 and row["lost"] > 0.75, (name, circuit)
                assert row["excess_hi"] < 0 and row["q"] < 0.01
                # Random heads beside those of another task may be this task's own.
                assert circuit != name or (row["rank"] == 1 and row["excess_hi"] < -0.4)
            else:
                assert row["delta"] == 0 and row["lost"] == 0 and row["p_cluster"] == 1, (name, circuit)
            assert row["k"] == len(CIRCUITS[circuit]) and row["n_controls"] == 2


def test_own_against_other_tells_reuse_from_overlap():
    m = found().contrasts
    m = m[(m["metric"] == "choice") & (m["control"] == "layer")].set_index(["task", "other"])
    # Through the shared head the circuit of b does to a what a's own does; that of c does nothing.
    assert m.loc[("a", "b"), "difference"] == pytest.approx(0, abs=0.15) and m.loc[("a", "b"), "q"] > 0.2
    for task_, other in (("a", "c"), ("a", "only b"), ("b", "c"), ("b", "only a"), ("c", "a")):
        row = m.loc[(task_, other)]
        assert row["difference"] < -0.6 and row["ci_hi"] < -0.4 and row["q"] < 0.01 and row["q_excess"] < 0.01
    assert set(m.index.get_level_values("task")) == {"a", "b", "c"}, "d has no circuit of its own"


def test_numbers_are_those_of_plain_runs():
    """Every cell again: means by hand, single runs, differences example by example."""
    s, data = model(), task("a").examples(None)
    clusters = np.array([e.cluster for e in data])

    def scores(cut):
        out = []
        for e in data:
            with s.apply(*([cut] if cut else [])):
                row = s.run([e], keep=1).logits[0, -1]
            out.append(float(row[e.answer_ids[0]] - row[e.foil_ids[0]]))
        return np.array(out)

    def cut_of(heads):
        return ablate(heads, "mean", "all", Reference(data))

    clean, own = scores(None), scores(cut_of(CIRCUITS["a"]))
    drawn = [scores(cut_of(heads)) for heads in matched(s, CIRCUITS["a"], 2, "size", seed=0)]
    row = cell("a", "a", "logit_diff", "size")
    assert row["delta"] == pytest.approx((own - clean).mean(), abs=1e-4) and row["floor"] == 0
    assert row["lost"] == pytest.approx(1 - own.mean() / clean.mean(), abs=1e-4)
    excess = own - np.mean(drawn, 0)
    assert row["excess"] == pytest.approx(excess.mean(), abs=1e-4)
    assert row["p_excess"] == pytest.approx(sign_flip(excess, clusters, seed=0))
    assert row["control_mean"] == pytest.approx(np.mean(drawn) - clean.mean(), abs=1e-4)
    assert row["z"] == pytest.approx(
        ((own - clean).mean() - row["control_mean"]) / np.std([(d - clean).mean() for d in drawn], ddof=1),
        rel=1e-2,
    )
    other, layer = scores(cut_of(CIRCUITS["c"])), cell("a", "c", "logit_diff")
    m = found().contrasts
    at = (m["task"] == "a") & (m["other"] == "c") & (m["metric"] == "logit_diff") & (m["control"] == "layer")
    (told,) = m[at].to_dict("records")
    assert told["difference"] == pytest.approx((own - other).mean(), abs=1e-4)
    both = cell("a", "a", "logit_diff")["excess"] - layer["excess"]
    assert told["excess_difference"] == pytest.approx(both, abs=1e-4)


def test_a_task_at_chance_tells_no_effect():
    row = cell("d", "a")
    assert row["status"] == "at chance"
    assert all(np.isnan(row[c]) for c in ("delta", "lost", "p_cluster", "excess", "q", "z"))
    effects = found().effects
    assert effects[(effects["task"] == "d") & (effects["condition"] != "clean")]["delta"].isna().all()


def test_rates_are_over_all_tasks_and_rows_can_be_made_one_by_one():
    m = found().matrix
    part = m[(m["metric"] == "choice") & (m["control"] == "size")].dropna(subset=["p_excess"])
    assert part["q"].tolist() == pytest.approx(stats.false_discovery_control(part["p_excess"]))
    options = {"controls": 2, "match": ("layer", "size"), "metrics": ("choice", "logit_diff")}
    rows = [cut_on(model(), CIRCUITS, name, task(name), **options) for name in TASKS]
    again = gathered(rows)
    for name in ("effects", "matrix", "contrasts"):
        left, right = getattr(again, name), getattr(found(), name)
        assert left.astype(str).equals(right.astype(str)), name


def test_effects_hold_every_draw_and_name_the_cut():
    e = found().effects
    assert e[e["condition"] == "clean"]["circuit"].unique().tolist() == [""]
    own = e[(e["task"] == "a") & (e["circuit"] == "a") & (e["metric"] == "choice")]
    assert own["condition"].tolist() == ["cut"] + ["control"] * 4
    assert own["control"].tolist() == [""] + ["layer"] * 2 + ["size"] * 2
    assert set(own["mode"]) == {"mean"} and set(own["scope"]) == {"all"}
    assert own["reference"].str.contains("a\\(").all() and own["components"].iloc[0] == "L0H2 L1H0"
    # The same random heads on every task.
    draws = e[e["circuit"] == "a"].drop_duplicates(["task", "control", "draw"]).groupby("task")["components"]
    assert draws.agg(tuple).nunique() == 1


def test_references_by_task_and_no_controls():
    data = {"a": Reference(task("b"))}
    metrics = ("choice", "accuracy")
    bare = cross_task(model(), {"a": [A]}, {"a": task("a")}, reference=data, controls=0, metrics=metrics)
    row, plain = bare.matrix.to_dict("records")
    assert row["reference"] == Reference(task("b")).name and row["control"] == "" and np.isnan(row["excess"])
    assert row["q"] == row["p_cluster"] and bare.contrasts.empty
    # Among all tokens a guess is never right, among eight candidates one in eight times.
    assert (row["floor"], plain["floor"]) == (1 / 8, 0) and plain["lost"] == pytest.approx(
        -plain["delta"] / plain["clean"]
    )


@pytest.mark.parametrize(
    ("circuits", "tasks", "options", "told"),
    [
        ({}, ("a",), {}, "no circuit"),
        ({"a": []}, ("a",), {}, "'a' has no heads"),
        ({"a": "L9H0"}, ("a",), {}, "layer"),
        ({"a": "L0H0"}, (), {}, "no task"),
        ({"a": "L0H0"}, ("a",), {"metrics": ("speed",)}, "unknown metric"),
    ],
)
def test_bad_input_says_what_is_wrong(circuits, tasks, options, told):
    with pytest.raises(UsageError, match=told):
        cross_task(model(), circuits, {t: task(t) for t in tasks}, **options)
