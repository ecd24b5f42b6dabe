"""`gvm-ray data prepare`: turns published tables into prompts with verifiable answers."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gvm_ray.config.data import DataConfig
from gvm_ray.config.prompts import TemplateConfig
from gvm_ray.data.cleaning import EvaluationProblems, contaminated, duplicates, unverified
from gvm_ray.data.rejections import (
    DataReport,
    Dropped,
    Input,
    Rejection,
    aligned,
    publish,
    read_report,
    reason_rows,
    write_incomplete,
)
from gvm_ray.data.tables import Table, file_sha256, find_layout, find_tables, problem_field
from gvm_ray.exceptions import DataError, ModelError
from gvm_ray.pretrained import load_tokenizer
from gvm_ray.reporting.progress import ProgressLines
from gvm_ray.reporting.summary import package_versions
from gvm_ray.tasks.fields import field_names, field_value
from gvm_ray.tasks.rows import Row, Task, names_of, problem_text
from gvm_ray.tasks.templates import longest_problem, render_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True)
class Pile:
    """Tasks with the file and line of each, and the rows dropped so far."""

    num_read: int = 0
    tasks: list[Task] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    kept_unverified: list[Dropped] = field(default_factory=list)
    num_common_ngrams: int = 0

    def drop(self, rejections: Mapping[int, Rejection]) -> None:
        """Remove the tasks at these indices."""
        self.dropped += self.rejected(rejections)
        kept = [index for index in range(len(self.tasks)) if index not in rejections]
        self.tasks, self.places = [self.tasks[index] for index in kept], [self.places[index] for index in kept]

    def rejected(self, rejections: Mapping[int, Rejection]) -> list[Dropped]:
        """The report's entries for these tasks."""
        return [
            Dropped(
                prompt_id=self.tasks[index].prompt_id,
                where=self.places[index],
                reason=rejection.reason,
                detail=rejection.detail,
            )
            for index, rejection in sorted(rejections.items())
        ]


_CHUNK = 1000  # problems per tokenizer call


def too_long(
    tasks: Sequence[Task],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    max_tokens: int,
    on_progress: Callable[[int], Any] = lambda num: None,
) -> dict[int, Rejection]:
    """Index -> rejection of tasks whose problem, without chat template, has more than `max_tokens` tokens."""
    bound = longest_problem(max_tokens, tokenizer=tokenizer)
    lengths: dict[int, str] = {}
    for start in range(0, len(tasks), _CHUNK):
        chunk = dict(enumerate(tasks[start : start + _CHUNK], start=start))
        short = {index: task for index, task in chunk.items() if len(task.problem) <= bound}
        rendered = render_all(list(short.values()), template=TemplateConfig(), tokenizer=tokenizer)
        lengths |= {index: f"{len(task.problem)} characters" for index, task in chunk.items() if index not in short}
        for index, (_, ids) in zip(short, rendered, strict=True):
            if len(ids) > max_tokens:
                lengths[index] = f"{len(ids)} tokens"
        on_progress(len(chunk))
    return {index: Rejection(reason="too_long", detail=length) for index, length in lengths.items()}


_PACKAGES = ("gvm-ray", "math-verify", "pyarrow", "datasets", "transformers", "tokenizers")
# Options that don't change the output. The inputs' names and contents do; they are hashed separately.
_UNHASHED = {"sources", "decontaminate", "output", "overwrite", "num_processes"}


def prepare_data(config: DataConfig) -> tuple[DataReport, bool]:
    """Make the output; return its report, and True if it was made now, False if the same output existed already.

    Raises:
        DataError: a source is missing or damaged or has other fields, no task is left, or the output can't be written
            or exists and was made otherwise.
        ModelError: the tokenizer can't be loaded.
        SystemFailure: a process that verifies answers couldn't be started.
    """
    output = Path(config.output).expanduser()
    tables = find_tables(config.sources, split=config.split, subset=config.subset, output=output)
    evaluation_tables = find_tables(config.decontaminate, split=config.decontaminate_split, output=output)
    inputs, evaluation_inputs = _inputs(tables), _inputs(evaluation_tables)
    request = _request(config, tables=[*tables, *evaluation_tables], inputs=[*inputs, *evaluation_inputs])
    if not config.overwrite and (report := _finished(output, request=request)):
        return report, False
    tokenizer = None if config.tokenizer is None else _tokenizer(config.tokenizer)
    evaluation = _evaluation_problems(evaluation_tables, config=config)
    pile = _read(tables, config=config)
    _clean(pile, config=config, evaluation=evaluation, tokenizer=tokenizer)
    _check(pile, config=config)
    report = DataReport(
        output=config.output,
        sha256=file_sha256(write_incomplete(pile.tasks, output=output)),
        request=request,
        num_read=pile.num_read,
        num_kept=len(pile.tasks),
        num_common_ngrams=pile.num_common_ngrams,
        kept_by_source=dict(Counter(str(task.features["source"]) for task in pile.tasks).most_common()),
        inputs=inputs,
        evaluation_inputs=evaluation_inputs,
        options=config.model_dump(mode="json"),
        versions=package_versions(_PACKAGES),
        kept_unverified=tuple(pile.kept_unverified),
        dropped=tuple(pile.dropped),
    )
    publish(report, output=output)
    return report, True


def _tokenizer(path: str) -> Any:
    try:
        return load_tokenizer(Path(path).expanduser() if Path(path).expanduser().is_dir() else path)
    except ModelError as error:
        raise ModelError(str(error).replace("model.path", "--tokenizer")) from error


def _inputs(tables: Sequence[Table]) -> tuple[Input, ...]:
    return tuple(Input(path=table.origin.path, sha256=table.digest()) for table in tables)


def _request(config: DataConfig, *, tables: Sequence[Table], inputs: Sequence[Input]) -> str:
    """A hash of everything that decides the output: options, inputs in their order, and the tokenizer's files."""
    folder = Path(config.tokenizer).expanduser() if config.tokenizer else None
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder and folder.is_dir() else []
    decisive = {
        "options": config.model_dump(mode="json", exclude=_UNHASHED),
        "inputs": [(table.name, read.sha256) for table, read in zip(tables, inputs, strict=True)],
        "num_sources": len(tables),
        "tokenizer": [file_sha256(path) for path in files if path.suffix in (".json", ".txt", ".model", ".jinja")],
    }
    return sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _finished(output: Path, *, request: str) -> DataReport | None:
    """The report of an existing output of the same request; None if there is no output.

    Raises:
        DataError: the output exists, but was made by another request or changed since.
    """
    if not output.exists():
        return None
    report = read_report(str(output))
    if report and report.request == request and output.is_file() and report.sha256 == file_sha256(output):
        return report
    raise DataError(
        f"{str(output)!r} exists, but was made from other sources or with other options, or was changed since; write "
        "another --output, or --overwrite to replace it"
    )


def _evaluation_problems(tables: Sequence[Table], *, config: DataConfig) -> EvaluationProblems:
    problems = EvaluationProblems(ngram=config.ngram)
    for table in tables:
        first, rows = _opened(table)
        names = _problem_fields(first[1], config=config)
        for where, row in rows:
            try:
                problem = problem_text({name: field_value(row, name) for name in names}, where=where)
            except (KeyError, DataError):
                raise DataError(
                    f"{where}: field {', '.join(map(repr, names))}, to compare with the training problems, is not "
                    f"text; write --prompt-field with one of its fields: {field_names(row)}"
                ) from None
            problems.add(problem, where=where)
    return problems


def _problem_fields(first: Mapping[str, Any], *, config: DataConfig) -> tuple[str, ...]:
    """The fields of an evaluation set's problem: the training data's, if the set has them."""
    given = () if config.prompt_field is None else names_of(config.prompt_field)
    try:
        for name in given:
            field_value(first, name)
    except KeyError:
        return (problem_field(first),)
    return given or (problem_field(first),)


def _opened(table: Table) -> tuple[Row, Iterator[Row]]:
    """The first row, and all rows."""
    rows = iter(table.rows())
    first = next(rows, None)
    if first is None:
        raise DataError(f"{table.origin.path!r} has no rows; leave it out, or write a source with at least one")
    return first, chain([first], rows)


def _read(tables: Sequence[Table], *, config: DataConfig) -> Pile:
    """The tasks of all tables; rows that give no task are dropped."""
    pile = Pile()
    with _progress("read", None) as advance:
        for table in tables:
            (where, first), rows = _opened(table)
            layout = find_layout(first, config=config, where=where, default_source=table.name)
            remaining = None if config.limit is None else config.limit - pile.num_read
            for where, row in islice(rows, remaining):
                pile.num_read += 1
                advance(1)
                try:
                    task = layout.task(row, where=where)
                except DataError as error:
                    pile.dropped.append(Dropped(prompt_id="", where=where, reason="bad_row", detail=str(error)))
                    continue
                if task is None:
                    detail = f"field {layout.fields.answer_field!r} of layout {layout.name!r} has none"
                    pile.dropped.append(Dropped(prompt_id="", where=where, reason="no_answer", detail=detail))
                    continue
                pile.tasks.append(task)
                pile.places.append(where)
    return pile


def _clean(pile: Pile, *, config: DataConfig, evaluation: EvaluationProblems, tokenizer: Any) -> None:
    """Drop unusable tasks. Answers are checked before duplicates, so that a copy with a usable answer stays."""
    if config.verify:
        _verify(pile, config=config)
    pile.drop(duplicates(pile.tasks))
    with _progress("decontaminate", len(pile.tasks)) as advance:
        rejected, pile.num_common_ngrams = contaminated(
            pile.tasks, evaluation=evaluation, common=config.common_ngram, on_progress=advance
        )
    pile.drop(rejected)
    if tokenizer is not None and config.max_tokens is not None:
        with _progress("count tokens", len(pile.tasks)) as advance:
            pile.drop(too_long(pile.tasks, tokenizer=tokenizer, max_tokens=config.max_tokens, on_progress=advance))


def _verify(pile: Pile, *, config: DataConfig) -> None:
    answers = dict.fromkeys(task.answer for task in pile.tasks)
    with _progress("verify answers", len(answers)) as advance:
        failed = unverified(
            answers, timeout_s=config.timeout_s, num_processes=config.num_processes, on_progress=advance
        )
    rejected = {
        index: Rejection(reason="unverified", detail=f"{task.answer!r}: {failed[task.answer]}")
        for index, task in enumerate(pile.tasks)
        if task.answer in failed
    }
    if config.keep_unverified:
        pile.kept_unverified = pile.rejected(rejected)
    else:
        pile.drop(rejected)


def _check(pile: Pile, *, config: DataConfig) -> None:
    """Raise DataError if no task is left, or if two tasks have the same id."""
    if not pile.tasks:
        reasons = "\n".join(aligned(reason_rows(pile.dropped, what="dropped")))
        raise DataError(f"no problem is left of {pile.num_read:,}, so nothing is written:\n{reasons}")
    first: dict[str, str] = {}
    for task, where in zip(pile.tasks, pile.places, strict=True):
        if first.setdefault(task.prompt_id, where) != where:
            raise DataError(
                f"{where}: field {config.id_field!r} is {task.prompt_id!r}, the id of another problem "
                f"({first[task.prompt_id]}); leave out --id-field, to make the id a hash of the content"
            )


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[..., object]]:
    """Give a function to call with the number of rows just done; shows a bar on a terminal, else occasional lines."""
    if sys.stderr.isatty():
        with tqdm(desc=what, total=total, unit="row", dynamic_ncols=True) as bar:
            yield bar.update
    else:
        yield ProgressLines(f"{what}, rows", total, say=lambda line: print(line, file=sys.stderr, flush=True)).add
