"""Errors a user can act on: what was wrong, where, and what to write instead.

Every error raised on purpose by `interp` is an `InterpError`; the command line prints its one line and leaves with
its `exit_code` (2: usage or configuration, 3: a missing resource, 1: a part of the work failed).
"""

from __future__ import annotations


class InterpError(Exception):
    """Base of all errors that `interp` raises on purpose."""

    exit_code = 1


class UsageError(InterpError, ValueError):
    """Bad input or configuration: a head that does not exist, an unknown mode, a run folder of another spec."""

    exit_code = 2


class MissingResource(InterpError):
    """Something that has to be there is not: a model, a tokenizer, a browser, a file."""

    exit_code = 3


class UnknownArchitecture(UsageError):
    """The module tree of the model matches no row of the site table."""


class BrokenData(UsageError):
    """A data file or an example that breaks the contract; the message names the file and the line."""


class EngineError(InterpError, RuntimeError):
    """A tap did not fire as often as it should, or an engine was asked for something it cannot do."""


class NoAcceptedExample(InterpError):
    """A score or an effect would be an average over zero items."""


class AtChance(InterpError):
    """The clean model is at chance on the task, so no effect can be reported (the floor rule)."""
