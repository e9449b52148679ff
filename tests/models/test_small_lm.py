"""The small language model: trained once, cached whole, better on text it never read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp.errors import UsageError
from interp.measure.memorization.objective import loss
from interp.models.zoo import small_lm as module
from interp.models.zoo.small_lm import PRESETS, Recipe, small_lm, train, untrained
from interp.tasks.memorized import TextItem
from interp.tasks.prose import topics

TEXTS = list(topics().values())


def test_it_is_trained_once_and_comes_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    monkeypatch.setitem(
        PRESETS, "brief", Recipe(d=16, layers=1, heads=2, vocab=300, window=24, rows=2, steps=3)
    )
    steps: list[int] = []

    def note(done: int, total: int, what: str) -> None:
        steps.append(done)

    first = small_lm(TEXTS[:5], "brief", progress=note)
    assert steps == [1, 2, 3]
    again = small_lm(TEXTS[:5], "brief", progress=note)
    assert steps == [1, 2, 3]
    assert again.fingerprint == first.fingerprint
    assert again.tokens.fingerprint == first.tokens.fingerprint
    assert again.tokens.decode(again.tokens.encode("Any text: äß!").ids) == "Any text: äß!"
    made = untrained(TEXTS[:5], PRESETS["brief"])
    train(made, TEXTS[:5], steps=3, recipe=PRESETS["brief"])
    assert made.fingerprint == first.fingerprint
    assert small_lm(TEXTS[:5], "brief", seed=1).fingerprint != first.fingerprint
    assert small_lm(TEXTS[:6], "brief").fingerprint != first.fingerprint
    with pytest.raises(UsageError, match="no preset 'large'"):
        small_lm(TEXTS, "large")


def test_a_killed_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))

    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        small_lm(TEXTS[:5], "tiny")
    assert not [p for p in (tmp_path / "small_lm").iterdir() if not p.name.endswith(".lock")]


def test_it_learns_text_it_never_reads() -> None:
    recipe = replace(PRESETS["tiny"], steps=60)
    seen, unseen = TEXTS[:-8], TEXTS[-8:]
    model = untrained(seen, recipe)
    items = [TextItem(str(i), model.tokens.encode(t).ids[:60], 8) for i, t in enumerate(unseen)]
    with torch.no_grad():
        before = float(loss(model, items).mean())
        train(model, seen, steps=60, recipe=recipe)
        after = float(loss(model, items).mean())
    assert abs(before - 6.2) < 0.2  # ln 512
    assert after < before - 0.8
