"""What belongs to a model besides its path: every file that its samples depend on, and every token that ends them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import build_tiny_model
from transformers import AutoConfig

from gvm_ray.exceptions import ModelError
from gvm_ray.model_files import model_files, weights_digest
from gvm_ray.pretrained import empty_causal_lm, load_end_token_ids, load_generation_config, load_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(build_tiny_model(tmp_path / "model", tied=True))


@pytest.fixture
def hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that lies in the hub's cache alone, without a generation_config.json."""
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    build_tiny_model(snapshot, tied=True)
    (snapshot / "generation_config.json").unlink()
    refs = tmp_path / "hub" / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return "org/tiny"


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "adapter_model.safetensors",
        "adapter_config.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.txt",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
        "modeling_tiny.py",
    ],
)
def test_every_file_that_samples_depend_on_counts_by_its_content(folder: Path, name: str) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"first")
    os.utime(file, (1, 1))
    before = model_files(folder)
    file.write_bytes(b"other")
    os.utime(file, (1, 1))  # as a copy that keeps its time
    after = model_files(folder)
    assert {each for each in after if after[each] != before[each]} == {name}
    file.unlink()
    assert model_files(folder).keys() == before.keys() - {name}


def test_what_samples_do_not_depend_on_does_not_count(folder: Path) -> None:
    before = model_files(folder)
    (folder / "README.md").write_text("# Tiny")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download.lock").write_text("")
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "model.safetensors").write_text("")
    assert model_files(folder) == before
    assert before.keys() - model_files(folder, weights=False).keys() == {"model.safetensors"}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "adapter_model.bin"])
def test_the_digest_of_weights_covers_their_files_whatever_their_format(folder: Path, name: str) -> None:
    digests = {weights_digest(folder)}
    for content in (b"first", b"other"):
        (folder / name).write_bytes(content)
        digests.add(weights_digest(folder))
    assert len(digests) == 3


def test_a_hub_id_is_its_commit(hub_id: str) -> None:
    assert model_files(hub_id) == {"org/tiny": COMMIT}
    assert model_files(hub_id, revision=COMMIT) == {"org/tiny": COMMIT}
    with pytest.raises(ModelError, match=r"can be loaded from 'org/absent'"):
        model_files("org/absent")


def test_a_hub_id_without_generation_settings_ends_responses_with_its_end_of_sequence(hub_id: str) -> None:
    assert load_end_token_ids(hub_id, tokenizer=load_tokenizer(hub_id)) == {1}


def changed(name: str, **values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / name
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, **values}))

    return change


CONFIG, GENERATION = "config.json", "generation_config.json"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed(GENERATION, eos_token_id=40), {1, 40}),
        (changed(GENERATION, eos_token_id=[40, 41, 40]), {1, 40, 41}),
        (changed(GENERATION, eos_token_id=None), {1}),
        (changed(GENERATION, eos_token_id=[]), {1}),
        (changed(GENERATION, eos_token_id=[-1, None, 98, 99, 10**9]), {1, 98}),  # the vocabulary has 99 tokens
        (changed(GENERATION, eos_token_id=0, pad_token_id=0), {0, 1}),
        (changed(CONFIG, eos_token_id=40), {1, 40}),
        (changed(CONFIG, eos_token_id=[40, 41]), {1, 40, 41}),
        (changed(CONFIG, eos_token_id=None), {1}),
        (changed(CONFIG, text_config={"eos_token_id": [41], "vocab_size": 50}, eos_token_id=[40, 60]), {1, 40, 41}),
        (lambda folder: (folder / GENERATION).unlink(), {1}),
    ],
)
def test_the_tokens_that_end_a_response_are_those_of_all_files(
    folder: Path, change: Callable[[Path], object], expected: set[int]
) -> None:
    tokenizer = load_tokenizer(folder)
    change(folder)
    assert load_end_token_ids(folder, tokenizer=tokenizer) == expected


@pytest.mark.parametrize("value", ["<|im_end|>", [1, "2"], 1.5, {"id": 1}])
def test_an_end_token_that_is_no_number_is_refused(folder: Path, value: object) -> None:
    tokenizer = load_tokenizer(folder)
    changed(GENERATION, eos_token_id=value)(folder)
    with pytest.raises(ModelError, match=r"eos_token_id in generation_config.json of .*; write the number of a token"):
        load_end_token_ids(folder, tokenizer=tokenizer)


@pytest.mark.parametrize("text", ["[1]", "null", "3", "{"])
def test_generation_settings_that_are_no_object_are_named(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    wrong = "isn't JSON" if text == "{" else f"holds {text}, not an object"
    readers: tuple[Callable[[], object], ...] = (
        lambda: load_end_token_ids(folder, tokenizer=load_tokenizer(folder)),
        lambda: load_generation_config(folder),
    )
    for read in readers:
        with pytest.raises(ModelError) as error:
            read()
        assert f"generation_config.json of {str(folder)!r} {wrong}" in str(error.value)
        assert str(error.value).endswith("own generation_config.json there, or delete it, as it is not needed")


@pytest.mark.parametrize("family", ["mamba", "gpt_oss", "rwkv"])
def test_a_family_without_the_learners_attention_is_named(family: str) -> None:
    config = AutoConfig.for_model(family)
    with pytest.raises(ModelError, match=rf"{family}.*scaled_dot_product_attention.*; use a text model of the Llama"):
        empty_causal_lm(config, attention="sdpa")


def test_a_model_that_is_no_causal_one_is_answered_by_families() -> None:
    with pytest.raises(ModelError, match=r"T5Config.*; put the model's own config.json there, or use a text model of"):
        empty_causal_lm(AutoConfig.for_model("t5"))


@pytest.mark.parametrize("name", ["", "checkpoints/step_000040"])
def test_a_runs_folder_is_answered_by_its_model(tmp_path: Path, name: str) -> None:
    build_tiny_model(tmp_path / "run" / "model", tied=True)
    (tmp_path / "run" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / "config.json").write_text('{"name": "run"}')
    with pytest.raises(ModelError, match="a folder of a run; write the run's model, ") as error:
        load_tokenizer(str(tmp_path / "run" / name))
    assert str(tmp_path / "run" / "model") in str(error.value)
