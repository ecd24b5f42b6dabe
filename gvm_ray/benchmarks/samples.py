"""Benchmark problems, and a model's samples on them, in a folder from which an evaluation can continue."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gvm_ray.checkpoints import differences
from gvm_ray.config.prompts import FileSourceConfig
from gvm_ray.evaluation import final_answer
from gvm_ray.exceptions import ConfigError, DataError, SystemFailure, free_space
from gvm_ray.reporting.run_folder import replace_text
from gvm_ray.tasks.prompt_set import prompt_digest
from gvm_ray.tasks.sources.file import DATA_SUFFIXES, file_fields
from gvm_ray.types import FinishReason, Prompt, RolloutGroup

# The first of these that a file has is used. A gold answer is text, a number or a list of these; a solution boxes it.
_PROMPT_FIELDS = ("problem", "question", "prompt")
_ANSWER_FIELDS = ("answer", "final_answer", "solution")
_SUBJECT_FIELDS = ("subject", "subfield", "type")
_LEVEL_FIELDS = ("level", "difficulty")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One file of problems with their gold answers."""

    name: str
    source: FileSourceConfig
    subject_field: str | None = None
    level_field: str | None = None


def find_benchmarks(names: Sequence[str], *, folder: str | Path | None) -> list[Benchmark]:
    """Find the benchmarks with these names.

    Args:
        names: `math500` is math500.jsonl, .json, .parquet or math500/test.jsonl (...) in the folder; a name with a
            slash or one of these suffixes is the path of a file.
        folder: the folder of the named benchmarks.

    Raises:
        ConfigError: there are no names, a name occurs twice, or there is a name but no folder.
        DataError: a file doesn't exist, or lacks a field for the problem or the answer.
    """
    if not names:
        raise ConfigError("--benchmarks names no benchmark; write e.g. --benchmarks math500,aime24")
    benchmarks = [_benchmark(name, folder=folder) for name in names]
    found = [benchmark.name for benchmark in benchmarks]
    for name in found:
        if found.count(name) > 1:
            raise ConfigError(f"--benchmarks has {name!r} twice; name each benchmark once, and give files other names")
    return benchmarks


def _benchmark(name: str, *, folder: str | Path | None) -> Benchmark:
    if "/" in name or name.lower().endswith(DATA_SUFFIXES):
        path = Path(name)
        return _described(path.parent.name if path.stem == "test" and path.parent.name else path.stem, path)
    if folder is None:
        raise ConfigError(
            f"--benchmarks {name} is a name, and no folder of benchmarks is given; write --benchmark-dir FOLDER (or "
            f"set GVM_RAY_BENCHMARK_DIR) with {name}.jsonl in it, or a file's path: --benchmarks path/to/{name}.jsonl"
        )
    places = [Path(folder) / f"{stem}{suffix}" for stem in (name, f"{name}/test") for suffix in DATA_SUFFIXES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        present = sorted(file.stem for file in Path(folder).glob("*") if file.suffix.lower() in DATA_SUFFIXES)
        raise DataError(
            f"benchmark {name!r} is not in {str(folder)!r}, which has {', '.join(present) or 'none'}; put {name}.jsonl "
            "or .parquet there (one row per problem, with its answer), write another --benchmark-dir, or write the "
            "path of a file instead of the name"
        )
    return _described(name, path)


def _described(name: str, path: Path) -> Benchmark:
    fields = file_fields(str(path))
    chosen = {
        what: next((field for field in known if field in fields), None)
        for what, known in (
            ("problem", _PROMPT_FIELDS),
            ("answer", _ANSWER_FIELDS),
            ("subject", _SUBJECT_FIELDS),
            ("level", _LEVEL_FIELDS),
        )
    }
    for what, known in (("problem", _PROMPT_FIELDS), ("answer", _ANSWER_FIELDS)):
        if chosen[what] is None:
            raise DataError(
                f"data file {str(path)!r} has no field for the {what}: its first row has "
                f"{', '.join(fields) or 'nothing'}; call it one of {', '.join(known)}"
            )
    return Benchmark(
        name=name,
        source=FileSourceConfig(
            path=str(path),
            prompt_field=chosen["problem"] or "",
            answer_field=chosen["answer"] or "",
            feature_fields=tuple(field for what in ("subject", "level") if (field := chosen[what]) is not None),
        ),
        subject_field=chosen["subject"],
        level_field=chosen["level"],
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The facts about one response that the statistics need."""

    sample_index: int
    reward: float | None  # None = unscored
    answer: str | None  # final answer, boxed or not
    num_tokens: int
    finish_reason: FinishReason


class SampleFile:
    """`samples.jsonl`, with one row per sample and its text, beside the settings of the samples.

    A prompt is finished if all its samples are in the file. Rows of unfinished prompts, left by a killed run, are
    dropped.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, Any], num_samples: int) -> None:
        """Open the file, or create it if it doesn't exist.

        Raises:
            ConfigError: the existing samples were drawn under other settings.
            DataError: a row isn't a sample.
            SystemFailure: the folder can't be written.
        """
        self.path = folder / "samples.jsonl"
        self._num_samples = num_samples
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _check_settings(folder / "settings.json", json.loads(json.dumps(settings)))
            rows = self._finished_rows()
        # prompt_id -> digest of the prompt
        self._prompts: dict[str, str] = {
            prompt_id: of_prompt[0].get("prompt", "") for prompt_id, of_prompt in rows.items()
        }
        self.finished = {prompt_id: tuple(_sample(row) for row in of_prompt) for prompt_id, of_prompt in rows.items()}

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Compare the prompts with those that were sampled under the same ids.

        Raises:
            ConfigError: the text or the gold answer of a prompt has changed.
        """
        changed = [
            prompt.prompt_id
            for prompt in prompts
            if self._prompts.get(prompt.prompt_id) not in (None, "", prompt_digest(prompt))
        ]
        if changed:
            raise ConfigError(
                f"{str(self.path)!r} holds samples of {len(changed)} prompts that read otherwise now, or have another "
                f"answer ({', '.join(changed[:3])} ...). Write another --output, or remove the folder"
            )

    def append(self, groups: Sequence[RolloutGroup]) -> None:
        """Add all scored samples of some prompts. A prompt may have several groups.

        Raises:
            SystemFailure: the file can't be written.
        """
        rows: dict[str, list[dict[str, Any]]] = {}
        for group in groups:
            rows.setdefault(group.prompt.prompt_id, []).extend(_rows(group))
        assert all(len(of_prompt) == self._num_samples for of_prompt in rows.values()), "prompts are finished whole"
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_line(row) for of_prompt in rows.values() for row in of_prompt))
        self._prompts |= {prompt_id: of_prompt[0].get("prompt", "") for prompt_id, of_prompt in rows.items()}
        self.finished |= {prompt_id: tuple(map(_sample, of_prompt)) for prompt_id, of_prompt in rows.items()}

    def _finished_rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of finished prompts, by prompt_id; rewrites the file if it has other rows."""
        if not self.path.exists():
            return {}
        lines = self.path.read_bytes().splitlines(keepends=True)
        rows: dict[str, list[dict[str, Any]]] = {}
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # writing it was interrupted
                break
            row = _parsed(line, where=f"{self.path}, line {number}")
            rows.setdefault(row["prompt_id"], []).append(row)
        finished = {prompt_id: found for prompt_id, found in rows.items() if len(found) == self._num_samples}
        if sum(map(len, finished.values())) < len(lines):
            replace_text(self.path, "".join(_line(row) for found in finished.values() for row in found))
        return finished


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn disk errors into a SystemFailure that names the path and says how to continue."""
    try:
        yield
    except OSError as error:
        raise SystemFailure(
            f"{str(path)!r} can't be written ({error.strerror or error}); {free_space(path)} are free there. Make "
            "room, or write another --output; finished samples are kept, and the same command continues from them"
        ) from error


def earlier_date(folder: Path) -> date | None:
    """The date in the prompts of the samples below a folder; None if they have none, or there are no samples."""
    for file in sorted(folder.glob("*/*/settings.json")):
        with suppress(ValueError, LookupError, TypeError):  # a broken file is reported when its samples are needed
            return date.fromisoformat(json.loads(file.read_bytes())["template"]["date"])
    return None


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or compare them with the existing ones."""
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    try:
        before = dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not JSON ({error}); remove its folder to sample again") from error
    if changed := differences(before, settings):
        raise ConfigError(
            f"{str(path.parent)!r} holds samples that were drawn otherwise: {'; '.join(changed)}. Write another "
            "--output, give the model another name (NAME=MODEL), or remove the folder"
        )


def _rows(group: RolloutGroup) -> Iterator[dict[str, Any]]:
    assert group.rewards is not None, "groups are scored before they are kept"
    for index, text in enumerate(group.texts):
        reward = float(group.rewards[index])
        sample = Sample(
            sample_index=group.sample_indices[index],
            reward=None if reward != reward else reward,
            answer=final_answer(group.prompt.opened_tag + text, truncated=bool(group.truncated[index])),
            num_tokens=int(group.num_tokens[index]),
            finish_reason="length" if group.truncated[index] else "stop",
        )
        yield {
            "prompt_id": group.prompt.prompt_id,
            "prompt": prompt_digest(group.prompt),
            **asdict(sample),
            "text": text,
        }


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _parsed(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        _sample(row)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where} is not a sample ({error!r}); remove the file to sample again") from error
    return row


def _sample(row: Mapping[str, Any]) -> Sample:
    return Sample(**{name: row[name] for name in Sample.__dataclass_fields__})
