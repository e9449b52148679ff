"""What a study of indirect object identification does: every size in one frozen spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from interp.studies.base import StudySpec

StageName = Literal[
    "direct", "mover_q", "mover_k", "mover_v", "suppressor_q", "suppressor_k", "inhibition_q", "inhibition_v",
    "inhibition_k", "induction_k",
]  # fmt: skip
STAGES: tuple[StageName, ...] = get_args(StageName)


class IOISpec(StudySpec):
    """A study of the circuit for indirect objects; two runs of the same spec and weights give the same tables.

    Heads are found on prompts of `seed` and confirmed on those of `seed + 1`, which have other names, places, objects.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {"n": 32, "held": 32, "controls": 4, "draws": 500}

    stages: tuple[StageName, ...] = Field(STAGES, description="paths that are patched, see `classes`")
    n: int = Field(
        192, ge=2, description="prompts that heads are found on; 32 are each template in both orders"
    )
    held: int = Field(192, ge=2, description="prompts of the other seed")
    corruption: Literal["abc", "s2_io"] = Field("abc", description="twin that senders take their output from")
    freeze_mlps: bool = False

    level: float = Field(0.05, gt=0, lt=1, description="false discovery rate within a stage")
    least: float = Field(
        0.02, ge=0, description="a path counts from this share of the gap to the corrupt run"
    )
    most: int = Field(8, ge=1, description="senders of a stage that are kept, the strongest ones")
    look: float = Field(0.2, ge=0, le=1, description="mass of attention from which on a head looks at a role")

    controls: int = Field(20, ge=0, description="matched sets of heads beside each class and the circuit")
    draws: int = Field(2000, ge=1, description="permutations of the scores from weights")
