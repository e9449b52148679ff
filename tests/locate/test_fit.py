"""Fits go unit by unit: on shared prefixes, from a folder after a kill, and no longer than needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import interp
from interp.errors import MissingResource
from interp.locate.options import Options
from interp.locate.parts import SUFFIX, Part
from interp.measure.sequential import Stop
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.runs import PARTIAL
from interp.tasks.base import Example, FixedTask, Span
from tests.planted.retrieval import plant, planted_task
from tests.subjects import subject

SCORES = (
    *("copy", "copy_position", "copy_topk", "needle_mass", "r2", "anchor", "spatial", "dla", "locos"),
    *("qr", "cri"),
)
OPTIONS = Options(null=(5, 6))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> CausalLM:
    return interp.load(plant(request.param, seed=1).module, tokenizer=None)


def asked(model: CausalLM, kind: str, n: int = 4) -> FixedTask:
    """Every context asked for each of its needles: what differs is the last token."""
    out: list[Example] = []
    for e in planted_task(plant(kind, seed=1), n, 0, 60).examples(None):
        keys = {s.item: s for s in (*e.spans_of("key"), *e.spans_of("distractor_key"))}
        values = {s.item: s for s in (*e.spans_of("value"), *e.spans_of("distractor_value"))}
        for item in sorted(keys):
            key, value = keys[item], values[item]
            end = len(e.ids) - 1
            spans = (
                Span(key.start, key.end, "key", 0),
                Span(value.start, value.end, "value", 0),
                Span(key.start, value.end, "evidence", 0),
                Span(end, end + 1, "query", 0),
                Span(end, end + 1, "question", 0),
            )
            clean = replace(
                e,
                ids=(*e.ids[:-1], e.ids[key.start]),
                answer_ids=e.ids[value.start : value.end],
                spans=tuple(sorted(spans)),
                foil_ids=(),
                candidates=(),
                corrupt={},
                meta={"needle": item},
            )
            gone = tuple(1 + (t + 7) % 150 for t in clean.answer_ids)
            ids = (*clean.ids[: value.start], *gone, *clean.ids[value.end :])
            out.append(replace(clean, corrupt={"needle_drop": replace(clean, ids=ids)}))
    return FixedTask(out, name="asked", copies=True)


def kind_of(model: CausalLM) -> str:
    return model.family.name


def test_shared_prefixes_give_the_scores_of_one_run_each(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = asked(model, kind_of(model))
    shared = interp.RetrievalHeads(scores=SCORES, options=OPTIONS).fit(model, task)
    monkeypatch.setattr(interp.RetrievalHeads, "_shares", staticmethod(lambda *args: False))
    alone = interp.RetrievalHeads(scores=SCORES, options=OPTIONS).fit(model, task)
    assert shared.naive_tokens_ == alone.naive_tokens_
    assert shared.prefill_tokens_ < 0.45 * alone.prefill_tokens_
    assert list(shared.instances_["example"]) == list(range(16)) == list(alone.instances_["example"])
    same = ["accepted", "exact", "output", "answer", "recall", "needle", "cluster"]
    pd.testing.assert_frame_equal(shared.instances_[same], alone.instances_[same])
    assert shared.acceptance_ == 1.0
    assert set(shared.per_instance_) == set(SCORES)
    for name, values in alone.per_instance_.items():
        np.testing.assert_allclose(shared.per_instance_[name], values, atol=1e-4, err_msg=name)
    assert shared.clusters_ == alone.clusters_


def test_a_fit_goes_on_from_its_folder(model: CausalLM, tmp_path: Path) -> None:
    task = asked(model, kind_of(model))
    whole = interp.RetrievalHeads().fit(model, task)
    first = interp.RetrievalHeads().fit(model, task, folder=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4 and all(f.name.endswith(SUFFIX) for f in files)
    files[1].unlink()
    files[2].rename(tmp_path / (files[2].name + PARTIAL))  # killed while it was written
    times = {f: f.stat().st_mtime_ns for f in (files[0], files[3])}
    again = interp.RetrievalHeads().fit(model, task, folder=tmp_path)
    assert sorted(tmp_path.iterdir()) == files
    assert {f: f.stat().st_mtime_ns for f in times} == times
    for found in (first, again):
        pd.testing.assert_frame_equal(found.scores_, whole.scores_)
        pd.testing.assert_frame_equal(found.instances_, whole.instances_)
        assert all(np.array_equal(a, b) for a, b in zip(found.copied_, whole.copied_, strict=True))
    # Other scores, other numbers: nothing of the first fit is taken for them.
    interp.RetrievalHeads(scores=("copy", "r2")).fit(model, task, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 8


def test_a_folder_that_cannot_be_written_is_named(model: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingResource, match=r"cannot write to .*file"):
        interp.RetrievalHeads().fit(model, asked(model, kind_of(model)), folder=tmp_path / "file" / "in")


def test_a_part_comes_back_bit_for_bit(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"example": [0, 1], "accepted": [True, False], "recall": [1 / 3, np.nan], "output": ["a", "é"]}
    )
    part = Part(table, {"copy": np.random.default_rng(0).random((1, 2, 3))}, [np.ones((4, 2, 3), bool)])
    part.save(tmp_path / "x")
    back = Part.load(tmp_path / "x")
    pd.testing.assert_frame_equal(back.instances, table)
    assert np.array_equal(back.scores["copy"], part.scores["copy"]) and back.copied[0].dtype == bool


def test_parts_join_in_the_order_of_examples() -> None:
    def part(examples: list[int], accepted: list[bool]) -> Part:
        kept = [e for e, ok in zip(examples, accepted, strict=True) if ok]
        scores = {"copy": np.array(kept, float).reshape(-1, 1, 1)}
        table = pd.DataFrame({"example": examples, "accepted": accepted})
        return Part(table, scores, [np.full((1, 1, 1), e) for e in kept])

    whole = Part.join([part([4, 1, 3], [True, False, True]), part([0, 2], [True, True])])
    assert whole.instances["example"].tolist() == [0, 1, 2, 3, 4]
    assert whole.scores["copy"].ravel().tolist() == [0, 2, 3, 4]
    assert [c.item() for c in whole.copied] == [0, 2, 3, 4]


SCRIPT = """
    import os, signal, sys
    import interp
    from tests.locate.test_fit import asked
    from tests.planted.retrieval import plant

    kill_at, folder = int(sys.argv[1]), sys.argv[2]
    made = 0
    replace = os.replace

    def counted(partial, path):
        global made
        made += 1
        if made == kill_at:  # the temporary file is there, the rename is not
            os.kill(os.getpid(), signal.SIGKILL)
        replace(partial, path)

    os.replace = counted
    model = interp.load(plant("gpt2", seed=1).module, tokenizer=None)
    interp.RetrievalHeads().fit(model, asked(model, "gpt2"), folder=folder).scores_.to_parquet(sys.argv[3])
"""


def test_a_killed_fit_ends_with_the_same_table(tmp_path: Path) -> None:
    def fit(kill_at: int, folder: str, out: str) -> int:
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(SCRIPT),
            str(kill_at),
            str(tmp_path / folder),
            str(tmp_path / out),
        ]
        return subprocess.run(
            command, cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."}
        ).returncode

    assert fit(0, "whole", "whole.parquet") == 0
    assert fit(3, "killed", "killed.parquet") == -signal.SIGKILL
    left = list((tmp_path / "killed").iterdir())
    assert len(left) == 3 and sum(f.name.endswith(PARTIAL) for f in left) == 1
    assert fit(0, "killed", "killed.parquet") == 0
    assert not list((tmp_path / "killed").glob("*" + PARTIAL))
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / f"{n}.parquet") for n in ("whole", "killed")))


def test_a_fit_stops_when_its_ranking_is_settled(model: CausalLM) -> None:
    planted = plant(kind_of(model), seed=1)
    k = len(planted.retrieval)
    task = planted_task(planted, 96, 0, 60)
    whole = interp.RetrievalHeads().fit(model, task)
    seen: list[int] = []
    heads = interp.RetrievalHeads()
    heads.fit(model, task, stop=Stop(top=k, unit="instance"), progress=lambda done, *_: seen.append(done))
    n = len(heads.instances_)
    assert n in (16, 32, 48, 64) and seen[-1] == n  # one look every 16, and none of the rest is run
    assert heads.stop_.resolved and heads.stop_.n == n
    assert heads.top(k) == whole.top(k)
    assert {(h.layer, h.head) for h in heads.top(k) if isinstance(h, Head)} == planted.retrieval
    taken = heads.instances_["example"].to_numpy()
    np.testing.assert_array_equal(heads.per_instance_["copy"], whole.per_instance_["copy"][taken])
    # A look before it could be settled: the fit ends where it is told to, and says that it is not.
    few = Stop(top=k, unit="instance", level=1 - 1e-9, most=16)
    most = interp.RetrievalHeads().fit(model, task, stop=few)
    assert len(most.instances_) == 16 and not most.stop_.resolved


def test_a_stop_that_counts_instances_takes_them_in_an_order_that_says_nothing(model: CausalLM) -> None:
    """A grid comes by length: its short contexts say nothing of the long ones."""
    kind = kind_of(model)
    inside = planted_task(plant(kind, seed=1), 48, 0, 60).examples(None)
    # The answer of the second half stands elsewhere than where it is marked: no head copies it from there.
    aside = [
        replace(e, spans=tuple(s if s.role != "value" else Span(0, len(s), "value", 0) for s in e.spans))
        for e in inside
    ]
    task = FixedTask([*inside[:24], *aside[24:]], name="halves", copies=True)
    stop = Stop(top=None, threshold=0.75, unit="instance")
    found = interp.RetrievalHeads(mode="forced").fit(model, task, stop=stop)
    assert max(found.scores_["score"]) < 0.75 and not found.stop_.over.any()
    taken = found.instances_["example"]
    assert (taken >= 24).mean() > 0.25 and taken.is_monotonic_increasing
    # Clusters come whole, in the order of the task.
    assert interp.RetrievalHeads(mode="forced").fit(model, task, stop=Stop(top=2, most=16)).instances_[
        "example"
    ].tolist() == list(range(16))
    found.fit(model, task)
    assert not hasattr(found, "stop_") and len(found.instances_) == 48


def test_a_part_of_another_fit_gets_the_numbers_of_this_one(model: CausalLM, tmp_path: Path) -> None:
    examples = asked(model, kind_of(model)).examples(None)
    interp.RetrievalHeads().fit(model, FixedTask(examples, copies=True), folder=tmp_path)
    clusters = list(dict.fromkeys(e.cluster for e in examples))
    last = FixedTask([e for e in examples if e.cluster in clusters[2:]], copies=True)
    before = sorted(tmp_path.iterdir())
    found = interp.RetrievalHeads().fit(model, last, folder=tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    pd.testing.assert_frame_equal(found.instances_, interp.RetrievalHeads().fit(model, last).instances_)


def test_a_part_of_other_corrupt_twins_is_not_taken(model: CausalLM, tmp_path: Path) -> None:
    def fit(shift: int, **options: Path) -> np.ndarray:
        examples = [
            replace(e, corrupt={"needle_drop": replace(e, corrupt={}, ids=tuple(
                1 + (t + shift) % 150 if s.start <= i < s.end else t for i, t in enumerate(e.ids)))})
            for e in asked(model, kind_of(model), 1).examples(None) for s in e.spans_of("value", 0)
        ]  # fmt: skip
        task = FixedTask(examples, copies=True)
        return interp.RetrievalHeads(scores=("copy", "cri")).fit(model, task, **options).per_instance_["cri"]

    fit(7, folder=tmp_path)
    np.testing.assert_array_equal(fit(11, folder=tmp_path), fit(11))


def test_nothing_is_shared_under_an_applied_intervention() -> None:
    """What is applied may edit the prompt of one example and not of another that begins alike."""
    s = subject("llama")
    task = asked(s, "llama", 2)
    with s.apply(interp.ablate("L0H1", "zero", "value")):
        found = interp.RetrievalHeads(mode="forced").fit(s, task)
        for i, e in enumerate(task.examples(s)):
            one = interp.RetrievalHeads(mode="forced").fit(s, FixedTask([e], copies=True))
            np.testing.assert_array_equal(found.per_instance_["copy"][i], one.per_instance_["copy"][0])
    assert found.prefill_tokens_ == found.naive_tokens_
