"""The command line answers help, dry runs and wrong settings at once: exit codes, one clear error, nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gvm_ray
from gvm_ray.cli import main
from gvm_ray.config import RunConfig, load_config
from tests.model_shapes import write_shape

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.toml"
COMPARISON = CONFIG.parent / "compare" / "smoke.toml"
PROGRAM = """
import json, sys
import gvm_ray
from gvm_ray.cli import main
try:
    code = main(json.loads(sys.argv[1]))
except SystemExit as error:  # argparse
    code = error.code
print([name for name in ("datasets", "ray", "torch", "transformers", "vllm") if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, whose last line of stderr lists the heavy modules that it imported."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments)], capture_output=True, text=True, check=False
    )


def refusal(*arguments: str) -> str:
    """The only error of a command that is refused with exit code 2 before anything heavy is imported."""
    result = run(*arguments)
    error, heavy = result.stderr.strip().rsplit("\n", 1)
    assert result.returncode == 2
    assert heavy == "[]"
    assert result.stdout == ""
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *(
            [name, "--help"]
            for name in (
                "train",
                "eval",
                "report",
                "data",
                "compare",
                "estimator",
                "predictor",
                "bench",
                "doctor",
                "settings",
                "metrics",
            )
        ),
    ],
)
def test_help_is_light(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 0
    assert result.stdout.startswith("usage: gvm-ray")
    assert result.stderr.strip() == "[]"


def test_dry_run_shows_what_would_run_and_is_light(tmp_path: Path) -> None:
    result = run("train", str(CONFIG), "--dry-run", "--set", f"runs_dir={tmp_path}", "--set", "num_steps=7")
    assert result.returncode == 0
    assert result.stderr.strip() == "[]"
    assert result.stdout.startswith(f"run              {tmp_path}/quickstart\n")  # the plan alone, on one screen
    assert len(result.stdout.splitlines()) <= 40
    assert "steps            7 of 64 prompts and 512 samples" in result.stdout
    assert list(tmp_path.iterdir()) == []
    assert "prefill " not in result.stdout
    assert "gradient norms   of accepted pilots: each is read with its own prompt" in result.stdout


def test_print_config_prints_the_settings_alone_and_is_light(tmp_path: Path) -> None:
    result = run("train", str(CONFIG), "--print-config", "--set", f"runs_dir={tmp_path}", "--set", "num_steps=7")
    assert result.returncode == 0
    assert result.stderr.strip() == "[]"
    assert RunConfig.model_validate_json(result.stdout) == load_config(CONFIG, [f"runs_dir={tmp_path}", "num_steps=7"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        # 512 samples of 16 tokens pay for 8,192 / (64 x 0.3) = 426.7 prompts.
        (
            ["allocator.states.pooling=mean"],
            "at most 426 prompts x 64 tokens = 27,264 per step, charged as 8,179; at most 8,192 tokens are generated; "
            "what all prompts begin with is read and charged once in a micro-batch, if the model's attention can",
        ),
        (
            ["allocator.states.pooling=mean", "allocator.candidates_per_step=1024"],
            "at most 1,024 prompts x 64 tokens = 65,536 per step, charged as 19,661; at most 8,192 tokens are "
            "generated; what all prompts begin with is read and charged once in a micro-batch, if the model's "
            "attention can; a lower allocator.candidates_per_step saves most of it",
        ),
        (
            ["allocator.states.pooling=mean", "learner.packing=padded"],
            "at most 426 prompts x 64 tokens = 27,264 per step, charged as 8,179; at most 8,192 tokens are generated",
        ),
        (
            [],
            "none: input embeddings of at most 2,048 prompts per step are looked up",
        ),
    ],
)
def test_a_dry_run_says_what_a_step_prefills(
    settings: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["allocator.type=gvm_pool", "prefill_price=0.3", *settings]
    assert main(["train", str(CONFIG), "--dry-run", *(part for each in overrides for part in ("--set", each))]) == 0
    assert f"prefill          {line}" in capsys.readouterr().out.splitlines()


def test_a_dry_run_plans_a_real_model_and_is_light(tmp_path: Path) -> None:
    parts = [f"{CONFIG.parent}/numina_math/{name}.toml" for name in ("paper", "qwen2.5-math-7b", "grpo", "8gpu")]
    model = write_shape(tmp_path, "qwen2.5-math-7b")
    result = run("train", *parts, "--dry-run", "--set", f"model.path={model}", "--set", "cluster.gpu_memory_gib=141")
    assert result.returncode == 0
    assert result.stderr.strip() == "[]"
    assert "4 x GPU with generator: 126.9 GiB of 141.0 GiB (cluster.gpu_memory_gib)" in result.stdout


def test_a_dry_run_of_a_comparison_lists_its_runs_and_is_light(tmp_path: Path) -> None:
    overrides = ["--set", f"runs_dir={tmp_path}", "--set", "exploration_seeds=[3, 4]"]
    result = run("compare", str(COMPARISON), "--dry-run", *overrides)
    assert result.returncode == 0
    *names, total = result.stdout.splitlines()
    assert names[0] == "exploration/quickstart/a/mostly_easy/as_configured/uniform/3"
    assert len(set(names)) == 6
    assert total == "6 runs of 30,000 tokens each"
    warning, heavy = result.stderr.strip().splitlines()
    assert warning.startswith("warning: exploration_seeds has 2 seed(s), too few for an interval")
    assert heavy == "[]"
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_of_unequal_arms_is_refused_at_once() -> None:
    arms = 'arms=[{name="uniform"}, {name="fast", set={algorithm={updates_per_batch=9}}}]'
    error = refusal("compare", str(COMPARISON), "--dry-run", "--set", arms, "--set", 'highlighted="fast"')
    assert "quickstart/a/mostly_easy/as_configured: the arms differ in algorithm.updates_per_batch" in error
    assert "token_budgets: unknown setting; did you mean 'token_budget'?" in refusal(
        "compare", str(COMPARISON), "--set", "token_budgets=3"
    )


def test_a_dry_run_of_estimators_is_light() -> None:
    result = run("estimator", str(CONFIG.parent / "estimator" / "arithmetic.toml"), "--dry-run")
    assert result.returncode == 0
    assert result.stderr.strip() == "[]"
    assert "raft/uniform" in result.stdout


def test_a_dry_run_of_predictions_is_light() -> None:
    result = run("predictor", str(CONFIG.parent / "predictor" / "quickstart.toml"), "--dry-run", "--prompts", "300")
    assert result.returncode == 0
    assert result.stderr.strip() == "[]"
    first, *policies = result.stdout.splitlines()
    assert first == "16 samples of 300 prompts by each of"
    assert policies[-1] == "after_40_steps: runs/quickstart/model"


def test_an_unknown_setting_gets_a_suggestion() -> None:
    error = refusal("train", str(CONFIG), "--set", "sampling.max_token=4")
    assert "sampling.max_token: unknown setting; did you mean 'max_tokens'?" in error


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.toml' doesn't exist" in refusal("train", str(tmp_path / "nowhere.toml"))
    assert "nowhere.toml' doesn't exist" in refusal("eval", "model", "--config", str(tmp_path / "nowhere.toml"))


def test_contradictory_settings_are_refused_with_what_to_write() -> None:
    error = refusal("train", str(CONFIG), "--set", "allocator.pilot_samples=8")
    assert "allocator.pilot_samples=8 leaves nothing of samples_per_prompt=8" in error
    assert "write pilot_samples=4" in error


def test_wrong_options_of_a_preparation_are_refused_at_once() -> None:
    error = refusal("data", "prepare", "a.jsonl", "--output", "a.csv", "--limit", "none")
    assert "output 'a.csv' isn't a .parquet file; write e.g. --output train.parquet" in error
    assert "limit: takes an integer ≥ 1 or none" in error


def test_an_impossible_number_of_samples_is_refused() -> None:
    error = refusal("eval", "model", "--config", str(CONFIG), "--num-samples", "0")
    assert "--num-samples 0" in error
    greedy = refusal("eval", "model", "--config", str(CONFIG), "--temperature", "0", "--num-samples", "4")
    assert "evaluation: temperature=0 is greedy decoding" in greedy
    assert "write num_samples=1" in greedy


def test_an_evaluation_is_told_what_it_lacks() -> None:
    assert "write --benchmarks math500,aime24, or --config" in refusal("eval", "model")
    assert "2 models can be compared only on benchmarks" in refusal("eval", "a", "b", "--config", str(CONFIG))
    assert "evaluation.top_p: takes a number > 0, ≤ 1" in refusal(
        "eval", "model", "--benchmarks", "aime24", "--top-p", "0"
    )
    error = refusal("eval", "model", "--benchmarks", "aime24", "--set", "evaluation.topp=1")
    assert "evaluation.topp: unknown setting; did you mean 'top_p'?" in error


def test_the_benchmarks_are_listed_and_a_wrong_name_is_refused_at_once() -> None:
    listed = run("bench", "--list")
    assert listed.returncode == 0
    assert {"plan", "gradient_norms", "end_to_end"} <= set(listed.stdout.split())
    assert listed.stderr.strip() == "[]"
    assert "there is no benchmark 'plans'; write one or more of: plan, " in refusal("bench", "plans")


def test_a_command_is_needed() -> None:
    assert "required: COMMAND" in refusal()


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"gvm-ray {gvm_ray.__version__}\n"


def test_a_dry_run_names_the_data_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, missing = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text('{"problem": "1+1=", "answer": "2"}\n')
    overrides = [
        f'prompts.{name}={{type="file", path="{path}"}}' for name, path in (("train", train), ("eval", missing))
    ]
    sets = [part for override in overrides for part in ("--set", override)]
    assert main(["train", str(CONFIG), "--dry-run", "--set", "warm_start=none", *sets]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing ")]
    assert len(lines) == 1
    assert lines[0].startswith(
        f"missing          prompts.eval.path: data file '{missing}' doesn't exist; write the path"
    )


def test_a_dry_run_says_where_the_run_would_be_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gvm_ray.cli.train.find_gpus", lambda: ())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "file").touch()
    command = ["train", str(CONFIG), "--dry-run", "--set", f"runs_dir={tmp_path}/file/runs"]
    gpus = ["--set", "engine.gpus_per_generator=1", "--set", "cluster.gpu_memory_gib=80"]
    assert main([*command, *gpus]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing ")]
    assert lines[0].startswith("missing          GPUs: the run needs 1 and this machine has 0; take one that has them")
    assert main([*command, *gpus, "--set", "cluster.address=head:6379"]) == 0
    assert "GPUs: the run needs" not in capsys.readouterr().out
    assert main(["train", str(CONFIG), "--dry-run", "--set", "runs_dir=/proc/x"]) == 0
    assert "missing          a place for '/proc/x/quickstart': it can't be written (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", str(COMPARISON)], "has settings of `gvm-ray compare`, not of `gvm-ray train`"),
        (["compare", str(CONFIG)], "has settings of `gvm-ray train`, not of `gvm-ray compare`"),
        (
            ["train", str(CONFIG), "num_steps=3"],
            "'num_steps=3' doesn't exist; write the path of a .toml file; write a ",
        ),
        (["train", str(CONFIG.with_name("quickstrat.toml"))], f"; did you mean '{CONFIG}'"),
        (["settings", "allocatr"], "there is no table or setting 'allocatr'; did you mean 'allocator'?"),
        (["settings", "learner.optimiser"], "setting 'learner.optimiser'; did you mean 'learner.optimizer'?"),
        (["settings", "engine.num_generator"], "setting 'engine.num_generator'; did you mean 'engine'?"),
    ],
)
def test_a_near_miss_is_told_what_to_write(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
