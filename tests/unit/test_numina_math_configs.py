"""The parts in configs/numina_math: each combination is a run, and is planned; methods differ in nothing else."""

import itertools
from pathlib import Path

import pytest

from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.cli import main
from gvm_ray.config import RunConfig, load_config
from gvm_ray.exceptions import ConfigError
from tests.model_shapes import SHAPES, write_shape

FOLDER = Path(__file__).parents[2] / "configs" / "numina_math"
METHODS = ("gvm_raft++", "gvm_grpo", "raft++", "grpo")
MACHINES = ("1gpu", "8gpu", "2x8gpu")
TOO_LARGE = {("qwen2.5-math-7b", "1gpu"), ("llama-3.2-3b-instruct", "1gpu")}  # for 80 GiB


def files(*names: str) -> list[str]:
    return [str(FOLDER / f"{name}.toml") for name in ("paper", *names)]


def load(*names: str) -> RunConfig:
    return load_config(files(*names))


def test_every_file_is_a_part_of_some_run() -> None:
    names = {path.stem for path in FOLDER.glob("*.toml")}
    assert names == {"paper", "as_published", *SHAPES, *METHODS, *MACHINES}


@pytest.mark.parametrize(("model", "method", "machine"), [*itertools.product(SHAPES, METHODS, MACHINES)])
def test_dry_run(
    model: str,
    method: str,
    machine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi: planned against 80 GiB
    path = write_shape(tmp_path / model, model)
    code = main(["train", *files(model, method, machine), "--dry-run", "--set", f"model.path={path}"])
    output = capsys.readouterr()
    assert f"runs/{model}/{method}\n" in output.out
    assert "generator cache" in output.out
    if (model, machine) in TOO_LARGE:
        assert code == 2
        assert "GPU with learner rank + generator needs about" in output.err
        assert "learner.num_workers=1" in output.err
    else:
        assert code == 0
        assert output.err == ""


def test_3b_fits_a_gpu_of_141_gib(tmp_path: Path) -> None:
    path = write_shape(tmp_path, "llama-3.2-3b-instruct")
    settings = ["--set", f"model.path={path}", "--set", "cluster.gpu_memory_gib=141"]
    assert main(["train", *files("llama-3.2-3b-instruct", "grpo", "1gpu"), "--dry-run", *settings]) == 0


@pytest.mark.parametrize("model", SHAPES)
def test_methods_differ_only_in_allocator_and_algorithm(model: str) -> None:
    configs = [load(model, method, "8gpu") for method in METHODS]
    rest = [config.model_dump(exclude={"name", "allocator", "algorithm"}) for config in configs]
    assert rest == [rest[0]] * 4
    algorithms = [
        config.algorithm.model_dump(exclude={"type", "epsilon", "tolerance", "advantage_normalization"})
        for config in configs
    ]
    assert algorithms == [algorithms[0]] * 4
    assert [(config.allocator.type, config.algorithm.type) for config in configs] == [
        ("gvm", "raft++"),
        ("gvm", "grpo"),
        ("uniform", "raft++"),
        ("uniform", "grpo"),
    ]


def test_the_papers_figures() -> None:
    config = load("qwen2.5-math-7b", "grpo", "1gpu")
    assert (config.prompts_per_step, config.samples_per_prompt, config.algorithm.updates_per_batch) == (1024, 8, 4)
    assert (config.prompts.max_tokens, config.sampling.max_tokens, config.sampling.temperature) == (1024, 3072, 1.0)
    assert config.learner.optimizer.learning_rate == 1e-6
    assert (config.algorithm.kl.coefficient, config.algorithm.kl.kind) == (0.001, "k3")
    assert (config.algorithm.clip_low, config.algorithm.clip_high) == (0.2, 0.2)
    assert config.evaluation.temperature == 0.7


@pytest.mark.parametrize("method", ["gvm_raft++", "gvm_grpo"])
@pytest.mark.parametrize("machine", MACHINES)
def test_as_published_has_its_pilots_besides_the_samples(method: str, machine: str) -> None:
    config = load("qwen2.5-math-1.5b", method, machine, "as_published")
    assert isinstance(config.allocator, GVMAllocatorConfig)
    assert config.samples_per_prompt - config.allocator.pilot_samples == 8
    assert (config.allocator.alpha, config.allocator.beta, config.allocator.block_steps) == (1e-3, 2.0, 9)
    assert config.max_staleness == 0
    assert config.num_steps % config.allocator.block_steps == 0


def test_a_later_file_counts_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\n[sampling]\nmax_tokens = 512\n')
    config = load_config([*files("qwen2.5-math-1.5b", "grpo", "1gpu"), tmp_path / "mine.toml"])
    assert (config.name, config.sampling.max_tokens, config.sampling.temperature) == ("mine", 512, 1.0)
    with pytest.raises(ConfigError, match=r"9gpu\.toml' doesn't exist"):
        load("qwen2.5-math-1.5b", "grpo", "9gpu")
    with pytest.raises(ConfigError, match=r"paper\.toml \+ .*grpo\.toml: "):
        load("grpo")  # no model
