"""`python -m benchmarks`: every case, every peer, interleaved; see `--help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cases import CASES, Case, calibrate
from .measure import CaseResult, WrongResult, environment, measure
from .peers import PEERS, Loop, Peer
from .table import render_case, render_environment


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each peer (default 5)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the tasks")
    parser.add_argument("--case", action="append", metavar="NAME", choices=[case.name for case in CASES],
                        help="only this case; may be given again")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="workers of each pool (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--list", action="store_true", help="name the cases and the peers, measure nothing")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.jobs < 1:
        parser.error("--repeats and --jobs must be at least 1")
    return options


def print_list() -> None:
    for case in CASES:
        print(f"{case.name:14} {case.work}; {case.n_tasks:,} tasks")
    for peer in PEERS:
        print(f"{peer.name:14} {peer.missing() or 'takes part'}")


def progress(text: str) -> None:
    """What runs now, on a terminal only, overwritten by what comes next."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def participants() -> list[type[Peer]]:
    for peer in PEERS:
        if reason := peer.missing():
            print(f"{peer.name} is skipped: {reason}")
    return [peer for peer in PEERS if peer.missing() is None]


def as_json(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.case.name,
        "work": result.case.work,
        "n_tasks": result.n_tasks,
        "n_jobs": result.n_jobs,
        "peers": {
            timing.peer: {
                "seconds": timing.seconds,
                "median": timing.median,
                "min": timing.low,
                "max": timing.high,
                "loop_over_peer": result.ratio(Loop.name, timing.peer) if result.case.parallel else None,
                "efficiency": result.efficiency(timing.peer) if result.case.parallel else None,
                "peer_over_fastpool": result.ratio(timing.peer, "fastpool"),
            }
            for timing in result.timings
        },
    }


def run_cases(cases: Sequence[Case], peers: Sequence[type[Peer]], options: argparse.Namespace) -> list[CaseResult]:
    results = []
    for case in cases:
        result = measure(case, peers, options.jobs, options.repeats, options.quick, progress)
        progress("")
        print(f"\n{render_case(result)}", flush=True)
        results.append(result)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print_list()
        return 0
    cases = [case for case in CASES if not options.case or case.name in options.case]
    peers = participants()
    spins = calibrate()
    context = environment(peers)
    print(render_environment(context, options.jobs))
    try:
        results = run_cases(cases, peers, options)
    except WrongResult as error:
        progress("")
        print(f"wrong result: {error}", file=sys.stderr)
        return 1
    if options.json:
        record = {"environment": context, "spins_per_us": spins, "quick": options.quick,
                  "cases": [as_json(result) for result in results]}  # fmt: skip
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
