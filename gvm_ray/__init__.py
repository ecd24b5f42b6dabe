"""Reinforcement learning for reasoning models with a dynamic sampling budget, on Ray.

The public names load on first use, so that `import gvm_ray` imports neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gvm_ray.benchmarks.evaluate import evaluate_benchmarks
    from gvm_ray.config import load_config
    from gvm_ray.run import evaluate, train
    from gvm_ray.trainer import Trainer

__version__ = "0.2.0"
__all__ = ["Trainer", "__version__", "evaluate", "evaluate_benchmarks", "load_config", "train"]

_MODULE_OF = {
    "Trainer": "gvm_ray.trainer",
    "evaluate": "gvm_ray.run",
    "evaluate_benchmarks": "gvm_ray.benchmarks.evaluate",
    "load_config": "gvm_ray.config",
    "train": "gvm_ray.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gvm_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
