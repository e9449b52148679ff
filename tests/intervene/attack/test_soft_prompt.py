"""Soft prompts: equal to one search at a time on the bare module; memory comes back, what was never held does not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from interp.errors import EngineError, UsageError
from interp.intervene.attack.soft_prompt import SoftPrompts, recited, shared_prompt, soft_prompts
from interp.models.subject import CausalLM
from interp.tasks.memorized import TextItem
from tests.subjects import ALL, subject
from tests.tiny import tiny


def sequences(n: int, group: str, length: int = 20, prefix: int = 6, seed: int = 0) -> list[TextItem]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (n, length), generator=generator).tolist()
    return [
        TextItem(f"{group} {i}", tuple(row), prefix, group, "locate" if i < n // 2 else "test")
        for i, row in enumerate(ids)
    ]


HELD = sequences(6, "memorized", seed=1)
NEVER = sequences(6, "never seen", seed=2)


@pytest.fixture(scope="module")
def trained() -> CausalLM:
    """A tiny model that learned HELD."""
    module = tiny("llama")
    ids = torch.tensor([item.ids for item in HELD])
    adam = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(60):
        logits = module(input_ids=ids).logits[:, HELD[0].prefix - 1 : -1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, HELD[0].prefix :].flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    adam.zero_grad()
    return CausalLM(module, None, name="trained")


@pytest.fixture(scope="module")
def pruned(trained: CausalLM) -> CausalLM:
    """The same with a quarter of the weights of its down projections gone, so that it recites nothing."""
    module = copy.deepcopy(trained.hf)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "down_proj" in name:
                p *= torch.rand(p.shape, generator=generator) > 0.25
    return CausalLM(module, None, name="pruned")


def naive(
    model: CausalLM, item: TextItem, start: torch.Tensor, steps: int, rate: float
) -> tuple[torch.Tensor, int | None, list[float]]:
    """One search on the module itself: vectors before the prefix's embeddings, and the suffix forced."""
    soft = start.clone().requires_grad_()
    adam = torch.optim.Adam([soft], lr=rate)
    ids = torch.tensor(item.ids)
    embedded = model.hf.get_input_embeddings()(ids).detach()
    losses = []
    for step in range(steps + 1):
        logits = model.hf(inputs_embeds=torch.cat([soft, embedded[:-1]])[None]).logits[0, -len(item.suffix) :]
        loss = nn.functional.cross_entropy(logits, torch.tensor(item.suffix))
        losses.append(float(loss.detach()))
        if bool((logits.argmax(-1) == torch.tensor(item.suffix)).all()):
            return soft.detach(), step, losses
        if step < steps:
            adam.zero_grad()
            loss.backward()
            adam.step()
    return soft.detach(), None, losses


@pytest.mark.parametrize("family", ALL)
def test_a_step_is_that_of_the_bare_module(family: str) -> None:
    model = subject(family)
    items = [TextItem("short", (5, 6, 7, 8, 9), 2), TextItem("long", tuple(range(30, 48)), 5)]
    search = SoftPrompts(length=3, steps=1, start="normal")
    found = soft_prompts(model, items, search, seed=3)
    size = float(model.hf.get_input_embeddings()(torch.arange(259)).detach().square().mean().sqrt())
    zero = soft_prompts(model, items, SoftPrompts(length=3, steps=1, rate=1e-30, start="normal"), seed=3)
    for row, item in enumerate(items):
        at, _, losses = naive(model, item, zero.prompts[row], 1, search.rate * size)
        torch.testing.assert_close(found.prompts[row], at, atol=1e-3 * size, rtol=1e-3)
        assert found.table["first"][row] == pytest.approx(losses[0], rel=1e-4)
        assert found.table["last"][row] == pytest.approx(losses[1], rel=1e-3)


def test_searches_are_equal_to_single_ones(pruned: CausalLM) -> None:
    search = SoftPrompts(length=2, steps=40, start="normal")
    shorter = TextItem("shorter", HELD[3].ids[:10], 6, "memorized")
    items = [*HELD[:3], TextItem("longer", tuple(range(40)), 30, "never seen"), shorter]
    found = soft_prompts(pruned, items, search, seed=1)
    starts = soft_prompts(pruned, items, SoftPrompts(length=2, steps=1, rate=1e-30, start="normal"), seed=1)
    size = float(pruned.hf.get_input_embeddings().weight.detach().square().mean().sqrt())
    for row, item in enumerate(items):
        _, steps, losses = naive(pruned, item, starts.prompts[row], 40, search.rate * size)
        got = found.table.loc[row]
        if steps is None:
            assert got["extracted"] == 0 and got["work"] == 40
        else:
            assert (got["extracted"], got["steps"], got["work"]) == (1, steps, steps)
        assert got["last"] == pytest.approx(losses[-1], rel=0.02)
    assert found.table["extracted"][4] == 1, "a suffix is whole where others go on"
    alone = soft_prompts(pruned, [HELD[1]], search, seed=1)
    torch.testing.assert_close(alone.prompts[0], found.prompts[1], atol=1e-3, rtol=1e-2)


def test_memory_that_was_cut_comes_back_and_what_never_was_does_not(pruned: CausalLM) -> None:
    found = soft_prompts(pruned, [*HELD, *NEVER], SoftPrompts(length=2, steps=60, restarts=2), seed=0)
    by = found.table.groupby("group")[["before", "extracted"]].mean()
    assert by.loc["memorized", "before"] <= 0.2
    assert by.loc["memorized", "extracted"] >= 0.9
    assert by.loc["never seen", "extracted"] <= 0.1
    assert len(found.table) == len(found.prompts) == 24
    assert found.table[["item", "restart"]].drop_duplicates().shape[0] == 24
    told = found.table[found.table["extracted"] == 1]
    assert (told["recited"] == 1).all() and (told["steps"] == told["work"]).all()
    assert (found.table.loc[found.table["extracted"] == 0, "recited"] < 1).all()


def test_what_is_extracted_is_what_greedy_decoding_gives(pruned: CausalLM) -> None:
    found = soft_prompts(pruned, [HELD[0], NEVER[0]], SoftPrompts(length=2, steps=60), seed=0)
    embeddings = pruned.hf.get_input_embeddings()
    for row, item in enumerate([HELD[0], NEVER[0]]):
        ids = list(item.ids[: item.prefix])
        for _ in item.suffix:
            fed = torch.cat([found.prompts[row], embeddings(torch.tensor(ids)).detach()])[None]
            with torch.no_grad():
                ids.append(int(pruned.hf(inputs_embeds=fed).logits[0, -1].argmax()))
        same = [a == b for a, b in zip(ids[item.prefix :], item.suffix, strict=True)]
        assert found.table["extracted"][row] == all(same)
        until = same.index(False) if False in same else len(same)
        assert found.table["recited"][row] == pytest.approx(until / len(same))
    assert found.table["extracted"].tolist() == [1, 0]


def test_bare_prefixes_are_told(trained: CausalLM) -> None:
    table = recited(trained, [*HELD, *NEVER])
    assert table["extracted"].tolist() == [1.0] * 6 + [0.0] * 6
    assert (
        (table["recited"][:6] == 1).all() and (table["nll"][:6] < 0.1).all() and (table["nll"][6:] > 3).all()
    )
    found = soft_prompts(trained, HELD[:2], SoftPrompts(steps=3))
    assert found.table["before"].tolist() == [1, 1]


def test_a_shared_prompt_is_learned_on_some_and_tried_on_others(pruned: CausalLM) -> None:
    learn, rest = HELD[:3], HELD[3:]
    search = SoftPrompts(length=4, steps=40, restarts=2)
    found = shared_prompt(pruned, learn, [*learn, *rest, *NEVER], search, seed=0)
    table = found.table
    assert len(table) == len(found.prompts) == 2 * 12
    assert table["learned"].tolist() == [1, 1, 1, *[0] * 9] * 2
    assert (table["work"] == 40 * 3).all()
    assert table.loc[table["learned"] == 1, "accuracy"].mean() > 0.9
    assert table.loc[table["group"] == "never seen", "extracted"].sum() == 0
    assert torch.equal(found.prompts[0], found.prompts[11]) and not torch.equal(
        found.prompts[0], found.prompts[12]
    )
    again = recited(pruned, HELD, found.prompts[:6])
    assert again["accuracy"].tolist() == pytest.approx(table["accuracy"][:6].tolist())


def test_restarts_begin_elsewhere_and_a_name_decides_where(pruned: CausalLM, rng_untouched: None) -> None:
    still = SoftPrompts(length=2, steps=1, rate=1e-30, restarts=2)
    a = soft_prompts(pruned, NEVER[:2], still, seed=0).prompts
    b = soft_prompts(pruned, NEVER[1:2], still, seed=0).prompts
    c = soft_prompts(pruned, NEVER[1:2], still, seed=1).prompts
    assert torch.equal(a[2:], b) and not torch.equal(b, c) and not torch.equal(a[0], a[1])
    rows = pruned.hf.get_input_embeddings().weight
    assert bool((a[0][0] == rows).all(1).any()), "a start of tokens is made of embeddings"


def test_bad_input_is_told(pruned: CausalLM) -> None:
    with pytest.raises(UsageError, match="no start 'zeros'"):
        SoftPrompts(start="zeros")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="steps"):
        SoftPrompts(steps=0)
    with pytest.raises(UsageError, match="at least one sequence"):
        soft_prompts(pruned, [])
    with pytest.raises(UsageError, match="to try it on"):
        shared_prompt(pruned, HELD, [])
    with pytest.raises(UsageError, match="do not fit the context"):
        soft_prompts(pruned, [TextItem("long", tuple(range(200)) * 3, 5)])
    blind = pruned.with_engine("nnsight")
    if "grad" not in blind.engine.capabilities:
        with pytest.raises(EngineError, match="soft prompts"):
            soft_prompts(blind, HELD[:1])
