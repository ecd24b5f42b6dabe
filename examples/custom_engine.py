"""An engine of your own: one class that satisfies `gvm_ray.protocols.Engine`, named in the config.

This one is the transformers engine with a report of its speed after every call:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-engine \\
        --set engine.type=custom --set engine.path=custom_engine:ReportingEngine
"""

import logging
import time
from collections.abc import Sequence

from gvm_ray.engines.transformers import TransformersEngine
from gvm_ray.types import Completion, SampleRequest, SamplingParameters

logger = logging.getLogger(__name__)


class ReportingEngine(TransformersEngine):
    """Logs tokens per second; the lines are in the generator actor's log."""

    def generate(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> list[tuple[Completion, ...]]:
        start = time.perf_counter()
        completions = super().generate(requests, sampling)
        num_tokens = sum(len(completion.token_ids) for group in completions for completion in group)
        logger.warning("%d tokens, %.0f tokens/s", num_tokens, num_tokens / (time.perf_counter() - start))
        return completions
