"""`python -m benchmarks`: every case, every peer, interleaved; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from importlib import util
from pathlib import Path

from .bars import judge
from .cases import SUITE, Case, Sweep
from .child import CaseFailed, measure_in_child
from .machine import environment
from .measure import Settings
from .peers import BY_NAME, PEERS, Peer
from .results import CaseResult
from .table import render, render_bars, render_environment

RESULTS = Path(__file__).parent / "results"  # not in the repository

Results = dict[str, list[CaseResult]]  # by case


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names, peers = [case.name for case in SUITE], list(BY_NAME)
    parser.add_argument("--quick", action="store_true", help="smaller cases, fewer repeats: about a minute in all")
    parser.add_argument("--case", action="append", choices=names, metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--peers", nargs="+", choices=peers, metavar="NAME", help="only these, in the suite's order")
    parser.add_argument("--repeats", type=int, metavar="N", help="runs of each peer (default 5, with --quick 3)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="workers of each pool (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    parser.add_argument("--plots", type=Path, nargs="?", const=RESULTS, metavar="DIR",
                        help="draw PNG files into DIR (default benchmarks/results)")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="name the cases and the peers, measure nothing")
    options = parser.parse_args(arguments)
    if options.repeats is None:
        options.repeats = 3 if options.quick else 5
    if options.repeats < 1 or options.jobs < 1:
        parser.error("--repeats and --jobs must be at least 1")
    if options.plots and util.find_spec("matplotlib") is None:
        parser.error("--plots needs matplotlib: pip install 'fastpool[bench]'")
    return options


def unwritable(options: argparse.Namespace) -> str | None:
    """Which output cannot be written, and why. Makes folders, and nothing else."""
    option: str
    file: Path
    try:
        if options.json:
            option, file = "--json", options.json
            file.parent.mkdir(parents=True, exist_ok=True)
            is_new = not file.exists()
            file.open("a").close()
            if is_new:
                file.unlink()
        if options.plots:
            option, file = "--plots", options.plots
            file.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=file).close()
    except OSError as error:
        return f"{option} {file}: {error.strerror}"
    return None


def print_list() -> None:
    for case in SUITE:
        size = f"; {case.n_tasks:,} {'items' if case.array else 'tasks'}" if isinstance(case, Case) else ""
        print(f"{case.name:14} {case.work}{size}")
    for peer in PEERS:
        print(f"{peer.name:14} {peer.missing() or 'takes part'}")


def participants(names: Sequence[str] | None, quick: bool) -> list[type[Peer]]:
    """Those asked for, or all, as far as they are installed; who is left out is said."""
    found = []
    for peer in PEERS:
        if names and peer.name not in names:
            continue
        reason = peer.missing()
        if reason is None and quick and not names and not peer.starts_fast:
            reason = f"it takes seconds to start (--quick --peers {peer.name} takes it in)"
        if reason:
            print(f"{peer.name} is skipped: {reason}")
        else:
            found.append(peer)
    return found


def run_cases(suite: Sequence[Case | Sweep], peers: Sequence[type[Peer]], settings: Settings) -> Results:
    """What was measured; a case that failed is not in it."""
    results: Results = {}
    for case in suite:
        try:
            results[case.name] = measure_in_child(case.name, peers, settings)
        except CaseFailed as error:
            print(f"\n{error}", file=sys.stderr)
        else:
            print(f"\n{render(case, results[case.name])}", flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print_list()
        return 0
    if problem := unwritable(options):
        print(f"python -m benchmarks: error: {problem}", file=sys.stderr)
        return 2
    suite = [case for case in SUITE if not options.case or case.name in options.case]
    peers = participants(options.peers, options.quick)
    settings = Settings(options.jobs, options.repeats, options.quick)
    context = environment(peers)
    print(render_environment(context, options.jobs))
    results = run_cases(suite, peers, settings)
    judged = judge([result for found in results.values() for result in found])
    if judged:
        print(f"\n{render_bars(judged, options.quick)}")
    if options.json:
        record = {
            "environment": context,
            "quick": options.quick,
            "repeats": options.repeats,
            "results": {name: [result.to_json() for result in found] for name, found in results.items()},
            "bars": [one.to_json() for one in judged],
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    if options.plots:
        from .plots import draw

        for file in draw(results, options.plots):
            print(f"drawn: {file}")
    return 0 if len(results) == len(suite) else 1


if __name__ == "__main__":
    sys.exit(main())
