"""`gvm-ray data prepare`."""

import argparse
from typing import get_args

from gvm_ray.cli.options import Commands
from gvm_ray.config import parse_data
from gvm_ray.config.data import DataConfig, LayoutName

_DEFAULTS = {name: field.default for name, field in DataConfig.model_fields.items()}


def add_to(commands: Commands) -> None:
    """Add the command, which has commands of its own."""
    data = commands.add_parser("data", help="prepare training data", description="Data that runs train on.")
    prepare = data.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "prepare",
        help="raw data to one Parquet file",
        description="Raw data to one Parquet file: read in its layout, answers verified by Math-Verify, without "
        "duplicates, problems of evaluation sets or over-long ones. FILE.report.json beside it lists what was dropped.",
    )
    prepare.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a .jsonl, .json, .parquet or .csv file, a folder of them, a quoted pattern ('data/train-*.parquet'), or "
        "the id of a Hugging Face dataset",
    )
    prepare.add_argument("--output", required=True, metavar="FILE.parquet", help="what to write")
    prepare.add_argument("--overwrite", action="store_true", help="replace the output although it is there")
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
        help="of the prompt, instead of the layout's; here and below extra_info.question is a field in a field",
    )
    prompt.add_argument(
        "--prompt-fields",
        nargs="+",
        dest="prompt_field",
        metavar="FIELD",
        help="of a prompt that stands in several, joined by a blank",
    )
    for name in ("answer", "id", "rationale"):
        reading.add_argument(f"--{name}-field", metavar="FIELD", help=f"of the {name}, instead of the layout's")
    reading.add_argument(
        "--feature-fields",
        nargs="+",
        default=(),
        metavar="FIELD",
        help="kept as columns besides the layout's own; one named as a column that every output has (prompt_id, "
        "problem, answer, source, rationale) becomes raw_FIELD",
    )
    reading.add_argument(
        "--split",
        default=_DEFAULTS["split"],
        help="of datasets, and of folders whose file names name splits (default train)",
    )
    reading.add_argument(
        "--subset", metavar="NAME", help="of a dataset, e.g. main of gsm8k; of a folder, a folder in it"
    )
    reading.add_argument("--limit", metavar="N", help="read this many rows, of all sources together")


def _add_cleaning(prepare: argparse.ArgumentParser) -> None:
    cleaning = prepare.add_argument_group("cleaning")
    cleaning.add_argument(
        "--no-verify", action="store_false", dest="verify", help="don't ask Math-Verify about the answers"
    )
    cleaning.add_argument(
        "--keep-unverified", action="store_true", help="list answers that Math-Verify can't parse, but keep them"
    )
    cleaning.add_argument(
        "--timeout-s", default=_DEFAULTS["timeout_s"], metavar="S", help="seconds for one answer (default 10)"
    )
    cleaning.add_argument("--num-processes", metavar="N", help="that verify (default: one a core)")
    cleaning.add_argument(
        "--decontaminate",
        nargs="+",
        default=(),
        metavar="SOURCE",
        help="evaluation sets whose problems to drop, named as sources are",
    )
    cleaning.add_argument(
        "--decontaminate-split", default=_DEFAULTS["decontaminate_split"], metavar="SPLIT", help="default test"
    )
    cleaning.add_argument(
        "--ngram", default=_DEFAULTS["ngram"], metavar="N", help="shared words in a row that are too many (default 13)"
    )
    cleaning.add_argument(
        "--common-ngram",
        default=_DEFAULTS["common_ngram"],
        metavar="N",
        help="words that more problems than this share prove nothing (default 10)",
    )
    cleaning.add_argument("--tokenizer", metavar="MODEL", help="folder or hub id, for --max-tokens")
    cleaning.add_argument("--max-tokens", metavar="N", help="drop longer problems; a chat template comes on top")


def _prepare(options: argparse.Namespace) -> int:
    config = parse_data({name: getattr(options, name) for name in DataConfig.model_fields})
    from gvm_ray.data.preparation import prepare_data

    report, is_new = prepare_data(config)
    print(report.table())
    if is_new:
        print(f"wrote {report.output} and {report.path}")
    else:
        print(f"nothing to do: {report.output} was made of the same sources with the same options")
    return 0
