"""Finished models on published benchmarks: samples that are kept, and tables with intervals made of them."""

from gvm_ray.benchmarks.evaluate import evaluate_benchmarks
from gvm_ray.benchmarks.results import BenchmarkResult, ModelResult

__all__ = ["BenchmarkResult", "ModelResult", "evaluate_benchmarks"]
