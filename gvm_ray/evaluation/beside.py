"""Held-out accuracy while training goes on: by generators of its own, each time of one policy."""

import asyncio
import logging
from collections.abc import Callable

from gvm_ray.protocols import Evaluator, RolloutPools
from gvm_ray.types import Metrics, WeightsRef

logger = logging.getLogger(__name__)


class EvaluationBeside:
    """Evaluates one policy after the other; training waits where the one before isn't through yet.

    Args:
        evaluator: asks `pools`.
        pools: nothing else samples by them.
        log: is given the step that a policy comes of, and its metrics.
    """

    def __init__(self, evaluator: Evaluator, pools: RolloutPools, *, log: Callable[[int, Metrics], None]) -> None:
        self._evaluator = evaluator
        self._pools = pools
        self._log = log
        self._under_way: asyncio.Task[None] | None = None

    async def begin(self, step: int, weights: WeightsRef, tasks: asyncio.TaskGroup) -> None:
        """Evaluate the policy of a step in a task of the group; returns when that has begun."""
        if self._under_way is not None:
            await self._under_way
        self._under_way = tasks.create_task(self._evaluate(step, weights))

    async def _evaluate(self, step: int, weights: WeightsRef) -> None:
        await self._pools.publish(weights)
        metrics = await self._evaluator.evaluate()
        if metrics.get("eval/policy_version", weights.policy_version) == weights.policy_version:
            self._log(step, metrics)
        else:  # the weights were lost with the learners, which have published later ones since
            logger.warning("step %d has no evaluation: its weights were lost in a failure", step)
