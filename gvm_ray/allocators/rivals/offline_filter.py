"""Difficulty filter, as often applied before training: only prompts that are neither solved nor hopeless."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from gvm_ray.allocators.base import Allocator, GroupSize, Report, Rounds, RunShape, SmallestGroup, Step
from gvm_ray.allocators.selection import CandidateAllocatorConfig, num_groups, reward_ranges, sample_indices
from gvm_ray.exceptions import ConfigError
from gvm_ray.maths.allocation import apportion
from gvm_ray.maths.statistics import divisible_rates
from gvm_ray.settings import Probability
from gvm_ray.types import Allocation

_ACCEPT_RATES = TypeAdapter(dict[str, Annotated[float, Field(ge=0, le=1)]])


class OfflineFilterAllocatorConfig(CandidateAllocatorConfig):
    """Difficulty filter: measures each prompt's accept rate once, and drops prompts outside the bounds for good.

    A prompt is measured at its first visit, within the step's budget, so the measurement is charged and spread over the
    first epoch. The cost of rates measured before training, and given in a file, is not part of the run's costs. A step
    without prompts inside the bounds takes the prompts nearest to them.
    """

    type: Literal["offline_filter"] = "offline_filter"
    min_accept_rate: Probability = 0.0  # a prompt is kept if min < rate < max
    max_accept_rate: Probability = 1.0  # 1 and 0 drop only what is always or never solved
    measurement_samples: GroupSize = 8  # of a prompt's first visit, to estimate its rate
    train_on_measurements: bool = True  # measurement samples then count toward the prompt's group
    accept_rates_path: str | None = None  # JSON object prompt_id -> accept rate

    @property
    def knows_accept_rates(self) -> bool:
        """True: they are measured, and measurement samples are left out of the `inverse` sum."""
        return True

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The measurement of a prompt outside the bounds, if it is trained on; else the group size."""
        if self.train_on_measurements:
            return SmallestGroup(setting="allocator.measurement_samples", value=self.measurement_samples)
        return super().smallest_group(run)

    @property
    def first_visit_samples(self) -> int:
        """The number of samples that an unmeasured prompt takes of the budget."""
        return self.group_size if self.train_on_measurements else self.group_size + self.measurement_samples

    @model_validator(mode="after")
    def _consistent(self) -> "OfflineFilterAllocatorConfig":
        if self.min_accept_rate >= self.max_accept_rate:
            raise ValueError(
                f"min_accept_rate={self.min_accept_rate} is not below max_accept_rate={self.max_accept_rate}, so no "
                "prompt would be kept; write e.g. min_accept_rate=0, max_accept_rate=1"
            )
        if self.train_on_measurements and self.measurement_samples > self.group_size:
            raise ValueError(
                f"measurement_samples={self.measurement_samples} is above group_size={self.group_size}, but with "
                f"train_on_measurements they are part of the group; write {self.group_size} or less, or "
                "train_on_measurements=false"
            )
        return self

    def check_fits(self, run: RunShape) -> None:
        """Check the group size and candidates, and that a step can measure and sample a prompt."""
        super().check_fits(run)
        budget = run.prompts_per_step * run.samples_per_prompt
        if self.first_visit_samples > budget:
            raise ValueError(
                f"allocator.measurement_samples={self.measurement_samples} + group_size={self.group_size} is above the "
                f"step's budget of {budget} samples; lower either"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "OfflineFilterAllocator":
        """Create the strategy."""
        return OfflineFilterAllocator(self)


class OfflineFilterAllocator(Allocator):
    """Give groups to candidates known to be within the bounds; if they are too few, measure other candidates first.

    Newly measured prompts within the bounds get a group too. The rest of the budget goes evenly to all these prompts.
    """

    def __init__(self, settings: OfflineFilterAllocatorConfig) -> None:
        """Create the allocator, with the accept rates of `accept_rates_path` if it is set.

        Raises:
            ConfigError: accept_rates_path can't be read, or isn't a JSON object of accept rates.
        """
        self._settings = settings
        self._rates: dict[str, float] = {}  # prompt_id -> measured accept rate
        if settings.accept_rates_path is not None:
            self._rates = _load_accept_rates(Path(settings.accept_rates_path))

    def rounds(self, step: Step) -> Rounds:
        """Measure prompts in a first round, if needed, and spend the rest of the budget in a second."""
        ids, settings = step.ids, self._settings
        wanted = num_groups(step.budget, group_size=settings.group_size, num_candidates=len(ids))
        known = self._inside(ids)[:wanted]
        room = (step.budget - settings.group_size * len(known)) // settings.first_visit_samples
        unmeasured = [prompt_id for prompt_id in ids if prompt_id not in self._rates]
        measured = dict.fromkeys(unmeasured[: max(room, 0)], settings.measurement_samples)
        outcomes = yield Allocation(counts=measured, trained_on=settings.train_on_measurements)
        scored = list(reward_ranges(outcomes))
        self._rates |= zip(scored, step.samples.accept_rates(scored).tolist(), strict=True)
        inside = known + self._inside(list(measured))
        drawn = measured if settings.train_on_measurements else {}
        left = step.budget - sum(measured.values())
        rest = _fill_evenly(inside or self._outside(ids, drawn, budget=left), drawn, budget=left)
        yield rest
        return Report(
            kept={},
            accept_rates=self._divisors([*drawn, *rest]),
            pilots=sample_indices(outcomes),
            metrics={"allocation/measured": float(len(measured)), "allocation/inside": float(len(inside))},
        )

    def state_dict(self) -> dict[str, Any]:
        """The accept rate of every measured prompt."""
        return {"accept_rates": dict(self._rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._rates = dict(state["accept_rates"])

    def _inside(self, prompt_ids: Sequence[str]) -> list[str]:
        """The prompts that were measured within the bounds."""
        low, high = self._settings.min_accept_rate, self._settings.max_accept_rate
        return [id_ for id_ in prompt_ids if id_ in self._rates and low < self._rates[id_] < high]

    def _divisors(self, prompt_ids: Sequence[str]) -> dict[str, float]:
        """Measured accept rates, raised above 0 to divide by; 1/2 for a prompt whose samples could not be scored."""
        rates = divisible_rates([self._rates.get(id_, 0.5) for id_ in prompt_ids], self._settings.measurement_samples)
        return dict(zip(prompt_ids, rates.tolist(), strict=True))

    def _outside(self, prompt_ids: Sequence[str], drawn: Mapping[str, int], *, budget: int) -> list[str]:
        """The prompts nearest the bounds, as many as the budget completes to groups; if none, the nearest of those with
        samples."""
        chosen: list[str] = []
        for prompt_id in self._nearest(prompt_ids):
            budget -= self._settings.group_size - drawn.get(prompt_id, 0)
            if budget < 0:
                break
            chosen.append(prompt_id)
        return chosen or self._nearest(list(drawn) or prompt_ids)[:1]

    def _nearest(self, prompt_ids: Sequence[str]) -> list[str]:
        """The prompts sorted by distance from the middle of the bounds, unmeasured prompts last."""
        middle = (self._settings.min_accept_rate + self._settings.max_accept_rate) / 2
        return sorted(prompt_ids, key=lambda prompt_id: abs(self._rates.get(prompt_id, np.inf) - middle))


def _fill_evenly(prompt_ids: Sequence[str], drawn: Mapping[str, int], *, budget: int) -> dict[str, int]:
    """prompt_id -> number of further samples that, together with `drawn`, makes all groups equal."""
    before = np.array([drawn.get(prompt_id, 0) for prompt_id in prompt_ids], dtype=np.int64)
    total = apportion(np.ones(len(prompt_ids)), budget=budget + int(before.sum()), minimum=before)
    return dict(zip(prompt_ids, (total - before).tolist(), strict=True))


def _load_accept_rates(path: Path) -> dict[str, float]:
    try:
        return _ACCEPT_RATES.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"allocator.accept_rates_path={str(path)!r} can't be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{key!r}]" for key in first["loc"])
        raise ConfigError(
            f"allocator.accept_rates_path={str(path)!r} isn't a JSON object of prompt_id -> accept rate in [0, 1]"
            f"{where and f', at {where}'}: {first['msg']}"
        ) from error
