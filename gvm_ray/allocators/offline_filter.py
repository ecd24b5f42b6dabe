"""The filter that data is often put through before training: only prompts that are neither solved nor hopeless."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from gvm_ray.allocators.history import PromptHistory, sample_indices
from gvm_ray.allocators.selection import num_groups, report_selection, reward_ranges, unique_ids
from gvm_ray.config.selecting_allocators import OfflineFilterAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.functional.allocation import apportion
from gvm_ray.functional.statistics import divisible_rates
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, FloatArray, Prompt

_ACCEPT_RATES = TypeAdapter(dict[str, Annotated[float, Field(ge=0, le=1)]])


class OfflineFilterAllocator:
    """Groups for the candidates known to be within the bounds; where those are too few, others are measured first.

    Measured prompts that are within them as well get a group too, and the share of the others goes to all of these.
    """

    def __init__(self, config: OfflineFilterAllocatorConfig, *, accept_threshold: float) -> None:
        """An allocator that knows the accept rates of the file, where there is one.

        Raises:
            ConfigError: accept_rates_path is no JSON object of accept rates.
        """
        self._config = config
        self._history = PromptHistory(accept_threshold=accept_threshold)
        self._rates: dict[str, float] = {}  # prompt_id -> accept rate as it was measured
        if config.accept_rates_path is not None:
            self._rates = _load_accept_rates(Path(config.accept_rates_path))

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """A round that measures, where prompts have to be, and one for the rest of the budget."""
        config = self._config
        ids = unique_ids(prompts)
        samples = self._history.start_step(ids)
        wanted = num_groups(budget, group_size=config.group_size, num_candidates=len(ids))
        known = self._inside(ids)[:wanted]
        room = (budget - config.group_size * len(known)) // config.first_visit_samples
        unmeasured = [prompt_id for prompt_id in ids if prompt_id not in self._rates]
        measured = dict.fromkeys(unmeasured[: max(room, 0)], config.measurement_samples)
        outcomes = yield Allocation(counts=measured, trained_on=config.train_on_measurements)
        samples.fold(outcomes)
        rates = dict(zip(ids, samples.accept_rates().tolist(), strict=True))
        self._rates |= {prompt_id: rates[prompt_id] for prompt_id in reward_ranges(outcomes)}
        inside = known + self._inside(list(measured))
        drawn = measured if config.train_on_measurements else {}
        left = budget - sum(measured.values())
        rest = _fill_evenly(inside or self._outside(ids, drawn, budget=left), drawn, budget=left)
        samples.fold((yield Allocation(counts=rest)))
        return report_selection(
            samples,
            ids,
            {prompt_id: drawn.get(prompt_id, 0) + rest.get(prompt_id, 0) for prompt_id in [*drawn, *rest]},
            accept_rates=self._divisors([*drawn, *rest]),
            pilots=sample_indices(outcomes),
            estimates={"allocation/measured": float(len(measured)), "allocation/inside": float(len(inside))},
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts of every prompt sampled, and the accept rate of every prompt measured."""
        return {**self._history.state_dict(), "accept_rates": dict(self._rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
        self._rates = dict(state["accept_rates"])

    def _inside(self, prompt_ids: Sequence[str]) -> list[str]:
        """Those measured within the bounds."""
        low, high = self._config.min_accept_rate, self._config.max_accept_rate
        return [id_ for id_ in prompt_ids if id_ in self._rates and low < self._rates[id_] < high]

    def _divisors(self, prompt_ids: Sequence[str]) -> dict[str, float]:
        """Measured accept rates, none of them 0; of a prompt whose samples could not be scored, the prior's 1/2."""
        rates = divisible_rates([self._rates.get(id_, 0.5) for id_ in prompt_ids], self._config.measurement_samples)
        return dict(zip(prompt_ids, rates.tolist(), strict=True))

    def _outside(self, prompt_ids: Sequence[str], drawn: Mapping[str, int], *, budget: int) -> list[str]:
        """As many of those nearest the bounds as the budget fills up to a group; else one that has samples already."""
        chosen: list[str] = []
        for prompt_id in self._nearest(prompt_ids):
            budget -= self._config.group_size - drawn.get(prompt_id, 0)
            if budget < 0:
                break
            chosen.append(prompt_id)
        return chosen or self._nearest(list(drawn) or prompt_ids)[:1]

    def _nearest(self, prompt_ids: Sequence[str]) -> list[str]:
        """By distance from the middle between the bounds, unmeasured prompts last."""
        middle = (self._config.min_accept_rate + self._config.max_accept_rate) / 2
        return sorted(prompt_ids, key=lambda prompt_id: abs(self._rates.get(prompt_id, np.inf) - middle))


def _fill_evenly(prompt_ids: Sequence[str], drawn: Mapping[str, int], *, budget: int) -> dict[str, int]:
    """prompt_id -> further samples, so that with those `drawn` all have as many as each other."""
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
            f"allocator.accept_rates_path={str(path)!r} is no JSON object of prompt_id -> accept rate in [0, 1]"
            f"{where and f', at {where}'}: {first['msg']}"
        ) from error
