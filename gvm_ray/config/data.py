"""Settings of `gvm-ray data prepare` and of published benchmarks."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gvm_ray.config.prompts import FieldNames
from gvm_ray.settings import Count, Positive, Settings


def benchmark_defaults(model: str) -> dict[str, Any]:
    """Values of a RunConfig: chats that ask for a boxed answer, 3,072 tokens, temperature 1, Math-Verify as grader."""
    return {
        "name": "evaluation",
        "model": {"type": "pretrained", "path": model},
        "prompts": {
            "train": {"type": "file", "path": "(each benchmark)"},
            "template": {"type": "chat", "system_prompt": "qwen25-math-cot"},
            "max_tokens": 1024,
        },
        "sampling": {"max_tokens": 3072},
        "allocator": {"type": "uniform"},
    }


LayoutName = Literal["auto", "numina_math", "gsm8k", "math", "svamp", "mawps", "plain"]

OWN_COLUMNS = frozenset({"prompt_id", "problem", "answer", "source", "rationale"})  # columns that every output has


class DataConfig(Settings):
    """Settings that turn raw data into one Parquet file to train on."""

    sources: tuple[str, ...] = Field(min_length=1)  # files, folders, globs, or ids of Hugging Face datasets
    output: str  # the Parquet file
    overwrite: bool = False  # replace an output that exists

    layout: LayoutName = "auto"  # the fields with problem and answer; "auto" decides by the fields of the first row
    prompt_field: FieldNames | None = None  # these four take precedence over the layout's
    answer_field: str | None = None
    id_field: str | None = None  # none = the id is a hash of the content
    rationale_field: str | None = None
    feature_fields: tuple[str, ...] = ()  # kept besides the layout's own; see `feature_columns` for their columns
    split: str = Field(default="train", min_length=1)  # of datasets, and of folders whose file names contain splits
    subset: str | None = None  # of a dataset; for a local folder, a folder inside it
    limit: Count | None = None  # rows to read from all sources together

    verify: bool = True  # drop answers that Math-Verify can't parse
    keep_unverified: bool = False  # only list them
    timeout_s: Positive = 10.0  # wall clock for one answer
    num_processes: Count | None = None  # processes that verify; none = one per core

    decontaminate: tuple[str, ...] = ()  # evaluation sets, given in the same way as sources
    decontaminate_split: str = Field(default="test", min_length=1)
    ngram: Count = 13  # words; arXiv 2005.14165, appendix C
    common_ngram: Count = 10  # an n-gram in more problems than this is a common phrase and proves nothing; ibid.

    tokenizer: str | None = None  # a model's folder or hub id
    max_tokens: Count | None = None  # of a problem, without a chat template

    @field_validator("output")
    @classmethod
    def _is_parquet(cls, value: str) -> str:
        if not value.lower().endswith(".parquet"):
            raise ValueError(f"output {value!r} isn't a .parquet file; write e.g. --output train.parquet")
        return value

    @property
    def feature_columns(self) -> dict[str, str]:
        """Column of the output -> field that it holds. A name the output uses itself gets a prefix: `raw_source`."""
        return {f"raw_{field}" if field in OWN_COLUMNS else field: field for field in self.feature_fields}

    @model_validator(mode="after")
    def _features_have_columns_of_their_own(self) -> Self:
        if lost := {*self.feature_fields} - {*self.feature_columns.values()}:
            names = ", ".join(f"{field!r} as 'raw_{field}'" for field in sorted(lost))
            raise ValueError(
                f"feature_fields: the output has {names}, which is a feature too; leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if (self.tokenizer is None) != (self.max_tokens is None):
            given, other = (
                ("--max-tokens", "--tokenizer") if self.tokenizer is None else ("--tokenizer", "--max-tokens")
            )
            raise ValueError(f"{given} is of no use without {other}; write both, or none")
        return self
