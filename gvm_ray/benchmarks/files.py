"""Which file a benchmark is, and what its fields are called: published files differ in both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gvm_ray.config.prompts import FileSourceConfig
from gvm_ray.envs.file_source import DATA_SUFFIXES, file_fields
from gvm_ray.exceptions import ConfigError, DataError

# The first of them that a file has. A gold answer is text, a number or a list of these; a solution boxes it.
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
    """The benchmarks of these names.

    Args:
        names: `math500` is math500.jsonl, .json, .parquet or math500/test.jsonl (...) in the folder; what has a slash
            or one of these endings is the path of a file.
        folder: where the named ones lie.

    Raises:
        ConfigError: no names, one twice, or a name without a folder.
        DataError: there is no such file, or it lacks a field for the problem or the answer.
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
            "or .parquet there (one row a problem, with its answer), write another --benchmark-dir, or in place of the "
            "name the path of a file"
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
