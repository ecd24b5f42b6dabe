"""Settings of a run: closed pydantic models, TOML on disk. Imports no torch, ray, vllm or transformers."""

from gvm_ray.config.data import DataConfig
from gvm_ray.config.lab import ComparisonConfig, EstimatorConfig, PredictionConfig
from gvm_ray.config.load import load_comparison, load_config, load_estimator, load_prediction, parse_config, parse_data
from gvm_ray.config.run import RunConfig
from gvm_ray.settings import Settings

__all__ = [
    "ComparisonConfig",
    "DataConfig",
    "EstimatorConfig",
    "PredictionConfig",
    "RunConfig",
    "Settings",
    "load_comparison",
    "load_config",
    "load_estimator",
    "load_prediction",
    "parse_config",
    "parse_data",
]
