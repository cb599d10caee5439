"""`python -m fastpool demo`: see what the pool does, on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import demo


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastpool", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shown = commands.add_parser("demo", help=demo.SUMMARY, description=demo.SUMMARY)
    shown.add_argument("--jobs", type=int, metavar="N", help="number of workers (default: one a core)")
    options = parser.parse_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        parser.error("--jobs must be at least 1")
    return demo.main(options.jobs)


if __name__ == "__main__":
    sys.exit(main())
