"""What is still to be sampled, in pieces of prompts that are kept as soon as they are finished."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from gvm_ray.benchmarks.samples import SampleFile
from gvm_ray.types import Prompt, RolloutGroup

PROMPTS_PER_PIECE = 64
_PIECES_AT_ONCE = 2  # the next one keeps the generators busy while the longest responses of one are finished

Sampler = Callable[[Sequence[Prompt]], Awaitable[list[RolloutGroup]]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A benchmark's prompts, and the file for their samples."""

    label: str
    prompts: Sequence[Prompt]
    file: SampleFile

    @property
    def missing(self) -> list[Prompt]:
        """Prompts whose samples aren't in the file."""
        return [prompt for prompt in self.prompts if prompt.prompt_id not in self.file.finished]

    def __str__(self) -> str:
        return f"{self.label}: {len(self.prompts) - len(self.missing)} of {len(self.prompts)} prompts"


async def sample_missing(work: Sequence[Work], sample: Sampler, *, on_piece: Callable[[Work], None]) -> None:
    """Sample what is missing, a few pieces at once, in order; `on_piece` is called once a piece is in its file."""
    gate = asyncio.Semaphore(_PIECES_AT_ONCE)

    async def finish(part: Work, piece: Sequence[Prompt]) -> None:
        async with gate:
            part.file.append(await sample(piece))
        on_piece(part)

    async with asyncio.TaskGroup() as tasks:
        for part in work:
            missing = part.missing
            for start in range(0, len(missing), PROMPTS_PER_PIECE):
                tasks.create_task(finish(part, missing[start : start + PROMPTS_PER_PIECE]))
