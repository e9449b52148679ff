"""What a study of indirect object identification does: every size in one frozen spec."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

StageName = Literal[
    "direct", "mover_q", "mover_k", "mover_v", "suppressor_q", "suppressor_k", "inhibition_q", "inhibition_v",
    "inhibition_k", "induction_k",
]  # fmt: skip
STAGES: tuple[StageName, ...] = get_args(StageName)


class IOISpec(BaseModel):
    """A study of the circuit for indirect objects; two runs of the same spec and weights give the same tables.

    Heads are found on prompts of `seed` and confirmed on those of `seed + 1`, which have other names, places, objects.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    seed: int = Field(0, ge=0)
    device: str = "auto"
    dtype: str = "auto"

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

    @classmethod
    def quick(cls, model: str, **changes: Any) -> IOISpec:
        """The same parts on fewer prompts, to see whether all of it runs."""
        return cls(model=model, **{"n": 32, "held": 32, "controls": 4, "draws": 500, **changes})
