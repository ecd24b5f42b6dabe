"""Settings of a run: closed pydantic models, TOML on disk. Imports no torch, ray, vllm or transformers."""

from gvm_ray.config.arena import ArenaConfig
from gvm_ray.config.base import Settings
from gvm_ray.config.load import load_arena, load_config, parse_config
from gvm_ray.config.run import RunConfig

__all__ = ["ArenaConfig", "RunConfig", "Settings", "load_arena", "load_config", "parse_config"]
