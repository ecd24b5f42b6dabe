"""Small raw data sets in the layouts that the public ones have."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from gvm_ray.config import parse_data
from gvm_ray.data.preparation import prepare_data
from gvm_ray.data.rejections import DataReport

GSM8K = [
    {"question": "Ann has 1,000 pens and buys 234. How many?", "answer": "1000+234=<<1000+234=1234>>1234\n#### 1,234"},
    {"question": "Ben owes 3 and pays 5. What is left?", "answer": "3-5=-2\n#### -2"},
]
MATH = [
    {
        "problem": "What is $\\frac12$ of 1?",
        "level": "Level 2",
        "type": "Algebra",
        "solution": "It is $\\boxed{\\frac12}$.",
    },
    {"problem": "Find $2^{10}$.", "level": "Level ?", "type": "Number Theory", "solution": "$2^{10}=\\boxed{1024}$."},
]
VERL = [
    {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": gold},
        "extra_info": {"split": "train", "index": index, "question": question, "answer": solution},
    }
    for index, (question, gold, solution) in enumerate(
        [
            ("How many are 70 and 2?", "72", "70+2=72\n#### 72"),
            ("How many are 1,000 and 234?", "1234", "1000+234=1234\n#### 1,234"),
        ]
    )
]


def numina(problem: str, solution: str, *, source: str = "olympiads", **fields: Any) -> dict[str, Any]:
    """A row of NuminaMath-CoT."""
    messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
    return {"source": source, "problem": problem, "solution": solution, "messages": messages, **fields}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One object a line; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One table; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def prepared(output: Path, *sources: Path | str, **options: Any) -> tuple[list[dict[str, Any]], DataReport]:
    """The rows of the output, and the report; answers aren't verified unless `verify` is given."""
    values = {"sources": [str(source) for source in sources], "output": str(output), "verify": False, **options}
    report, _ = prepare_data(parse_data(values))
    return pyarrow.parquet.read_table(output).to_pylist(), report


def reasons(report: DataReport) -> list[tuple[str, str]]:
    """File and line without the folder, and reason, of every dropped row."""
    return [(row.where.rsplit("/", 1)[-1], row.reason) for row in report.dropped]
