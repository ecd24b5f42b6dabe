"""Outcomes on their way to the allocator: a few long arrays in place of thousands of short ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.types import BoolArray, Float64Array, GroupOutcome, GroupRef, IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class OutcomeColumns:
    """The fields of G outcomes end to end, N samples in all. References to token-sized groups are left behind.

    Pickling takes time by the array: 1,024 outcomes of 4 samples take about a hundred milliseconds of the driver's
    thread as they are, and six in columns.
    """

    prompt_ids: tuple[str, ...]  # [G]
    sample_indices: tuple[tuple[int, ...], ...]  # [G]
    rewards: Float64Array  # [N]
    num_tokens: IntArray  # [N]
    policy_versions: IntArray  # [N]
    truncated: BoolArray  # [N]
    gradient_norms: Float64Array  # [N] NaN where not computed
    measured: BoolArray  # [G] whether the outcome has gradient norms
    reward_terms: dict[str, Float64Array]  # name -> [N] NaN where the outcome has no such term

    @classmethod
    def of(cls, outcomes: Sequence[GroupOutcome]) -> "OutcomeColumns":
        """The columns of some outcomes."""
        unmeasured = [np.full(len(o.rewards), np.nan) for o in outcomes]
        names = dict.fromkeys(name for outcome in outcomes for name in outcome.reward_terms)
        pairs = list(zip(outcomes, unmeasured, strict=True))
        return cls(
            prompt_ids=tuple(outcome.prompt_id for outcome in outcomes),
            sample_indices=tuple(outcome.sample_indices for outcome in outcomes),
            rewards=_concatenate([o.rewards for o in outcomes], np.float64),
            num_tokens=_concatenate([o.num_tokens for o in outcomes], np.int32),
            policy_versions=_concatenate([o.policy_versions for o in outcomes], np.int32),
            truncated=_concatenate([o.truncated for o in outcomes], np.bool_),
            gradient_norms=_concatenate(
                [nan if o.gradient_norms is None else o.gradient_norms for o, nan in pairs], np.float64
            ),
            measured=np.array([outcome.gradient_norms is not None for outcome in outcomes], dtype=np.bool_),
            reward_terms={
                name: _concatenate([o.reward_terms.get(name, nan) for o, nan in pairs], np.float64) for name in names
            },
        )

    def outcomes(self) -> list[GroupOutcome]:
        """The outcomes again; their arrays are views, and their refs name no object."""
        ends = np.cumsum([len(indices) for indices in self.sample_indices], dtype=np.int64).tolist()
        parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return [
            GroupOutcome(
                prompt_id=prompt_id,
                sample_indices=indices,
                rewards=self.rewards[part],
                num_tokens=self.num_tokens[part],
                policy_versions=self.policy_versions[part],
                truncated=self.truncated[part],
                ref=GroupRef(ref=None, index=0),
                gradient_norms=self.gradient_norms[part] if measured else None,
                reward_terms={name: values[part] for name, values in self.reward_terms.items()},
            )
            for prompt_id, indices, part, measured in zip(
                self.prompt_ids, self.sample_indices, parts, self.measured.tolist(), strict=True
            )
        ]


def _concatenate(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays])
