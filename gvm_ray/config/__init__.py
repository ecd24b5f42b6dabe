"""Settings of a run: closed pydantic models, TOML on disk. Imports no torch, ray, vllm or transformers."""

from gvm_ray.config.data import DataConfig
from gvm_ray.config.lab import ComparisonConfig, EstimatorConfig
from gvm_ray.config.load import load_comparison, load_config, load_estimator, parse_config, parse_data
from gvm_ray.config.run import RunConfig
from gvm_ray.settings import Settings

__all__ = [
    "ComparisonConfig",
    "DataConfig",
    "EstimatorConfig",
    "RunConfig",
    "Settings",
    "load_comparison",
    "load_config",
    "load_estimator",
    "parse_config",
    "parse_data",
]
