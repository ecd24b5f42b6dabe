"""The stream of training prompts, epoch after epoch, with a cursor for checkpoints."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gvm_ray.exceptions import CheckpointError, DataError
from gvm_ray.types import Prompt


@dataclass(kw_only=True)
class _Cursor:
    """The stream's position; prompts are indices into the set."""

    epoch: int = 0
    position: int = 0  # in the epoch's order
    deferred: list[int] = field(default_factory=list)  # this epoch's prompts skipped at its beginning, next in line
    window: list[int] = field(default_factory=list)  # returned since the current window began
    blocked: list[int] = field(default_factory=list)  # the window's prompts from the previous epoch


class ShuffledPrompts:
    """Implements `protocols.PromptStream`: whole epochs, each in an order of its own drawn from (seed, epoch).

    The stream is cut into windows of `unique_within` prompts, counted from its start, and no prompt occurs twice in a
    window. If a window crosses into the next epoch, prompts that it already has are skipped and come first in the next
    window. The sequence doesn't depend on the number of prompts in each call, so `peek` shows exactly what later calls
    of `next` will return.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool, unique_within: int) -> None:
        """A stream at its start.

        Args:
            prompts: The set, at least `unique_within` prompts with distinct ids.
            seed: Of the epochs' orders.
            shuffle: False keeps the order of `prompts` in every epoch.
            unique_within: The window: the prompts of one step, or of all steps that share an allocation.

        Raises:
            DataError: the set is smaller than a window.
        """
        if not 1 <= unique_within <= len(prompts):
            raise DataError(
                f"{len(prompts)} training prompts, but the steps that share an allocation need {unique_within} "
                "different ones; lower prompts_per_step or allocator.block_steps, or give more prompts"
            )
        self._prompts = tuple(prompts)
        self._seed = seed
        self._shuffle = shuffle
        self._unique_within = unique_within
        self._cursor = _Cursor()
        self._latest_order: tuple[int, list[int]] | None = None  # (epoch, order), cached: a set may be large

    def __len__(self) -> int:
        """The number of prompts in the set."""
        return len(self._prompts)

    def next(self, num_prompts: int) -> list[Prompt]:
        """The next prompts; the cursor moves past them."""
        taken: list[Prompt] = []
        cursor = self._cursor
        order = self._order(cursor.epoch)
        while len(taken) < num_prompts:
            if cursor.position == len(order) and not cursor.deferred:
                cursor.epoch, cursor.position = cursor.epoch + 1, 0
                cursor.blocked = list(cursor.window)
                order = self._order(cursor.epoch)
            if cursor.deferred and not cursor.blocked:
                index = cursor.deferred.pop(0)
            else:
                while order[cursor.position] in cursor.blocked:
                    cursor.deferred.append(order[cursor.position])
                    cursor.position += 1
                index = order[cursor.position]
                cursor.position += 1
            taken.append(self._prompts[index])
            cursor.window.append(index)
            if len(cursor.window) == self._unique_within:
                cursor.window, cursor.blocked = [], []
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The cursor and a fingerprint of the set, as plain JSON values; each list is at most a window long."""
        return {
            **asdict(self._cursor),
            "num_prompts": len(self._prompts),
            "unique_within": self._unique_within,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken. If `unique_within` has changed since, a new window begins there.

        Raises:
            CheckpointError: the state belongs to other prompts, another order of them, or another seed.
        """
        if state["num_prompts"] != len(self._prompts):
            raise CheckpointError(
                f"the checkpoint was made with {state['num_prompts']} training prompts, and now there are "
                f"{len(self._prompts)}; resume with the prompts settings and data of the checkpoint, or start a new run"
            )
        if state["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                "the checkpoint was made with other training prompts, another order of them or another seed; resume "
                "with the prompts settings, data and seed of the checkpoint, or start a new run"
            )
        same_window = state["unique_within"] == self._unique_within
        self._cursor = _Cursor(
            epoch=state["epoch"],
            position=state["position"],
            deferred=list(state["deferred"]),
            window=list(state["window"]) if same_window else [],
            blocked=list(state["blocked"]) if same_window else [],
        )

    def _order(self, epoch: int) -> Sequence[int]:
        if not self._shuffle:
            return range(len(self._prompts))
        if self._latest_order is None or self._latest_order[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._prompts))
            self._latest_order = (epoch, order.tolist())
        return self._latest_order[1]

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self._seed if self._shuffle else 'in order'}".encode())
        for prompt in self._prompts:
            digest.update(b"\0" + prompt.prompt_id.encode())
        return digest.hexdigest()[:16]
