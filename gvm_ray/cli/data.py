"""`gvm-ray data prepare`."""

import argparse
from typing import get_args

from gvm_ray.cli.options import Commands
from gvm_ray.config import parse_data
from gvm_ray.config.data import DataConfig, LayoutName

_DEFAULTS = {name: field.default for name, field in DataConfig.model_fields.items()}


def add_to(commands: Commands) -> None:
    """Add the command, which has subcommands."""
    data = commands.add_parser("data", help="prepare training data", description="Data that runs train on.")
    prepare = data.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "prepare",
        help="turn raw data into one Parquet file",
        description="Turn raw data into one Parquet file: answers verified by Math-Verify, without duplicates, "
        "problems of evaluation sets and over-long problems. FILE.report.json beside it lists the dropped rows.",
    )
    prepare.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a .jsonl, .json, .parquet or .csv file, a folder of them, a quoted glob ('data/train-*.parquet'), or "
        "the id of a Hugging Face dataset",
    )
    prepare.add_argument("--output", required=True, metavar="FILE.parquet", help="the file to write")
    prepare.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    _add_reading(prepare)
    _add_cleaning(prepare)
    prepare.set_defaults(run=_prepare)


def _add_reading(prepare: argparse.ArgumentParser) -> None:
    reading = prepare.add_argument_group("reading")
    reading.add_argument(
        "--layout", default="auto", metavar="NAME", help=f"one of {', '.join(get_args(LayoutName))} (default auto)"
    )
    prompt = reading.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt-field",
        metavar="FIELD",
        help="field of the prompt, instead of the layout's; here and below a.b is the field b inside the field a",
    )
    prompt.add_argument(
        "--prompt-fields",
        nargs="+",
        dest="prompt_field",
        metavar="FIELD",
        help="several fields of the prompt, joined by a space",
    )
    for name in ("answer", "id", "rationale"):
        reading.add_argument(f"--{name}-field", metavar="FIELD", help=f"field of the {name}, instead of the layout's")
    reading.add_argument(
        "--feature-fields",
        nargs="+",
        default=(),
        metavar="FIELD",
        help="fields to keep as columns besides the layout's own; one with the name of a standard column (prompt_id, "
        "problem, answer, source, rationale) becomes raw_FIELD",
    )
    reading.add_argument(
        "--split",
        default=_DEFAULTS["split"],
        help="split of datasets, and of folders whose file names contain splits (default train)",
    )
    reading.add_argument(
        "--subset", metavar="NAME", help="subset of a dataset, e.g. main of gsm8k; for a folder, a folder inside it"
    )
    reading.add_argument("--limit", metavar="N", help="read at most this many rows from all sources together")


def _add_cleaning(prepare: argparse.ArgumentParser) -> None:
    cleaning = prepare.add_argument_group("cleaning")
    cleaning.add_argument(
        "--no-verify", action="store_false", dest="verify", help="don't verify answers with Math-Verify"
    )
    cleaning.add_argument(
        "--keep-unverified", action="store_true", help="list answers that Math-Verify can't parse, but keep them"
    )
    cleaning.add_argument(
        "--timeout-s", default=_DEFAULTS["timeout_s"], metavar="S", help="seconds for one answer (default 10)"
    )
    cleaning.add_argument("--num-processes", metavar="N", help="processes that verify (default: one per core)")
    cleaning.add_argument(
        "--decontaminate",
        nargs="+",
        default=(),
        metavar="SOURCE",
        help="evaluation sets whose problems to drop, given like sources",
    )
    cleaning.add_argument(
        "--decontaminate-split",
        default=_DEFAULTS["decontaminate_split"],
        metavar="SPLIT",
        help="split of the evaluation sets (default test)",
    )
    cleaning.add_argument(
        "--ngram",
        default=_DEFAULTS["ngram"],
        metavar="N",
        help="drop problems that share this many consecutive words (default 13)",
    )
    cleaning.add_argument(
        "--common-ngram",
        default=_DEFAULTS["common_ngram"],
        metavar="N",
        help="ignore words that more problems than this share (default 10)",
    )
    cleaning.add_argument("--tokenizer", metavar="MODEL", help="folder or hub id, for --max-tokens")
    cleaning.add_argument("--max-tokens", metavar="N", help="drop longer problems, counted without chat template")


def _prepare(options: argparse.Namespace) -> int:
    config = parse_data({name: getattr(options, name) for name in DataConfig.model_fields})
    from gvm_ray.data.preparation import prepare_data

    report, is_new = prepare_data(config)
    print(report.table())
    if is_new:
        print(f"wrote {report.output} and {report.path}")
    else:
        print(f"nothing to do: {report.output} was made from the same sources with the same options")
    return 0
