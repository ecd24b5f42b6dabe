"""An engine and a loss that write down how many threads their process computes with."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gvm_ray.engines.transformers import TransformersEngine


class ThreadCountingEngine(TransformersEngine):
    """Writes its number of threads beside the model's folder whenever it is given work."""

    def __init__(self, model_path: str, **parameters: Any) -> None:
        super().__init__(model_path, **parameters)
        self._file = Path(model_path).parent / "generator-threads"

    def add(self, *arguments: Any) -> None:
        self._file.write_text(str(torch.get_num_threads()))
        super().add(*arguments)


def surrogate(logprobs: Tensor, *, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, file: str) -> Tensor:
    """The policy gradient's loss; writes the learner's number of threads into a file."""
    Path(file).write_text(str(torch.get_num_threads()))
    return -(logprobs - old_logprobs).exp() * advantages * mask
