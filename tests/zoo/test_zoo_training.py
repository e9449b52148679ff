"""Training: what is learned, what is the same for equal seeds, what the cache keeps, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
import interp.zoo as zoo
from interp.cli import app
from interp.errors import UsageError
from interp.models.zoo.config import ZooConfig
from interp.models.zoo.model import untrained
from interp.models.zoo.training import Recipe, Stage, _Batches, accuracy, race
from interp.tasks.mqar import MQAR
from interp.tasks.symbols import symbols

TINY = ZooConfig(vocab_size=32, hidden_size=32, initializer_range=0.1)
"""Of width 32 over 32 symbols: it learns two pairs in seconds."""


def stage(pairs: int, length: int, vocab: int = 32) -> Stage:
    tokens, task = symbols(vocab), MQAR(length=length, pairs=pairs)
    held_out = {f"{pairs} pairs": task.batch(np.random.default_rng(9), 128, tokens)}
    return Stage(lambda rng, n: task.batch(rng, n, tokens), held_out)


def test_a_tiny_model_learns_and_the_rate_that_learns_first_wins():
    recipe = Recipe(rates=(1e-5, 1e-2), steps=600, rows=32, warmup=20, every=50, enough=0.95)
    found = race(TINY, [stage(3, 16)], recipe)
    assert found.rate == 1e-2
    last = {row["rate"]: row for row in found.history}
    assert last[1e-2]["3 pairs"] >= 0.95 > 0.6 > last[1e-5]["3 pairs"]
    assert last[1e-2]["step"] == last[1e-5]["step"] < 600  # the race ended there, for both
    fresh = MQAR(length=16, pairs=3, n=48, seed=5)
    model = interp.load(found.module, tokenizer=symbols(32))
    batch = model.batch(fresh.examples(model))
    said = model.run(batch, keep=1).logits[:, -1].argmax(-1).tolist()
    right = np.mean([s == e.answer_ids[0] for s, e in zip(said, fresh.examples(model), strict=True)])
    assert right > 0.85  # examples ask what batches ask
    assert torch.is_grad_enabled() and not found.module.training


def test_stages_follow_one_another():
    recipe = Recipe(rates=(1e-3,), steps=4, rows=4, every=2, onward=0.0, enough=2.0)
    history = race(TINY, [stage(2, 8), stage(3, 16)], recipe).history
    # The first stage is good enough at its first look; the last one uses all its steps.
    assert [(row["stage"], row["step"]) for row in history] == [(0, 2), (1, 4), (1, 6)]
    assert "2 pairs" in history[0] and "3 pairs" in history[1]
    never = replace(recipe, onward=2.0)
    history = race(TINY, [stage(2, 8), stage(3, 16)], never).history
    assert [(row["stage"], row["step"]) for row in history] == [(0, 2), (0, 4), (1, 6), (1, 8)]


def test_a_rate_that_is_a_stage_behind_falls_out():
    recipe = Recipe(rates=(1e-6, 1e-2), steps=300, rows=32, warmup=20, every=50, onward=0.8, enough=0.9)
    found = race(TINY, [stage(2, 8), stage(3, 16)], recipe)
    steps = {rate: [r["stage"] for r in found.history if r["rate"] == rate] for rate in recipe.rates}
    assert set(steps[1e-6]) == {0} and set(steps[1e-2]) == {0, 1}
    # It is let go in the round in which the other goes on, and no sooner.
    assert len(steps[1e-6]) == steps[1e-2].count(0) + 1
    assert found.rate == 1e-2


def test_an_early_stage_wins_no_race():
    easy = Stage(stage(2, 8).draw, {"nothing": (np.zeros((2, 4), np.int64), np.full((2, 4), -100))})
    recipe = Recipe(rates=(1e-3,), steps=2, rows=4, every=2, onward=0.0, enough=0.0)
    history = race(TINY, [easy, stage(3, 16)], recipe).history
    assert [row["stage"] for row in history] == [0, 1]


def test_equal_seeds_give_equal_models_whatever_the_global_state_is():
    config = ZooConfig(vocab_size=32, hidden_size=16, dropout=0.3)
    recipe = Recipe(rates=(3e-3,), steps=6, rows=8, every=3, enough=2.0)
    weights = []
    for seed, disturb in ((1, 0), (1, 77), (2, 0)):
        torch.manual_seed(disturb)
        before = torch.get_rng_state()
        module = race(config, [stage(2, 8)], recipe, seed=seed).module
        assert torch.equal(before, torch.get_rng_state())
        weights.append(module.lm_head.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_pool_is_read_whole_in_each_epoch_in_a_new_order():
    drawn = stage(2, 8).draw
    batches = _Batches(drawn, Recipe(rows=4, pool=12), [0, 0])
    epochs = [np.concatenate([next(batches)[0] for _ in range(3)]) for _ in range(2)]
    assert sorted(map(tuple, epochs[0])) == sorted(map(tuple, epochs[1]))
    assert not np.array_equal(*epochs)
    fresh = _Batches(drawn, Recipe(rows=4), [0, 0])
    assert not np.array_equal(next(fresh)[0], next(fresh)[0])


def test_accuracy_counts_what_is_asked_alone():
    module = untrained(TINY)
    ids = np.array([[2, 3, 4, 5], [6, 7, 8, 9]])
    with torch.no_grad():
        said = module(torch.tensor(ids)).logits.argmax(-1).numpy()
    labels = np.full_like(ids, -100)
    labels[0, 1], labels[1, 3], labels[1, 0] = said[0, 1], said[1, 3], (said[1, 0] + 1) % 32
    assert accuracy(module, ids, labels) == pytest.approx(2 / 3)
    assert accuracy(module, ids, np.full_like(ids, -100)) == 0.0


def test_trainings_without_parts_are_refused():
    for recipe, stages in (
        (Recipe(rates=()), [stage(2, 8)]),
        (Recipe(), []),
        (Recipe(), [Stage(stage(2, 8).draw, {})]),
    ):
        with pytest.raises(UsageError, match="needs a learning rate, a stage, and held-out sequences"):
            race(TINY, stages, recipe)


# -- presets, cache, commands --------------------------------------------------------------------------------------

SHORT = {"rates": (1e-3,), "steps": 2, "every": 2}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    return tmp_path


def test_a_model_is_trained_once_and_then_comes_from_the_cache(own_cache, monkeypatch):
    assert zoo.history("conv-attention", changes=SHORT) is None
    model = zoo.trained("conv-attention", changes=SHORT)
    assert (model.name, model.n_layers, model.n_heads) == ("conv-attention", 1, 4)
    assert model.tokens.n_vocab == 512
    monkeypatch.setattr("interp.models.zoo.training.race", None)
    again = zoo.trained("conv-attention", changes=SHORT)
    assert again.weights_hash == model.weights_hash
    about = zoo.history("conv-attention", changes=SHORT)
    assert about is not None and about["rate"] == 1e-3
    assert {"step", "seconds", "2 pairs", "16 pairs"} <= set(about["history"][-1])
    assert zoo.history("conv-attention", seed=1, changes=SHORT) is None
    assert zoo.history("conv-attention") is None


def test_what_is_not_there_is_refused():
    with pytest.raises(
        UsageError, match="no model 'lstm' in the zoo; write one of conv-attention, attention"
    ):
        zoo.trained("lstm")
    with pytest.raises(UsageError, match="a recipe has no epochs; it has rates"):
        zoo.folder_of("attention", changes={"epochs": 3})


@pytest.mark.parametrize("name", zoo.PRESETS)
def test_presets_hold_together(name):
    """Sequences that each stage trains on fit the model, and nothing that is held out asks what it cannot know."""
    preset = zoo.PRESETS[name]
    config = ZooConfig(**preset.config)
    for part, params in zip(zoo.stages(preset, 0), preset.stages, strict=True):
        ids, labels = part.draw(np.random.default_rng(0), 16)
        assert ids.shape == labels.shape == (16, params["length"])
        assert ids.max() < config.vocab_size and params["length"] <= config.max_position_embeddings
        assert set(part.held_out) == {f"{n} pairs" for n in params["pairs"]}


def test_commands(own_cache):
    runner = CliRunner()
    made = runner.invoke(app, ["zoo", "train", "conv-attention", "--rate", "0.001", "--steps", "2", "--json"])
    assert made.exit_code == 0, made.output
    said = json.loads(made.stdout)
    assert said["rate"] == 0.001 and said["seed"] == 0
    assert interp.load(said["path"]).n_heads == 4
    shown = runner.invoke(app, ["zoo", "list", "--json"])
    assert [row["name"] for row in json.loads(shown.stdout)] == list(zoo.PRESETS)
    assert {row["state"] for row in json.loads(shown.stdout)} == {"absent"}  # that one had another recipe
    table = runner.invoke(app, ["zoo", "train", "conv-attention", "--rate", "0.001", "--steps", "2"])
    assert "chosen" in table.stdout and "is ready in" in table.stdout
    wrong = runner.invoke(app, ["zoo", "train", "lstm"])
    assert wrong.exit_code == 2 and "no model 'lstm' in the zoo" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv-attention", "attention"])
def test_presets_recall_and_their_retrieval_heads_do_it(name):
    model = zoo.trained(name)
    for pairs in (4, 8, 16):
        ids, labels = MQAR(pairs=pairs).batch(np.random.default_rng(77), 512, model.tokens)
        assert accuracy(model.hf, ids, labels) >= 0.99
    heads = interp.RetrievalHeads().fit(model, MQAR(pairs=[8, 16], n=72))
    copy = heads.scores_[heads.scores_["method"] == "copy"]
    found = heads.top(int((copy["score"] >= 0.1).sum()))
    assert {head.layer for head in found} == {model.n_layers - 1}
    task = MQAR(pairs=[8, 16], n=72, seed=1)
    batch = model.batch(task.examples(model))
    answers = torch.tensor([e.answer_ids[0] for e in task.examples(model)])
    # All heads of the last layer may share the work; then there are none left over in it.
    others = tuple(h for h in model.heads() if h not in found and h.layer == model.n_layers - 1)
    logits = dict(
        model.each([interp.ablate(found), interp.ablate(others) if others else None], batch, keep=1)
    )
    cut, spared = (float((logits[i][:, -1].argmax(-1) == answers).float().mean()) for i in range(2))
    assert cut < 0.2
    assert spared > 0.5
