"""What checks the shapes that jaxtyping writes in signatures while the tests run.

Only annotations that hold a shape are checked: it costs little, and annotations that are imported for type checkers
alone, or protocols that cannot be asked at run time, are left alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype._check.code import codemain

# Of a sequence one item is checked, drawn at random: from a generator of its own, since tests hold code to leaving the
# global one alone.
codemain.getrandbits = random.Random(0).getrandbits  # type: ignore[attr-defined]

_SHAPE = re.compile(r"\b(Float|Int|Integer|Bool|Num|Real|Shaped|Complex|UInt)\d*\[")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with those arguments checked whose annotations hold shapes.

    jaxtyping hands over stand-ins that have the signature of the function that is checked, and nothing else.
    """
    shapes = {name: it for name, it in function.__annotations__.items() if _SHAPE.search(str(it))}
    if not shapes:
        return function
    function.__annotations__ = shapes
    return beartype(function)
