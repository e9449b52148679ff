"""`python -m tests.benchmarks`: see `harness`."""

from tests.benchmarks.harness import main

main()
