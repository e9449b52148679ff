"""How long `import interp`, `interp --help` and loading the default model take in a new process."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time

REPEATS = 7

CASES = {
    "python alone": "pass",
    "import interp": "import interp",
    "interp --help": "import sys; sys.argv = ['interp', '--help']; from interp.cli import app; app()",
    "interp.load('smollm2')": "import interp; interp.load('smollm2')",
}


def once(code: str) -> tuple[float, float]:
    """Wall and CPU seconds of one new process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=os.environ)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    # Interleaved, so that a busy moment of the machine falls on all cases alike.
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(REPEATS):
        for name, code in CASES.items():
            times[name].append(once(code))
    print(f"{'median of ' + str(REPEATS):24}{'wall s':>8}{'CPU s':>8}")
    for name, measured in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name:24}{wall:8.2f}{cpu:8.2f}")


if __name__ == "__main__":
    main()
