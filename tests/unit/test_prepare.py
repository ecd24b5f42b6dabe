"""What is refused before an actor starts: sizes that don't fit, and models that can't be trained or exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gvm_ray.actors.cluster import check_home
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError, DataError, ModelError, ResourceError
from gvm_ray.learner.learner import Learner
from gvm_ray.prepare import prepare, report_lines
from gvm_ray.pretrained import load_generation_config
from gvm_ray.run import train
from tests.learner_cases import SurrogateLoss, build_tiny_model
from tests.model_families import build_family


def run_config(**changes: Any) -> RunConfig:
    values = {
        "name": "prepare",
        "prompts_per_step": 4,
        "model": {"type": "scratch"},
        "prompts": {"train": {"type": "arithmetic", "size": 32}, "max_tokens": 32},
        "sampling": {"max_tokens": 16},
        "engine": {"type": "transformers"},
        "rewards": {"terms": [{"type": "exact"}]},
        **changes,
    }
    return parse_config(values)


def test_a_batch_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    config = run_config(learner={"micro_batch_tokens": 10**9})
    with pytest.raises(ResourceError, match=r"lower learner\.micro_batch_tokens=1000000000"):
        prepare(config, run_dir=tmp_path)
    prepare(config, run_dir=tmp_path, learners=False)  # they alone have such batches


def test_a_micro_batch_that_the_longest_sample_exceeds_is_refused(tmp_path: Path) -> None:
    config = run_config(learner={"micro_batch_tokens": 47})
    with pytest.raises(ConfigError, match=r"micro_batch_tokens=47 is below the 48 tokens.*=48 or more"):
        prepare(config, run_dir=tmp_path)
    assert not any(tmp_path.iterdir())
    prepare(config, run_dir=tmp_path, learners=False)
    prepare(run_config(learner={"micro_batch_tokens": 48}), run_dir=tmp_path)


def test_prepare_gives_prompts_and_base_model(tmp_path: Path) -> None:
    prepared = prepare(run_config(), run_dir=tmp_path)
    assert len(prepared.prompts.train) == 32
    assert prepared.engine_kind == "transformers"
    assert prepared.max_model_len == 48
    assert (Path(prepared.base.path) / "model.safetensors").is_file()


def test_more_prompts_a_step_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prompts_per_step=33 needs 33 training prompts and 32"):
        prepare(run_config(prompts_per_step=33), run_dir=tmp_path)
    assert len(prepare(run_config(prompts_per_step=33), run_dir=tmp_path, learners=False).prompts.train) == 32


def test_a_context_shorter_than_prompt_and_response_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="context of 512"):
        prepare(run_config(sampling={"max_tokens": 500}), run_dir=tmp_path)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="nowhere"):
        prepare(run_config(model={"type": "pretrained", "path": missing}), run_dir=tmp_path)


def test_a_wrong_setting_does_not_cost_the_run_it_would_replace(tmp_path: Path) -> None:
    from gvm_ray.run import train

    begun = tmp_path / "prepare" / "metrics.jsonl"
    begun.parent.mkdir()
    begun.write_text("{}\n")
    config = run_config(runs_dir=str(tmp_path), prompts_per_step=33)
    with pytest.raises(DataError, match="prompts_per_step=33"):
        train(config, overwrite=True)
    assert begun.read_text() == "{}\n"


def pretrained(folder: Path, **changes: Any) -> RunConfig:
    return run_config(model={"type": "pretrained", "path": str(folder)}, **changes)


def rewrite(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(values | changes))


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, ("temperature", "top_p")),
        ({"do_sample": False, "top_k": 20, "min_p": 0.1}, ("min_p", "top_k")),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, ()),
        ({"early_stopping": True, "length_penalty": 2.0}, ("early_stopping", "length_penalty")),
        ({"early_stopping": True, "num_beams": 4}, ()),
        ({"num_return_sequences": 4}, ("num_return_sequences",)),
        ({"num_return_sequences": 4, "do_sample": True}, ()),
        ({"num_return_sequences": 4, "num_beams": 2}, ("num_return_sequences",)),
        ({"pad_token_id": -1}, ("pad_token_id",)),
        ({"output_scores": True}, ("output_scores",)),
        ({"use_cache": False, "cache_implementation": "static"}, ("cache_implementation",)),
        ({"cache_implementation": "of-tomorrow"}, ("cache_implementation",)),
        ({"max_new_tokens": "many"}, ("max_new_tokens",)),
        ({"logits_processor": []}, ("logits_processor",)),
        ({"top_k": 50, "top_p": 1.0, "a_setting_of_their_own": 3}, ()),
    ],
)
def test_generation_settings_that_contradict_each_other_are_left_out_of_the_export(
    tmp_path: Path, settings: dict[str, Any], left_out: tuple[str, ...]
) -> None:
    folder = Path(build_tiny_model(tmp_path / "model"))
    rewrite(folder / "generation_config.json", **settings)
    prepared = prepare(pretrained(folder), run_dir=tmp_path / "run")
    assert prepared.left_out_of_export == left_out
    warnings = [line for line in report_lines(prepared) if line.startswith("warning: generation settings")]
    assert [line.endswith(", ".join(left_out)) for line in warnings] == [True] * bool(left_out)
    Learner(pretrained(folder), base_path=str(folder), token_loss=SurrogateLoss()).export(str(tmp_path / "export"))
    exported = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    kept = {name: value for name, value in settings.items() if name not in left_out}
    assert {name: exported.get(name) for name in settings} == kept | dict.fromkeys(left_out)
    assert exported["eos_token_id"] == 1


def test_generation_settings_of_an_old_config_json_are_tried_too(tmp_path: Path) -> None:
    folder = Path(build_tiny_model(tmp_path / "model"))
    (folder / "generation_config.json").unlink()
    rewrite(folder / "config.json", temperature=0.6, num_beams=2)
    assert prepare(pretrained(folder), run_dir=tmp_path).left_out_of_export == ("temperature",)
    assert load_generation_config(folder)[0].num_beams == 2


def test_a_damaged_generation_config_is_refused(tmp_path: Path) -> None:
    folder = Path(build_tiny_model(tmp_path / "model"))
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"generation_config.json .*\[\]"):
        prepare(pretrained(folder), run_dir=tmp_path)


def test_code_that_comes_with_a_model_goes_with_its_export(tmp_path: Path) -> None:
    folder = Path(build_tiny_model(tmp_path / "model"))
    (folder / "configuration_own.py").write_text(
        "from transformers import Qwen2Config\nclass OwnConfig(Qwen2Config):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import Qwen2ForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnForCausalLM(Qwen2ForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    rewrite(folder / "config.json", model_type="own", architectures=["OwnForCausalLM"], auto_map=auto)
    model = {"type": "pretrained", "path": str(folder), "trust_remote_code": True}
    config = run_config(model=model)
    prepare(config, run_dir=tmp_path / "run")
    Learner(config, base_path=str(folder), token_loss=SurrogateLoss()).export(str(tmp_path / "export"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export", trust_remote_code=True)
    assert type(exported).__name__ == "OwnForCausalLM"
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(exported.state_dict()[name], tensor) for name, tensor in weights.items())


def test_a_model_that_makes_other_logits_of_its_states_is_refused(tmp_path: Path) -> None:
    folder = build_family(tmp_path / "model", "hyperclovax", logits_scaling=8.0)
    with pytest.raises(ModelError, match=r"HyperCLOVAXForCausalLM, .*its own logits differ .*; use a text model"):
        prepare(pretrained(folder), run_dir=tmp_path)
    rewrite(folder / "config.json", logits_scaling=1.0)
    prepare(pretrained(folder), run_dir=tmp_path)


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere", "phi", "gemma", "mixtral", "olmo2"])
def test_families_with_heads_of_their_own_pass(tmp_path: Path, family: str) -> None:
    folder = build_family(tmp_path / "model", family)
    prepare(pretrained(folder), run_dir=tmp_path / "run")
    Learner(pretrained(folder), base_path=str(folder), token_loss=SurrogateLoss()).export(str(tmp_path / "export"))
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "export"))
    ids = torch.tensor([[5, 9, 20, 31]])
    torch.testing.assert_close(after(ids).logits, before(ids).logits)


def test_experts_can_not_be_sent_to_vllm(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    folder = build_family(tmp_path / "model", "mixtral")
    with pytest.raises(ModelError, match=r"'model\.layers\.0\.block_sparse_moe.*write engine\.type = \"transformers\""):
        prepare(pretrained(folder, engine={"type": "vllm"}), run_dir=tmp_path)
    prepare(pretrained(folder, engine={"type": "vllm"}), run_dir=tmp_path, learners=False)  # nothing is sent


def test_layers_that_read_over_packed_samples_are_refused_at_load(tmp_path: Path) -> None:
    folder = build_family(tmp_path / "model", "qwen3_5_text")
    for packing in ("padded", "packed"):
        config = pretrained(folder, learner={"packing": packing})
        if packing == "padded":
            Learner(config, base_path=str(folder), token_loss=SurrogateLoss())
        else:
            with pytest.raises(ModelError, match=r"where samples are packed.*write learner\.packing = \"padded\""):
                Learner(config, base_path=str(folder), token_loss=SurrogateLoss())


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    folder = Path(build_tiny_model(tmp_path / "model"))
    rewrite(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"are quantized \(gptq\)"):
        prepare(pretrained(folder), run_dir=tmp_path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models/Qwen2.5-0.5", "there is no folder 'models/Qwen2.5-0.5'; did you mean 'models/Qwen2.5-0.5B'"),
        ("./models/qwen2.5-0.5b/", r"did you mean 'models/Qwen2.5-0.5B'"),
        ("./qwen", "there is no folder './qwen'; write model.path"),
        ("~/models/x", "there is no folder '{home}/models/x'"),
        ("nowhere/else/x", "there is no folder 'nowhere/else/x', nor is there a folder '.*nowhere/else'; write"),
        ("models/weights.bin", "'models/weights.bin' is a file, not a model's folder; did you mean 'models'"),
    ],
)
def test_a_misspelt_model_folder_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    (tmp_path / "models" / "Qwen2.5-0.5B").mkdir(parents=True)
    (tmp_path / "models" / "weights.bin").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ModelError, match=expected.format(home=tmp_path / "home")) as error:
        prepare(run_config(model={"type": "pretrained", "path": path}), run_dir=tmp_path / "run")
    assert "connect" not in str(error.value)


def test_a_model_that_only_a_hub_can_have_is_told_as_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=r"can be loaded from 'owner/name' .*hf download owner/name --local-dir FOLDER"
    ):
        prepare(run_config(model={"type": "pretrained", "path": "owner/name"}), run_dir=tmp_path / "run")


def test_a_model_below_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    base = prepare(run_config(), run_dir=tmp_path).base.path
    config = run_config(model={"type": "pretrained", "path": f"~/{Path(base).name}"})
    assert prepare(config, run_dir=tmp_path / "run").base.path == base


@pytest.mark.parametrize("obstacle", ["/proc/nope", "file"])
def test_a_home_folder_that_cannot_be_written_is_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    home = tmp_path / obstacle  # "/proc/nope" stands alone
    if obstacle == "file":
        home.touch()
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "GVM_RAY_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    config = run_config(runs_dir=str(tmp_path / "runs"), warm_start={})
    with pytest.raises(ResourceError, match=f"the home folder '{home}' can't be written .*set HOME to a folder"):
        train(config)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match=r"the cache of warm starts .* can't be written .*; set GVM_RAY_CACHE"):
        prepare(config, run_dir=tmp_path / "run")
    monkeypatch.setenv("GVM_RAY_CACHE", str(tmp_path / "cache"))
    assert prepare(config, run_dir=tmp_path / "run").base.warm_start_folder is not None


def test_a_home_folder_is_not_needed_where_a_cluster_has_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/nope")
    check_home(run_config(cluster={"address": "10.0.0.1:6379"}))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    check_home(run_config())


ADAPTERS_LINE = "engine transformers, adapters by object_store"


def test_generators_get_adapters_and_the_run_says_so(tmp_path: Path) -> None:
    prepared = prepare(run_config(learner={"lora": {"rank": 4, "alpha": 8.0}}), run_dir=tmp_path)
    assert prepared.adapters is not None
    assert (prepared.adapters.rank, prepared.adapters.scale) == (4, 2.0)
    assert prepared.model.adapters == prepared.adapters
    assert ADAPTERS_LINE in report_lines(prepared)
    learner = Learner(
        run_config(learner={"lora": {"rank": 4}}), base_path=prepared.base.path, token_loss=SurrogateLoss()
    )
    published = [(name, tuple(tensor.shape)) for name, tensor in learner.named_adapter_tensors()]
    assert published == list(prepared.adapters.shapes)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"learner": {"lora": {"sync": "merge"}}}, "engine transformers, weights by object_store"),
        ({}, "engine transformers, weights by object_store"),
        (
            {"learner": {"lora": {}}, "warm_start": {"cache": False}},
            "engine transformers, weights by object_store, adapters merged in: engines load the model as it is before "
            "this run's warm start",
        ),
        (
            {"learner": {"lora": {}}, "engine": {"type": "custom", "path": "examples.custom_engine:ReportingEngine"}},
            "engine custom, weights by object_store, adapters merged in: a custom engine takes whole weights only",
        ),
    ],
)
def test_adapters_are_merged_where_they_must_be(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    prepared = prepare(run_config(**changes), run_dir=tmp_path)
    assert prepared.adapters is None
    assert prepared.model.adapters is None
    assert line in report_lines(prepared)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"warm_start": {"cache": False}}, "engines load the model as it is before this run's warm start"),
        ({"engine": {"type": "custom", "path": "a:B"}}, "a custom engine takes whole weights only"),
    ],
)
def test_adapters_that_the_engine_cannot_take_are_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    config = run_config(learner={"lora": {"sync": "adapter"}}, **changes)
    with pytest.raises(ConfigError, match=f"sync='adapter', but {why}; write learner.lora.sync='merge', or leave it"):
        prepare(config, run_dir=tmp_path)
