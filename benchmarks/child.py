"""Each case in a process of its own: `python -m benchmarks.child CASE SETTINGS PEERS FILE`.

A fork costs more the larger the heap is, and what one case leaves in memory would be there for the next.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from . import cases, peers
from .measure import Settings, WrongResult, measure
from .peers import Peer
from .results import CaseResult

ROOT = Path(__file__).parent.parent
WRONG_RESULT = 3  # the exit status; stderr says what is wrong


class CaseFailed(Exception):
    """A case's process ended with an error, which it has written to stderr."""


def measure_in_child(case: str, taking_part: Sequence[type[Peer]], settings: Settings) -> list[CaseResult]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.json")
        names = json.dumps([peer.name for peer in taking_part])
        arguments = [case, json.dumps(asdict(settings)), names, str(file)]
        done = subprocess.run([sys.executable, "-m", "benchmarks.child", *arguments], cwd=ROOT, check=False)
        if done.returncode:
            raise CaseFailed(f"{case}: its process ended with status {done.returncode}")
        return [CaseResult.from_json(record) for record in json.loads(file.read_text())]


def progress(text: str) -> None:
    """What runs now, on a terminal only, overwritten by what comes next."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    case, settings, names, file = arguments
    taking_part = [peers.BY_NAME[name] for name in json.loads(names)]
    try:
        results = measure(cases.BY_NAME[case], taking_part, Settings(**json.loads(settings)), progress)
    except WrongResult as error:
        print(f"wrong result: {error}", file=sys.stderr)
        return WRONG_RESULT
    finally:
        progress("")
    Path(file).write_text(json.dumps([result.to_json() for result in results]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
