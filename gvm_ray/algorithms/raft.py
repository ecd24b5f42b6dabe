"""RAFT (arXiv 2304.06767) and RAFT++ (arXiv 2504.11343): learn from the accepted samples alone.

They share the batch and differ in the token loss: RAFT++ has the importance ratio and its clip.
"""

from collections.abc import Sequence

from gvm_ray.algorithms.base import sample_weights, scored_samples, train_batch
from gvm_ray.config.strategy import RaftConfig, RaftPlusPlusConfig
from gvm_ray.types import EstimatorTerms, GroupOutcome, TrainBatch


class Raft:
    """Advantage 1 for a sample whose reward is at least `accept_threshold`; the others are not trained on."""

    def __init__(self, config: RaftConfig | RaftPlusPlusConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._accept_threshold = accept_threshold

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """The accepted samples; see `Algorithm.build_batch`."""
        samples = scored_samples(outcomes, accept_threshold=self._accept_threshold, terms=terms)
        weights = sample_weights(
            samples,
            weighting=self._config.weighting,
            averaged=samples.accepted,
            accept_rates=terms.accept_rates,
        )
        return train_batch(
            samples,
            step=step,
            advantages=samples.accepted.astype(float),
            weights=weights,
            keep=samples.accepted & (weights > 0),  # pilots may be part of no sum
        )
