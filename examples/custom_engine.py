"""An engine of your own: one class that satisfies `gvm_ray.protocols.Engine`, named in the config.

This one is the transformers engine with a report of its speed now and then:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-engine \
        --set engine.type=custom --set engine.path=custom_engine:ReportingEngine
"""

import logging
import time
from typing import Any

from gvm_ray.engines.transformers import TransformersEngine
from gvm_ray.types import Completion, SampleRequest

logger = logging.getLogger(__name__)

REPORT_EVERY_TOKENS = 100_000


class ReportingEngine(TransformersEngine):
    """Logs tokens per second of engine time; the lines are in the generator actor's log."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._num_tokens, self._seconds = 0, 0.0

    def step(self) -> list[tuple[SampleRequest, tuple[Completion, ...]]]:
        start = time.perf_counter()
        finished = super().step()
        self._seconds += time.perf_counter() - start
        self._num_tokens += sum(len(completion.token_ids) for _, group in finished for completion in group)
        if self._num_tokens >= REPORT_EVERY_TOKENS:
            logger.warning("%.0f tokens/s", self._num_tokens / self._seconds)
            self._num_tokens, self._seconds = 0, 0.0
        return finished
