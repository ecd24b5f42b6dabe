"""Whether the gradient norms that were expected of prompts rank them as the measured ones do."""

from collections.abc import Sequence

import numpy as np

from gvm_ray.allocators.predictor import PromptEstimates
from gvm_ray.functional.calibration import rank_correlation
from gvm_ray.types import Metrics, TrainedNorms

_FEWEST_PROMPTS = 3


class NormAgreement:
    """Compares the latest expectations of each prompt with what training then measured of it."""

    def __init__(self) -> None:
        self._expected: dict[str, float] = {}  # prompt_id -> norm of an accepted sample's gradient
        self._correlation: float | None = None

    def expect(self, prompt_ids: Sequence[str], estimates: PromptEstimates) -> None:
        """What is expected of a step's prompts; nothing before the first norms are known."""
        if np.ptp(estimates.accepted_norms) > 0:
            self._expected.update(zip(prompt_ids, estimates.accepted_norms.tolist(), strict=True))

    def observe(self, norms: Sequence[TrainedNorms]) -> None:
        """The norms of a trained batch."""
        measured: dict[str, list[float]] = {}
        for trained in norms:
            values = trained.norms[trained.positive & np.isfinite(trained.norms)]
            if trained.prompt_id in self._expected and values.size:
                measured.setdefault(trained.prompt_id, []).extend(values.tolist())
        if len(measured) >= _FEWEST_PROMPTS:
            expected = [self._expected[prompt_id] for prompt_id in measured]
            self._correlation = rank_correlation(expected, [np.mean(values) for values in measured.values()])

    def metrics(self) -> Metrics:
        """`allocation/norm_rank_correlation` of the last batch that was trained on, once there is one."""
        if self._correlation is None or not np.isfinite(self._correlation):
            return {}
        return {"allocation/norm_rank_correlation": self._correlation}
