"""Jobs with something to show, measured against their peers in one run: `python -m tests.benchmarks --help`.

A job is a builder in `JOBS` of a `jobs_*.py` file beside this one: `builder(subject) -> Job`. It gets the model that
all jobs are measured on, so that tests can hand it a tiny one. Each job runs in a process of its own. There `ours`, the
bare forward pass and the peers take turns, round by round; what is reported is the median over rounds of the ratio
within a round, of CPU and of wall time, with a percentile bootstrap interval. The first call of each is not counted.

A peer that is too slow to run in full runs on a sample of cells. `units` says for how many cells (or bare forward
passes) one call stands, times are divided by it, and `notes` states the sampling.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[2]
DATA = ROOT / "figures" / "data" / "benchmarks"
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "interp-memory")

Results = Mapping[str, Any]
"""What the last call of each callable of a job returned, by its name: `ours`, `bare`, or the peer's."""


@dataclass(frozen=True)
class Reach:
    """A bound on one quantity.

    Attributes:
        text: the bound in words, for the table.
        quantity: `a/b`, the time a cell of `a` takes over that of `b`, where each is `ours`, `bare` or a peer;
            `memory a/b`, extra memory likewise, or `memory a`, in MB; or the name of one of the job's `numbers`.
        sense, bound: the quantity is to be `<=` or `>=` the bound.
        over: the quantity is divided by this first (a predicted saving, say).
    """

    text: str
    quantity: str
    sense: Literal["<=", ">="]
    bound: float
    over: float = 1.0

    def met(self, low: float, high: float) -> bool:
        """Whether an interval includes the bound or lies on its good side."""
        return low <= self.bound if self.sense == "<=" else high >= self.bound


@dataclass(frozen=True)
class Job:
    """Something to show, and what it is measured against.

    Attributes:
        title: what is done, in words, for the table.
        reaches: what it has to show.
        ours: does it with `interp`.
        bare: the model's own forward pass at its best settings (see `bare_forward`), or None.
        peers: the same with other tools at their best settings, by the name of the tool.
        units: for how many cells one call of each callable stands; 1 where it is not named.
        equal: largest absolute difference of our results to the naive ones, from the results of the last round.
        tolerance: bound on it.
        numbers: exact quantities (token counts, correlations), from the results of the last round.
        memory: what is run once, each in a process of its own that has only built the job, for its peak memory above
            that of the loaded model.
        warm: called once before the first round, in place of one call of each callable.
        notes: sampling, scaling and settings of peers, for the reader of the table.
    """

    title: str
    reaches: Sequence[Reach]
    ours: Callable[[], Any]
    bare: Callable[[], Any] | None = None
    peers: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    units: Mapping[str, float] = field(default_factory=dict)
    equal: Callable[[Results], float] | None = None
    tolerance: float = 0.0
    numbers: Callable[[Results], Mapping[str, float]] | None = None
    memory: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    warm: Callable[[], Any] | None = None
    notes: Sequence[str] = ()

    def callables(self) -> dict[str, Callable[[], Any]]:
        """Everything that takes turns, by name."""
        bare = {} if self.bare is None else {"bare": self.bare}
        return {"ours": self.ours, **bare, **self.peers}


Builder = Callable[[Any], Job]


def bare_forward(subject: Any, batch: Any, keep: int = 1, **kwargs: Any) -> Any:
    """The model's own forward pass without us: SDPA, no cache, logits of the last columns only."""
    import torch

    with torch.no_grad():
        return subject.hf(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=keep,
            **kwargs,
        ).logits


def builders() -> dict[str, Builder]:
    """Every job by its name, in the order of the files and within them."""
    out: dict[str, Builder] = {}
    for path in sorted(Path(__file__).parent.glob("jobs_*.py")):
        for name, build in import_module(f"tests.benchmarks.{path.stem}").JOBS.items():
            if name in out:
                raise SystemExit(f"two benchmark jobs are called '{name}'")
            out[name] = build
    return out


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(job: Job, rounds: int) -> dict[str, Any]:
    """Times, ratios, equality and reaches of a job, as plain data."""
    calls = job.callables()
    unknown = set(job.units) - set(calls)
    if unknown:
        raise ValueError(
            f"{job.title}: units of {sorted(unknown)}, which is not run; there are {sorted(calls)}"
        )
    if job.warm is not None:
        job.warm()
    else:
        for call in calls.values():
            call()
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in calls}
    results: dict[str, Any] = {}
    names = list(calls)
    for turn in range(rounds):
        gc.collect()
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            results.pop(name, None)
            wall, cpu = time.perf_counter(), time.process_time()
            results[name] = calls[name]()
            seconds[name]["cpu"].append(time.process_time() - cpu)
            seconds[name]["wall"].append(time.perf_counter() - wall)
    numbers = {} if job.numbers is None else {k: float(v) for k, v in job.numbers(results).items()}
    out: dict[str, Any] = {
        "title": job.title,
        "rounds": rounds,
        "units": {name: job.units.get(name, 1) for name in calls},
        "seconds": seconds,
        "ratios": {f"{a}/{b}": ratio(job, seconds, a, b) for a, b in _pairs(calls)},
        "numbers": numbers,
        "equal": None,
        "notes": list(job.notes),
    }
    if job.equal is not None:
        worst = float(job.equal(results))
        out["equal"] = {"difference": worst, "tolerance": job.tolerance, "met": worst <= job.tolerance}
    return out


def _pairs(calls: Mapping[str, Any]) -> list[tuple[str, str]]:
    peers = [name for name in calls if name not in ("ours", "bare")]
    over = [("ours", "bare"), *((p, "bare") for p in peers)] if "bare" in calls else []
    return [*over, *((p, "ours") for p in peers)]


def ratio(job: Job, seconds: Mapping[str, Any], a: str, b: str) -> dict[str, dict[str, float]]:
    """Time a cell of `a` over that of `b`: `{wall | cpu: {median, low, high}}`."""
    scale = job.units.get(b, 1) / job.units.get(a, 1)
    return {
        clock: interval(scale * np.array(seconds[a][clock]) / np.array(seconds[b][clock]))
        for clock in ("wall", "cpu")
    }


def interval(ratios: np.ndarray) -> dict[str, float]:
    """Median of the ratios of rounds, with its 95 % percentile bootstrap interval."""
    low = high = float(np.median(ratios))
    if len(ratios) > 1:
        rng = np.random.default_rng(0)
        found = stats.bootstrap((ratios,), np.median, rng=rng, method="percentile", n_resamples=2000)
        low, high = (float(v) for v in found.confidence_interval)
    return {"median": float(np.median(ratios)), "low": low, "high": high}


def judge(job: Job, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each reach with its value; times are judged by CPU time, which other processes disturb least."""
    out = []
    for reach in job.reaches:
        walls = None
        if reach.quantity.startswith("memory "):
            a, _, b = reach.quantity.removeprefix("memory ").partition("/")
            value = low = high = found["memory MB"][a] / (found["memory MB"][b] if b else 1)
        elif reach.quantity in found["numbers"]:
            value = low = high = found["numbers"][reach.quantity]
        else:
            clocks = found["ratios"][reach.quantity]
            value, low, high = (clocks["cpu"][key] for key in ("median", "low", "high"))
            walls = clocks["wall"]["median"] / reach.over
        value, low, high = value / reach.over, low / reach.over, high / reach.over
        out.append(
            {
                **asdict(reach),
                "value": value,
                "low": low,
                "high": high,
                "wall": walls,
                "met": reach.met(low, high),
            }
        )
    return out


# -- memory ----------------------------------------------------------------------------------------------------------


def peak_mb(job: Callable[[], Any]) -> float:
    """Peak resident MB that a call adds to what is resident before it (Linux); collect garbage first."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the high-water mark starts again from what is resident now
    before = status("VmRSS")
    job()
    return status("VmHWM") - before


def status(name: str) -> float:
    """A size that Linux tells of this process (`VmRSS`, `VmHWM`), in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"this system does not tell {name}")


# -- one process a job -----------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a number depends on besides the code."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (x.partition(":")[2].strip() for x in info.read_text().splitlines() if "model name" in x), cpu
        )
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load at start": [round(x, 2) for x in os.getloadavg()],
        "versions": {"python": platform.python_version(), **found},
    }


def run_job(name: str, rounds: int, folder: Path, concurrent: int) -> None:
    """Measure one job in this process and write its file."""
    import torch

    import interp
    from interp.runs import write_bytes

    facts = machine()
    subject = interp.load("smollm2")
    folder.mkdir(parents=True, exist_ok=True)
    every = builders()
    job = every[name](subject)
    found = measure(job, rounds)
    found["memory MB"] = {
        variant: float(_child("--memory-of", f"{name}:{variant}")) for variant in job.memory
    }
    found["reaches"] = judge(job, found)
    facts |= {
        "place": list(every).index(name),
        "threads": torch.get_num_threads(),
        "jobs at a time": concurrent,
        "model": subject.name,
    }
    write_bytes(folder / f"{name}.json", json.dumps({"name": name, **facts, **found}, indent=1).encode())


def _child(*args: str, threads: int | None = None) -> str:
    return last_line("-m", "tests.benchmarks", *args, threads=threads)


def last_line(*args: str, threads: int | None = None) -> str:
    """What a Python process of its own, run in the checkout, prints last."""
    env = dict(os.environ)
    if threads is not None:
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *args], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(args)} failed")
    return done.stdout.strip().rpartition("\n")[2]


# -- the table -------------------------------------------------------------------------------------------------------


def load(folder: Path = DATA) -> list[dict[str, Any]]:
    """Every job that was measured, in the order of the jobs."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda f: (f["place"], f["name"]))


def table(found: Sequence[Mapping[str, Any]]) -> Any:
    """A rich table: one row a reach."""
    from rich.table import Table

    out = Table(title="medians of per-round ratios, CPU time", title_justify="left")
    for column in ("job", "reach", "measured", "95 %", "wall", "", "equal to"):
        out.add_column(column, overflow="fold")
    for job in found:
        equal = "" if job["equal"] is None else f"{job['equal']['difference']:.1e}"
        if job["equal"] is not None and not job["equal"]["met"]:
            equal += f" > {job['equal']['tolerance']:.0e}"
        for i, reach in enumerate(job["reaches"]):
            spread = "" if reach["wall"] is None else f"{reach['low']:.3g} to {reach['high']:.3g}"
            wall = "" if reach["wall"] is None else f"{reach['wall']:.3g}"
            met = "met" if reach["met"] else "missed"
            first = (job["title"], equal) if i == 0 else ("", "")
            out.add_row(first[0], reach["text"], f"{reach['value']:.3g}", spread, wall, met, first[1])
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Measure jobs, each in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", metavar="NAME", help="only these; default all")
    parser.add_argument("--threads", type=int, default=1, help="threads of a job")
    parser.add_argument("--workers", type=int, default=1, help="jobs at a time, for as many free cores")
    parser.add_argument("--again", action="store_true", help="measure also what has a file already")
    parser.add_argument("--list", action="store_true", help="say which jobs there are")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the files, one a job")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    every = builders()
    if args.memory_of:
        import interp

        name, _, variant = args.memory_of.partition(":")
        job = every[name](interp.load("smollm2"))
        gc.collect()
        print(peak_mb(job.memory[variant]))
        return
    if args.child:
        run_job(args.child, args.rounds, args.out.resolve(), args.workers)
        return
    names = args.jobs or list(every)
    if set(names) - set(every):
        parser.error(f"no job {', '.join(sorted(set(names) - set(every)))}; there are {', '.join(every)}")
    if args.list:
        for name in names:
            build = getattr(every[name], "func", every[name])  # of a partial, what it is of
            print(f"{name:24}{(build.__doc__ or '').strip().partition(chr(10))[0]}")
        return
    missing = [name for name in names if args.again or not (args.out / f"{name}.json").exists()]
    own = ("--rounds", str(args.rounds), "--workers", str(args.workers), "--out", str(args.out.resolve()))

    def one(name: str) -> None:
        start = time.perf_counter()
        _child("--child", name, *own, threads=args.threads)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(one, missing))
    from rich.console import Console

    Console().print(table([job for job in load(args.out) if job["name"] in names]))
