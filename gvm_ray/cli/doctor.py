"""`gvm-ray doctor`."""

import argparse
import math
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from gvm_ray.cli.options import Commands

if TYPE_CHECKING:
    from gvm_ray.lab.doctor.findings import Check, Finding

_TRIAL = "trial of a step"


def add_to(commands: Commands) -> None:
    """Add the command."""
    doctor = commands.add_parser(
        "doctor",
        help="check this machine and what is installed, and try the path of a step",
        description="Versions, memory, disks, GPUs and a cluster's nodes, and whether they go together; then a trial "
        "of the path of a step with a tiny model. One line each: right, WRONG with the remedy, or not applicable. The "
        "exit code is 1 if something is wrong. The lines have no secrets and can be pasted into an issue.",
    )
    doctor.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        metavar="HOST:PORT",
        help="of a running Ray cluster, whose nodes are asked instead of the trial (default: $RAY_ADDRESS)",
    )
    doctor.add_argument("--quick", action="store_true", help="without the trial")
    doctor.add_argument(
        "--limit-s",
        type=_positive,
        default=120.0,
        metavar="S",
        help="the longest that the trial may take (default 120)",
    )
    doctor.set_defaults(run=_doctor)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0; write e.g. 120")
    return value


def _doctor(options: argparse.Namespace) -> int:
    from gvm_ray.lab.doctor.findings import examine

    states = []
    for finding in examine(_checks(options)):
        print(finding.line(), flush=True)
        states.append(finding.state)
    num_wrong = states.count("WRONG")
    print(f"{num_wrong} of {len(states)} WRONG" if num_wrong else f"nothing is wrong ({len(states)} findings)")
    return 1 if num_wrong else 0


def _checks(options: argparse.Namespace) -> "dict[str, Check]":
    from gvm_ray.lab.doctor.findings import not_applicable
    from gvm_ray.lab.doctor.machine import check_disks, check_gpus, check_machine, check_rewards, check_versions

    checks: dict[str, Check] = {
        "versions": check_versions,
        "machine": check_machine,
        "disks": check_disks,
        "GPUs": check_gpus,
        "reward process": check_rewards,
    }
    if options.address:
        from gvm_ray.lab.doctor.cluster import check_cluster

        checks["cluster"] = partial(check_cluster, options.address)
        reason = "with an address only the nodes are asked; run the command on a node, without an address"
        checks[_TRIAL] = lambda: [not_applicable(_TRIAL, reason)]
    elif options.quick:
        checks[_TRIAL] = lambda: [not_applicable(_TRIAL, "left out by --quick")]
    else:
        checks[_TRIAL] = partial(_trial, options.limit_s)
    return checks


def _trial(limit_s: float) -> "Iterator[Finding]":
    from gvm_ray.lab.doctor.trial import try_path

    return try_path(limit_s=limit_s)
