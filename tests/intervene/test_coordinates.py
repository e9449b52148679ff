"""Edits of coordinates: against naive hooks, against each other, and packed against one run each."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.base import lower_conditions
from interp.intervene.coordinates import (
    Coordinates,
    scale_coordinates,
    set_coordinates,
    shift_coordinates,
    swap_coordinates,
    traverse,
)
from interp.intervene.patch import Patch, Source
from interp.intervene.subspace import Subspace, project_out, width
from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import Site
from tests.intervene.test_subspace import KINDS, basis, record
from tests.subjects import ALL, examples, subject

NAN = float("nan")


def space(s, site, r: int = 3, seed: int = 0) -> Subspace:
    site = Site.parse(site)
    return Subspace.spanned(site, basis(width(s, site), r, seed))


def every_space(s):
    for kind in KINDS:
        if kind == "resid_mid" and s.family.parallel:
            continue
        for index in (None, 1) if kind in ("q", "k", "v", "z", "head_out") else (None,):
            yield space(s, Site(kind, 1, index))


def answers(batch):
    """The columns that predict an answer, among those that are kept."""
    return torch.arange(batch.width)[None, -batch.keep :] >= batch.answer_start[:, None]


def naive(batch, sub, scope, new):
    """A raw tap that puts new(c) in place of the coordinates c, token by token."""

    head = sub.site.index if sub.tapped.index is None else None

    def tap(value):
        out = value.clone()
        for row, column in batch.scope_columns(scope, 0, batch.width).nonzero().tolist():
            at = (row, column) if head is None else (row, column, head)
            x = out[at].flatten()
            c = x @ sub.basis.T
            out[at] = (x + (torch.as_tensor(new(c, row, column)) - c) @ sub.basis).view(out[at].shape)
        return out

    return {sub.tapped: tap}


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2", "qwen3", "olmo2"])
def test_edits_equal_naive_hooks_at_every_site(family):
    s = subject(family)
    batch = s.batch(examples())
    clean = s.run(batch).logits
    values, factor, offset = (
        torch.tensor([2.0, -1, 0.5]),
        torch.tensor([3.0, 0, 1]),
        torch.tensor([0, 1.0, -2]),
    )
    for number, sub in enumerate(every_space(s)):
        edits = (
            (set_coordinates(sub, values, ("key", "value")), lambda c, *_: values),
            (scale_coordinates(sub, factor, "answer"), lambda c, *_: c * factor),
            (shift_coordinates(sub, offset.numpy(), (3, 16)), lambda c, *_: c + offset),
            (set_coordinates(sub, [NAN, 4, NAN]), lambda c, *_: torch.stack([c[0], torch.tensor(4.0), c[2]])),
        )
        # All of them on one family, one after the other on the rest.
        for edit, new in edits if family == "llama" else [edits[number % 4]]:
            with s.apply(edit):
                got = s.run(batch).logits
            wanted = s.run(batch, naive(batch, sub, edit.scope, new)).logits
            real = answers(batch)
            torch.testing.assert_close(got[real], wanted[real], atol=1e-4, rtol=0, msg=f"{edit}")
            if not (sub.site.kind == "q" and edit.scope != "answer"):
                assert (got - clean)[real].abs().max() > 1e-3, edit
    assert torch.equal(s.run(batch).logits, clean), "something was left edited"


def test_algebra_of_the_edits():
    s = subject("llama")
    batch = s.batch(examples())
    clean = s.run(batch).logits

    def logits(*edits):
        with s.apply(*edits):
            return s.run(batch).logits

    def close(a, b):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)

    for site in ("resid_post[1]", "z[1].2", "k[1]", "attn_out[0]"):
        sub = space(s, site)
        assert torch.equal(logits(scale_coordinates(sub, 1.0)), clean)
        assert torch.equal(logits(set_coordinates(sub, NAN)), clean)
        close(logits(scale_coordinates(sub, 0.0, "value")), logits(project_out(sub.site, sub.basis, "value")))
        close(logits(set_coordinates(sub, 0.0)), logits(project_out(sub.site, sub.basis)))
        there, back = (
            shift_coordinates(sub, [1.0, 2, 3], "value"),
            shift_coordinates(sub, [-1.0, -2, -3], "value"),
        )
        close(logits(there + back), clean)
        close(logits(scale_coordinates(sub, 4.0) + scale_coordinates(sub, 0.25)), clean)
        both = logits(set_coordinates(sub, [5.0, 5, 5]) + set_coordinates(sub, [1.0, 2, 3]))
        close(both, logits(set_coordinates(sub, [1.0, 2, 3])))
        # Edits of one site in the order in which they are written.
        last = logits(scale_coordinates(sub, 2.0) + shift_coordinates(sub, 1.0))
        first = logits(shift_coordinates(sub, 1.0) + scale_coordinates(sub, 2.0))
        close(last, logits(Coordinates(sub, (2.0,) * 3, (1.0,) * 3)))
        close(first, logits(Coordinates(sub, (2.0,) * 3, (2.0,) * 3)))
        assert (last - first).abs().max() > 1e-3


def test_setting_its_own_coordinates_is_the_identity():
    s, one = subject("llama"), examples()[:1]
    sub = space(s, "resid_mid[1]")
    own = sub.coordinates(record(s, s.batch(one), "resid_mid[1]"))[0, 10]
    clean = s.run(one).logits
    with s.apply(set_coordinates(sub, own.numpy(), (10,))):
        torch.testing.assert_close(s.run(one).logits, clean, atol=1e-5, rtol=0)
    with s.apply(set_coordinates(sub, own.numpy(), (9,))):
        assert (s.run(one).logits - clean).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "neox", "gemma2"])
@pytest.mark.parametrize("site", ["attn_out[1]", "resid_post[1]", "k[1].1", "z[1]", "head_out[1].2"])
def test_a_swap_gives_the_coordinates_of_the_other_prompt(family, site):
    s, data = subject(family), examples()
    batch, sub = s.batch(data), space(s, site)
    head = sub.site.index if sub.tapped.index is None else None
    twins = [replace(e.corrupt["value_swap"], answer_ids=e.answer_ids) for e in data]
    other = examples((30,), seed=5)[0]

    def coordinates(prompt):
        value = record(s, s.batch([prompt]), sub.tapped)[0]
        return sub.coordinates((value if head is None else value[:, head]).flatten(1))

    of_twin, of_other = [coordinates(t) for t in twins], coordinates(other)
    pad, start = batch.pad.tolist(), batch.answer_start.tolist()
    for edit, new in (
        (
            swap_coordinates(sub, "value_swap", "all"),
            lambda c, row, col: of_twin[row][max(0, col - pad[row])],
        ),
        (swap_coordinates(sub, other, "value"), lambda c, row, col: of_other[col - pad[row]]),
        (swap_coordinates(sub, other, ("key", "value"), (20,)), lambda c, row, col: of_other[20]),
        (swap_coordinates(sub, other), lambda c, row, col: of_other[29 + col - start[row]]),
    ):
        with s.apply(edit):
            got = s.run(batch).logits
        wanted = s.run(batch, naive(batch, sub, edit.scope, new)).logits
        real = answers(batch)
        torch.testing.assert_close(got[real], wanted[real], atol=1e-4, rtol=0, msg=f"{edit}")


def test_swaps_undo_each_other_and_all_directions_are_a_patch():
    s, (example, *_) = subject("llama"), examples()
    clean = s.run([example]).logits
    sub = space(s, "resid_post[1]")
    there, back = swap_coordinates(sub, "value_swap", "all"), swap_coordinates(sub, example, "all")
    with s.apply(there):
        assert (s.run([example]).logits - clean).abs().max() > 1e-3
        # What a swap reads is the intact model's, also while something else is applied.
        with s.apply(back):
            torch.testing.assert_close(s.run([example]).logits, clean, atol=1e-5, rtol=0)
    with s.apply(there + back):
        torch.testing.assert_close(s.run([example]).logits, clean, atol=1e-5, rtol=0)
    whole = Subspace.spanned("z[1].2", torch.eye(s.d_head))
    twin = replace(example.corrupt["value_swap"], answer_ids=example.answer_ids)
    source = Source.of(s, twin, "z", [1])
    with s.apply(Patch(source, (1,), (3, 4, 5), 2)):
        wanted = s.run([example]).logits
    with s.apply(swap_coordinates(whole, "value_swap", "value")):
        torch.testing.assert_close(s.run([example]).logits, wanted, atol=1e-5, rtol=0)


def conditions(s):
    other = examples((30,), seed=5)[0]
    sub, head = space(s, "resid_post[1]"), space(s, "z[2].1", 2)
    return [
        None,
        set_coordinates(sub, [3.0, 1, -2], "answer"),
        scale_coordinates(sub, -2.0, "value"),
        shift_coordinates(head, 2.0, "answer") + ablate("L1H2", scope="answer"),
        set_coordinates(sub, 3.0, "answer") + scale_coordinates(sub, 0.5, "answer"),
        swap_coordinates(sub, "value_swap", "value"),
        swap_coordinates(space(s, "k[1].0", 2), other, "answer") + set_coordinates(head, [NAN, 1]),
        scale_coordinates(sub, 3.0, "answer"),
    ]


@pytest.mark.parametrize("family", ALL)
def test_packed_conditions_and_conditions_of_rows_equal_one_run_each(family):
    s, data = subject(family), examples((24, 17, 40, 24, 17, 40, 20, 21))
    every = conditions(s)
    batch = s.batch(data)
    single = []
    for condition in every:
        with s.apply(*([condition] if condition else [])):
            single.append(s.run(batch).logits)
    real = answers(batch)
    found = dict(s.each(every, batch))
    order = [3, 0, 5, 2, 4, 1, 7, 6]
    mixed = s.run(batch, lower_conditions(s, batch, every, torch.tensor(order))).logits
    for number, one in enumerate(single):
        torch.testing.assert_close(found[number][real], one[real], atol=1e-4, rtol=0)
        row = order.index(number)
        torch.testing.assert_close(mixed[row][real[row]], one[row][real[row]], atol=1e-4, rtol=0)
        assert number == 0 or (one - single[0])[real].abs().max() > 1e-3


def test_tokens_that_are_generated_have_no_partner_in_a_swap():
    s, data = subject("llama"), examples()
    sub = space(s, "resid_post[2]", 8)
    other = examples((30,), seed=5)[0]
    batch = Batch.of(data, forced=False)
    own = sub.coordinates(record(s, s.batch([other], forced=False), "resid_post[2]"))[0, -1]
    rest = {"resid_post[2]": naive(batch, sub, "answer", lambda c, *_: own)[sub.site]}
    first = s.run(batch, rest, keep=1).logits[:, -1].argmax(-1)
    with s.apply(swap_coordinates(sub, other)):
        said = s.generate(data, 2)
    for row, (e, tokens) in enumerate(zip(data, said, strict=True)):
        assert tokens[0] == int(first[row])
        # The last block: the swap changes no key or value, so the second token is the intact model's.
        follow = Batch.of_ids([[*e.ids, tokens[0]]])
        assert tokens[1] == int(s.run(follow, keep=1).logits[0, -1].argmax())


def test_a_grid_is_walked_point_by_point():
    s, data = subject("gpt2"), examples()
    sub = space(s, "resid_post[1]", 2)
    grid = ([-3.0, 0, 3], [1.0, 2])
    told = []
    frame = traverse(s, data, sub, grid, progress=lambda done, total, what: told.append((done, total)))
    assert len(frame) == 3 * (6 + 1) * 2 and told[-1][0] == told[-1][1]
    assert (frame.groupby(["example", "point"])["best"].sum() == 1).all()
    points = [(NAN, NAN), *product(*grid)]
    edits = {"set": set_coordinates, "shift": shift_coordinates, "scale": scale_coordinates}
    for how, make in edits.items():
        frame = traverse(s, data, sub, grid, how=how)
        for number, point in enumerate(points):
            with s.apply(*([make(sub, point, "answer")] if number else [])):
                for i, e in enumerate(data):
                    # The candidates differ in their first token.
                    row = s.run([e]).logits[0, 0]
                    rows = frame[(frame["example"] == i) & (frame["point"] == number - 1)]
                    wanted = [float(row[c[0]]) for c in e.candidates]
                    np.testing.assert_allclose(rows["logit"], wanted, atol=1e-4)
                    np.testing.assert_allclose(rows[["c0", "c1"]], [point] * 2)
                    assert rows["best"].tolist() == (np.arange(2) == np.argmax(wanted)).tolist()
                    assert rows["answer"].tolist() == [True, False]


def test_descriptions_are_by_content():
    s = subject("llama")
    sub, other = space(s, "resid_post[1]"), examples((30,), seed=5)[0]
    every = [
        set_coordinates(sub, 1.0),
        set_coordinates(sub, [1.0, 1, 2]),
        set_coordinates(sub, [1.0, 1, NAN]),
        set_coordinates(sub, 1.0, "answer"),
        shift_coordinates(sub, 1.0),
        scale_coordinates(sub, 2.0),
        set_coordinates(space(s, "resid_post[1]", seed=1), 1.0),
        swap_coordinates(sub, other),
        swap_coordinates(sub, "value_swap"),
        swap_coordinates(sub, "value_swap", "value"),
        swap_coordinates(sub, "value_swap", at=(4,)),
    ]
    assert len({e.key() for e in every}) == len(every) == len(set(every))
    assert set_coordinates(sub, 1.0) == set_coordinates(sub, [1.0, 1, 1])
    assert swap_coordinates(sub, other) == swap_coordinates(sub, other)
    assert "2 * c" in repr(scale_coordinates(sub, 2.0)) and "c + 1" in repr(shift_coordinates(sub, 1.0))
    assert "value_swap" in repr(every[8])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda s: set_coordinates(space(s, "z[1]"), [1.0, 2]), "2 numbers as factor, and it has 3"),
        (lambda s: scale_coordinates(space(s, "z[1]"), float("inf")), "not finite"),
        (lambda s: run(s, set_coordinates(Subspace.spanned("z[1].0", torch.eye(5)), 1.0)), "have 12 numbers"),
        (lambda s: run(s, swap_coordinates(space(s, "z[1]"), "no_such")), "no corruption 'no_such'"),
        (lambda s: run(s, swap_coordinates(space(s, "z[1]"), examples()[1], "all")), "17|19"),
        (lambda s: run(s, swap_coordinates(space(s, "z[1]"), examples()[1], "subject")), "key value"),
        (lambda s: run(s, swap_coordinates(space(s, "z[1]"), "value_swap"), ids=True), "not bare ids"),
        (lambda s: traverse(s, examples(), space(s, "z[1]"), [[1.0]]), "3 directions and the grid 1"),
        (lambda s: traverse(s, examples(), space(s, "z[1]", 1), [[]]), "with numbers|and numbers"),
        (lambda s: traverse(s, examples(), space(s, "z[1]", 1), [[1.0]], how="add"), "set, shift, scale"),
        (lambda s: traverse(s, bare(), space(s, "z[1]", 1), [[1.0]]), "0 candidates"),
    ],
)
def test_bad_edits_say_what_to_write(make, told):
    with pytest.raises(UsageError, match=told):
        make(subject("llama"))


def test_no_example_is_no_grid():
    with pytest.raises(NoAcceptedExample, match="traverse"):
        traverse(subject("llama"), [], space(subject("llama"), "z[1]", 1), [[1.0]])


def bare():
    return [replace(examples()[0], candidates=())]


def run(s, edit, ids: bool = False):
    with s.apply(edit):
        s.run(Batch.of_ids([examples()[0].ids]) if ids else s.batch(examples()[:1]), {"z[1]": Record()})
