"""The tasks that are still in, and the rows that are out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gvm_ray.data.rejection import Rejection
from gvm_ray.data.report import Dropped
from gvm_ray.envs.task import Task


@dataclass(kw_only=True)
class Pile:
    """Tasks with file and line of each."""

    num_read: int = 0
    tasks: list[Task] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    kept_unverified: list[Dropped] = field(default_factory=list)
    num_common_ngrams: int = 0

    def drop(self, rejections: Mapping[int, Rejection]) -> None:
        """Take these tasks out, by index."""
        self.dropped += self.rejected(rejections)
        kept = [index for index in range(len(self.tasks)) if index not in rejections]
        self.tasks, self.places = [self.tasks[index] for index in kept], [self.places[index] for index in kept]

    def rejected(self, rejections: Mapping[int, Rejection]) -> list[Dropped]:
        """What the report says of these tasks."""
        return [
            Dropped(
                prompt_id=self.tasks[index].prompt_id,
                where=self.places[index],
                reason=rejection.reason,
                detail=rejection.detail,
            )
            for index, rejection in sorted(rejections.items())
        ]
