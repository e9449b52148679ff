"""The benchmark harness counts cells, rounds and bounds as it says."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from tests.benchmarks import harness
from tests.benchmarks.harness import Job, Reach


def busy(seconds: float):
    def run() -> float:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return seconds

    return run


def job(**more) -> Job:
    """Ours does ten cells in 20 ms, the peer two cells in 40 ms, one bare forward takes 10 ms."""
    reaches = (
        Reach("<= 0.5 bare a cell", "ours/bare", "<=", 0.5),
        Reach(">= 5 x faster", "peer/ours", ">=", 5.0),
        Reach(">= 0.8 of the predicted 20 x", "peer/ours", ">=", 0.8, over=20.0),
        Reach(">= 0.9 correlation", "agreement", ">=", 0.9),
        Reach("<= 1.2 x the memory", "memory ours/bare", "<=", 1.2),
    )
    settings = dict(
        ours=busy(0.02),
        bare=busy(0.01),
        peers={"peer": busy(0.04)},
        units={"ours": 10, "peer": 2},
        equal=lambda found: abs(found["ours"] - found["peer"]),
        tolerance=0.019,
        numbers=lambda found: {"agreement": found["bare"] * 95},
    )
    return Job("ten cells", reaches, **{**settings, **more})


def test_times_are_counted_by_the_cell_and_judged_by_the_bound():
    one = job()
    found = harness.measure(one, rounds=3)
    found["memory MB"] = {"ours": 30.0, "bare": 20.0}
    assert {name: len(clock["cpu"]) for name, clock in found["seconds"].items()} == dict.fromkeys(
        ("ours", "bare", "peer"), 3
    )
    cpu = {name: clocks["cpu"]["median"] for name, clocks in found["ratios"].items()}
    assert cpu["ours/bare"] == pytest.approx(0.2, rel=0.2)
    assert cpu["peer/bare"] == pytest.approx(2.0, rel=0.2)
    assert cpu["peer/ours"] == pytest.approx(10.0, rel=0.2)
    judged = harness.judge(one, found)
    assert [r["met"] for r in judged] == [True, True, False, True, False]
    assert [r["value"] for r in judged][2:] == [
        pytest.approx(cpu["peer/ours"] / 20),
        pytest.approx(0.95),
        1.5,
    ]
    assert found["equal"] == {"difference": pytest.approx(0.02), "tolerance": 0.019, "met": False}
    assert harness.table([found | {"reaches": judged}]).row_count == 5


def test_the_first_call_of_each_is_not_counted_and_turns_rotate():
    said: list[str] = []
    one = Job(
        "order",
        (),
        ours=lambda: said.append("ours"),
        bare=lambda: said.append("bare"),
        peers={"peer": lambda: said.append("peer")},
    )
    harness.measure(one, rounds=2)
    assert said == ["ours", "bare", "peer", "ours", "bare", "peer", "bare", "peer", "ours"]


def test_a_unit_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="'pear'"):
        harness.measure(job(units={"pear": 2}), rounds=1)


def test_the_interval_is_that_of_the_median_and_a_bound_inside_it_is_met():
    found = harness.interval(np.array([0.9, 1.0, 1.3]))
    assert found == {"median": 1.0, "low": 0.9, "high": 1.3}
    assert harness.interval(np.array([2.0])) == {"median": 2.0, "low": 2.0, "high": 2.0}
    reach = Reach("", "ours/bare", "<=", 0.95)
    assert reach.met(found["low"], found["high"]) and not Reach("", "x", "<=", 0.85).met(0.9, 1.3)
    assert Reach("", "x", ">=", 1.2).met(0.9, 1.3) and not Reach("", "x", ">=", 1.4).met(0.9, 1.3)


def test_peak_memory_is_what_a_call_adds():
    held = np.ones(2**20)  # resident before, so not counted
    assert 60 < harness.peak_mb(lambda: np.ones(64 * 2**20 // 8).sum()) < 90
    assert harness.peak_mb(lambda: None) < 10
    assert held.sum() == 2**20


def test_every_job_has_a_name_of_its_own_and_says_what_it_is(capsys):
    jobs = harness.builders()
    assert all(build.__doc__ for build in jobs.values())
    harness.main(["--list"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == list(jobs)
    with pytest.raises(SystemExit):
        harness.main(["--jobs", "no-such-job"])


def test_a_job_that_was_measured_is_kept(tmp_path, monkeypatch):
    ran: list[str] = []
    monkeypatch.setattr(harness, "builders", lambda: {"a": job, "b": job})
    monkeypatch.setattr(harness, "_child", lambda *args, threads: ran.append(args[1]))
    kept = {"name": "a", "place": 0, "title": "a", "equal": None, "reaches": []}
    (tmp_path / "a.json").write_text(json.dumps(kept))
    harness.main(["--out", str(tmp_path)])
    assert ran == ["b"]
    harness.main(["--out", str(tmp_path), "--again"])
    assert sorted(ran) == ["a", "b", "b"]


def test_a_job_of_its_own_process_leaves_one_whole_file(tmp_path, monkeypatch):
    from interp.models.subject import CausalLM
    from tests.tiny import tiny

    seen: list[CausalLM] = []

    def build(subject: CausalLM) -> Job:
        seen.append(subject)
        return job(memory={"ours": lambda: None, "bare": lambda: None})

    monkeypatch.setattr("interp.load", lambda name: CausalLM(tiny("llama"), None, name=name))
    monkeypatch.setattr(harness, "builders", lambda: {"other": build, "cells": build})
    monkeypatch.setattr(
        harness, "_child", lambda *args: {"cells:ours": "22.0", "cells:bare": "20.0"}[args[1]]
    )
    folder = tmp_path / "not" / "there"
    harness.run_job("cells", 2, folder, 1)
    (path,) = folder.iterdir()
    found = json.loads(path.read_text())
    assert path.name == "cells.json" and found["place"] == 1 and seen[0].name == "smollm2"
    assert found["memory MB"] == {"ours": 22.0, "bare": 20.0}
    assert [r["value"] for r in found["reaches"] if r["quantity"].startswith("memory")] == [1.1]
    assert found["versions"]["torch"] and found["cpu"] and len(found["load at start"]) == 3
    assert harness.load(folder) == [found]
