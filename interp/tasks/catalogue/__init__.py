"""The tasks that ship, by family: what each is, where it comes from, its parameters, and the ladder it is measured on.

Nothing is imported here: `TaskInfo.load` imports a task when it is first asked for. Ladders were fixed before any model
was measured on them; `interp tasks run` shows every rung.
"""

from __future__ import annotations

from interp.tasks.catalogue.context import ASSOCIATIVE, BIOGRAPHIES, LONG_CONTEXT, ORDER
from interp.tasks.catalogue.info import LENGTHS, TaskInfo
from interp.tasks.catalogue.memory import INTERFERENCE, KNOWLEDGE, LISTS_AND_NAMES, OTHER, WORKING_MEMORY

__all__ = ["BUILT_IN", "LENGTHS", "TaskInfo"]

BUILT_IN = (
    *ASSOCIATIVE,
    *LONG_CONTEXT,
    *BIOGRAPHIES,
    *ORDER,
    *INTERFERENCE,
    *WORKING_MEMORY,
    *KNOWLEDGE,
    *LISTS_AND_NAMES,
    *OTHER,
)
"""All of them, in the order of the families."""
