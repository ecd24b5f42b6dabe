"""A token loss that the user names by `module:function`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gvm_ray.config.strategy import LossConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.functional.import_path import import_object


@dataclass(frozen=True)
class CustomSurrogate:
    """The function at `path` with its parameters. Each process imports it by itself, so that this can be pickled."""

    path: str
    parameters: Mapping[str, Any]

    @classmethod
    def checked(cls, config: LossConfig) -> "CustomSurrogate":
        """The function that the settings name, tried on a small batch.

        Raises:
            ConfigError: it can't be imported, it raises, or what it returns can't be a loss of every token.
        """
        made = cls(config.path, config.parameters)
        logprobs = torch.tensor([[-0.5, -1.0, -2.0], [-0.1, -0.2, 0.0]], requires_grad=True)
        mask = torch.tensor([[True, True, True], [True, True, False]])
        try:
            losses = made(logprobs, old_logprobs=logprobs.detach(), advantages=torch.tensor([[1.0], [-1.0]]), mask=mask)
        except ImportError as error:
            raise ConfigError(f"algorithm.loss.path: {error}") from error
        except ConfigError:
            raise
        except Exception as error:  # the user's function may raise anything
            raise ConfigError(
                f"algorithm.loss.path: {config.path!r} raised {type(error).__name__} on a small batch: {error}; it is "
                "called with logprobs and the keywords old_logprobs, advantages, mask and those of "
                f"algorithm.loss.parameters ({', '.join(config.parameters) or 'none'})"
            ) from error
        if not losses.requires_grad:
            raise ConfigError(
                f"algorithm.loss.path: what {config.path!r} returns doesn't depend on logprobs, so nothing would be "
                "learned; compute it from logprobs, not from logprobs.detach()"
            )
        return made

    def __call__(self, logprobs: Tensor, **inputs: Any) -> Tensor:
        """[B, T] losses.

        Raises:
            ImportError: the function can't be imported here.
            ConfigError: it returned something else.
        """
        losses = import_object(self.path)(logprobs, **inputs, **self.parameters)
        if not isinstance(losses, Tensor) or losses.shape != logprobs.shape:
            shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ConfigError(
                f"algorithm.loss.path: {self.path!r} returned {shape}; return a tensor with the shape of logprobs, "
                f"{list(logprobs.shape)}: a loss for every token, neither masked nor averaged"
            )
        return losses
