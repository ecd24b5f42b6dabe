"""The character tokenizer: byte-exact both ways, also as AutoTokenizer loads it from a model folder."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from gvm_ray.config.model import DType, PretrainedModelConfig, WarmStartConfig
from gvm_ray.config.prompts import ArithmeticSourceConfig, FileSourceConfig, PromptsConfig
from gvm_ray.learner.scratch_model import BOXED_TOKEN, CHARACTERS, build_character_tokenizer, warm_start_key
from tests.learner_cases import TINY_MODEL, build_tiny_model

BUILT = build_character_tokenizer()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The tokenizer as it comes out of a model folder."""
    return AutoTokenizer.from_pretrained(build_tiny_model(tmp_path_factory.mktemp("model")))


@given(st.lists(st.sampled_from([*CHARACTERS, BOXED_TOKEN, "<|endoftext", "  ", " ,", " 's"]), max_size=40))
def test_text_survives_the_round_trip(pieces: list[str]) -> None:
    text = "".join(pieces).replace("<|endoftext|>", "")
    token_ids = BUILT.encode(text)
    assert BUILT.decode(token_ids) == text
    assert BUILT.decode(token_ids, skip_special_tokens=True) == text


def test_one_token_a_character_and_one_for_the_answer_marker() -> None:
    assert len(BUILT) == 2 + 1 + 96  # specials, \boxed{, newline and printable ASCII
    assert len(BUILT.encode("3 + 4\n= 7")) == 9
    assert BUILT.convert_ids_to_tokens(BUILT.encode("\\boxed{7}")) == ["\\boxed{", "7", "}"]
    assert BUILT.encode("\\boxe")[0] != BUILT.encode("\\boxed{")[0]


def test_specials_are_dropped_from_text_and_the_answer_marker_is_not() -> None:
    token_ids = [*BUILT.encode("\\boxed{7}"), BUILT.eos_token_id, BUILT.pad_token_id]
    assert BUILT.decode(token_ids, skip_special_tokens=True) == "\\boxed{7}"


def test_a_model_folder_gives_the_same_tokenizer(loaded: PreTrainedTokenizerBase) -> None:
    text = "".join(CHARACTERS) + " \\boxed{12}  , .'s \n\n"
    assert loaded.encode(text) == BUILT.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (BUILT.eos_token_id, BUILT.pad_token_id)
    assert len(loaded) == len(BUILT)


def test_chat_template(loaded: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    rendered = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "system: Be brief.\nuser: 1+1?\nassistant: "


def test_scratch_models_depend_on_their_seed_alone(tmp_path: Path) -> None:
    first, second = build_tiny_model(tmp_path / "a"), build_tiny_model(tmp_path / "b", tied=False)
    again = build_tiny_model(tmp_path / "c")
    weights = [(Path(folder) / "model.safetensors").read_bytes() for folder in (first, second, again)]
    assert weights[0] == weights[2] != weights[1]
    config = AutoConfig.from_pretrained(first)
    assert (config.vocab_size, config.hidden_size, config.eos_token_id, config.pad_token_id) == (99, 32, 1, 0)


def test_warm_start_key_changes_with_what_the_weights_depend_on() -> None:
    prompts = PromptsConfig(train=ArithmeticSourceConfig())

    def key(*, model_seed: int = 0, dtype: DType = "float32", **warm_start: Any) -> str:
        model = TINY_MODEL.model_copy(update={"seed": model_seed})
        return warm_start_key(model, prompts=prompts, warm_start=WarmStartConfig(**warm_start), dtype=dtype)

    assert key() == key(cache=False)
    keys = [key(), key(model_seed=1), key(num_updates=7), key(seed=1), key(dtype="bfloat16")]
    assert len(set(keys)) == len(keys)


def test_warm_start_key_changes_with_the_content_of_files(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    model = Path(build_tiny_model(tmp_path / "model"))
    prompts = PromptsConfig(
        train=FileSourceConfig(path=str(train), rationale_field="solution"), eval=FileSourceConfig(path=str(held_out))
    )

    def key(file: Path, content: str) -> str:
        file.write_text(content)
        os.utime(file, (1, 1))  # as a copy that keeps its time
        settings = PretrainedModelConfig(path=str(model))
        return warm_start_key(settings, prompts=prompts, warm_start=WarmStartConfig(), dtype="float32")

    for file in (train, held_out, model / "chat_template.jinja", model / "model.safetensors"):
        assert key(file, "one") == key(file, "one") != key(file, "two")


def test_warm_start_key_changes_with_what_is_held_out_and_left_out() -> None:
    def key(**settings: Any) -> str:
        prompts = PromptsConfig(train=ArithmeticSourceConfig(), **settings)
        return warm_start_key(TINY_MODEL, prompts=prompts, warm_start=WarmStartConfig(), dtype="float32")

    assert key() == key(shuffle=False)
    assert len({key(), key(eval=ArithmeticSourceConfig(split="test")), key(max_tokens=9)}) == 3
