"""Every check of the project, in order, and a summary at the end.

usage: check.py [--full] [lint|types|docs|ctest|models|tests ...]

A check that fails does not stop those after it. One that cannot run on this machine is named in the
last lines together with what to install; with CI=true it counts as a failure.

On a terminal, and with --full, they run one after another. Elsewhere AT_ONCE of them run at a time.

On a terminal, checks print as they run. Elsewhere what each prints goes to a file in build/check, and
only the end of what a failed one printed is shown, once more after the summary the tests that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
# The tools that stand beside the running Python come first: their versions are the pinned ones.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
LOGS = ROOT / "build" / "check"
LINES_OF_A_FAILURE = 300
AT_ONCE = 2  # most wait for the processes that they start half of their time
LIMIT_SECONDS = 60 * 60  # of one check that nobody watches
LAST_WORDS_SECONDS = 5  # in which Python tells where it was stuck
HUNG = 124
NOT_RUN = 77  # the exit status by which a check says that something it needs is missing

TYPED_PROGRAM = "tests/test_typed_program.py"

SANITIZERS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}


@dataclass(frozen=True)
class Step:
    """One command. `missing` says what this machine lacks for it, as far as that is known beforehand."""

    title: str
    command: list[str]
    remedy: str = ""
    missing: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    limit: float | None = LIMIT_SECONDS

    @property
    def log(self) -> Path:
        return LOGS / f"{re.sub('[^a-z0-9]+', '-', self.title.lower())}.log"


@dataclass(frozen=True)
class Outcome:
    step: Step
    status: str  # "passed", "failed" or "not run"
    seconds: float
    reason: str = ""


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


# The checks


def lint_steps(full: bool) -> Iterator[Step]:
    yield Step("format of Python", ["ruff", "format", "--check", "."])
    yield Step("lint of Python", ["ruff", "check", "."])
    if cython := sources("fastpool/*.pyx", "fastpool/*.pxd"):
        yield Step("lint of Cython", ["cython-lint", *cython])
    if c := sources("csrc/**/*.c", "csrc/**/*.h"):
        yield Step("format of C", ["clang-format", "--dry-run", "-Werror", *c])


def types_steps(full: bool) -> Iterator[Step]:
    yield Step("types", ["mypy"])
    stubs = [f"fastpool.{Path(stub).stem}" for stub in sources("fastpool/_*.pyi")]
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", "--ignore-disjoint-bases"]
    files = ["--mypy-config-file", "pyproject.toml", "--allowlist", "tools/stubtest_allowlist.txt"]
    yield Step("stubs against extensions", [*command, *files, *stubs])
    yield Step("types of a user's program, mypy", ["mypy", TYPED_PROGRAM])
    yield Step("types of a user's program, pyright", ["pyright", "--pythonpath", sys.executable, TYPED_PROGRAM])


def docs_steps(full: bool) -> Iterator[Step]:
    calm = (("NO_MKDOCS_2_WARNING", "1"),)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    yield Step("documentation", build, environment=calm)


def ctest_steps(full: bool) -> Iterator[Step]:
    for variant in c_variants():
        missing, remedy = lacking_for(variant)
        command = ["make", "--no-print-directory", "-C", "csrc", f"test-{variant}"]
        yield Step(f"C tests, {variant}", command, remedy, missing)
    rounds = "20000000" if full else "300000"
    missing, remedy = lacking_for("address")
    fuzz = ["make", "--no-print-directory", "-C", "csrc", "fuzz", f"FUZZ_ROUNDS={rounds}"]
    yield Step("fuzz of the record reader", fuzz, remedy, missing)


def models_steps(full: bool) -> Iterator[Step]:
    yield Step("models", ["sh", "csrc/models/run.sh"], "apt-get install spin")


def tests_steps(full: bool) -> Iterator[Step]:
    environment = (("FASTPOOL_LONG", "1"),) if full else ()
    yield Step("Python tests", [sys.executable, "-m", "pytest", "--durations=30", "tests"], environment=environment)
    posix = ["sh", "tools/test_posix.sh", sys.executable, *(["--full"] if full else [])]
    yield Step("Python tests, POSIX build", posix)
    yield Step("crash matrix", ["sh", "tools/test_crashes.sh", sys.executable], environment=environment)
    asan = ["sh", "tools/test_asan.sh", sys.executable]
    if full:
        yield Step("Python tests, sanitized", [*asan, "--full"], "apt-get install gcc")
        yield Step("Python tests, tallied", ["sh", "tools/test_debug.sh", sys.executable])
    else:
        yield Step("damage, sanitized", asan, "apt-get install gcc")
    yield Step("soak", [sys.executable, "-m", "benchmarks.soak", "--minutes", "5" if full else "0.5"])
    if full:
        yield Step("counts", [sys.executable, "-m", "benchmarks.counts"], "apt-get install strace")


CHECKS: dict[str, Callable[[bool], Iterator[Step]]] = {
    "lint": lint_steps,
    "types": types_steps,
    "docs": docs_steps,
    "ctest": ctest_steps,
    "models": models_steps,
    "tests": tests_steps,
}


# What the C tests need


def c_variants() -> list[str]:
    """The variants that csrc/Makefile knows: plain, and each sanitizer."""
    show = ["make", "-s", "-C", "csrc", "--eval", "show: ; @echo $(VARIANTS)", "show"]
    return subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def lacking_for(variant: str) -> tuple[str | None, str]:
    """What this machine lacks to run a variant of the C tests, and how to get it."""
    kind = variant.rpartition("_")[2]
    if kind in SANITIZERS and not compiles(SANITIZERS[kind]):
        return f"the C compiler cannot link {SANITIZERS[kind]}", "apt-get install gcc"
    if kind == "thread" and not shutil.which("setarch"):
        return "there is no setarch", "apt-get install util-linux"
    if kind == "thread" and not works("setarch", "-R", "true"):
        return "setarch -R is refused", "allow personality(2) (docker: --security-opt seccomp=unconfined)"
    return None, ""


def compiles(flag: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.c")
        source.write_text("int main(void) { return 0; }\n")
        compiler = os.environ.get("CC", "cc").split()
        return works(*compiler, flag, "-o", str(source.with_suffix("")), str(source))


# Running and reporting


def run_all(steps: list[Step], at_once: int) -> list[Outcome]:
    with ThreadPoolExecutor(at_once) as lanes:
        outcomes = [lanes.submit(run, step) for step in steps]
        try:
            return [outcome.result() for outcome in outcomes]
        except BaseException:  # SIGTERM, or Ctrl-C
            lanes.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                end_group(process, signal.SIGABRT)
            raise


def run(step: Step) -> Outcome:
    say(f"== {step.title}")
    if step.missing:
        say(f"== {step.title}: not run: {step.missing}")
        return Outcome(step, "not run", 0.0, step.missing)
    start = time.monotonic()
    environment = os.environ | {"PATH": PATH} | dict(step.environment)
    shown: list[str] = []
    try:
        if sys.stdout.isatty():
            code = end_of_group(step, environment, None)
        else:
            code, shown = run_aside(step, environment)
    except OSError as error:
        code, shown = 127, [str(error)]
    seconds = time.monotonic() - start
    say(f"== {step.title}: {seconds:.1f} s, exit status {code}", *shown)
    if code == NOT_RUN:
        return Outcome(step, "not run", seconds, "it says that something it needs is missing")
    return Outcome(step, "failed" if code else "passed", seconds)


def say(*lines: str) -> None:
    """Print lines that belong together; others run beside."""
    print("\n".join(lines), flush=True)


def run_aside(step: Step, environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run a command with its output in a file; its status, and the end of what it printed, unless it passes."""
    step.log.parent.mkdir(parents=True, exist_ok=True)
    with step.log.open("wb") as log:
        code = end_of_group(step, environment, log)
    lines = step.log.read_text(errors="replace").splitlines() if code else []
    return code, lines[-LINES_OF_A_FAILURE:]


running: set[subprocess.Popen[bytes]] = set()


def end_of_group(step: Step, environment: dict[str, str], log: IO[bytes] | None) -> int:
    """Run a command, and leave nothing that it has started. Where it hangs, it is told to say where (SIGABRT, which
    Python answers with its stacks)."""
    aside = log is not None  # a terminal's Ctrl-C is for the command, too
    process = subprocess.Popen(step.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=aside)
    running.add(process)
    try:
        return process.wait(step.limit)
    except subprocess.TimeoutExpired:
        say(f"== {step.title}: stopped after {step.limit:.0f} s")
        end_group(process, signal.SIGABRT)
        return HUNG
    finally:
        end_group(process, signal.SIGKILL)
        running.discard(process)


def end_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a command and all that it has started, and let it say its last words."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # it has ended, or has the terminal's group
        process.send_signal(number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LAST_WORDS_SECONDS)


def report(outcomes: list[Outcome], strict: bool) -> bool:
    """Print the summary; True where nothing is wrong."""
    print("\n== summary")
    for outcome in outcomes:
        print(f"{outcome.status:8}{outcome.seconds:7.1f} s  {outcome.step.title}")
    skipped = [outcome for outcome in outcomes if outcome.status == "not run"]
    for outcome in skipped:
        remedy = f"; {outcome.step.remedy}" if outcome.step.remedy else ""
        print(f"NOT RUN: {outcome.step.title}: {outcome.reason}{remedy}")
    for outcome in outcomes:
        if outcome.status == "failed" and outcome.step.log.exists() and not sys.stdout.isatty():
            lines = outcome.step.log.read_text(errors="replace").splitlines()
            verdicts = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
            print(f"\nFAILED: {outcome.step.title} ({outcome.step.log.relative_to(ROOT)})", *verdicts, sep="\n")
    if skipped and strict:
        print("CI=true: a check that did not run is a failure")
    failed = any(outcome.status == "failed" for outcome in outcomes)
    return not failed and not (skipped and strict)


def main() -> int:
    parser = argparse.ArgumentParser(description="Every check of the project, in order.")
    parser.add_argument("--full", action="store_true", help="with the long tests and the counts")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"only these of: {', '.join(CHECKS)}")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs leaves nothing then either
    if unknown := set(arguments.checks) - set(CHECKS):
        parser.error(f"unknown check: {', '.join(sorted(unknown))}")
    names = arguments.checks or list(CHECKS)
    steps = [step for name in names for step in CHECKS[name](arguments.full)]
    if arguments.full:
        os.environ["FASTPOOL_FULL"] = "1"
    alone = arguments.full or sys.stdout.isatty()
    if alone:
        steps = [replace(step, limit=None) for step in steps]
    outcomes = run_all(steps, 1 if alone else AT_ONCE)
    return 0 if report(outcomes, os.environ.get("CI") == "true") else 1


if __name__ == "__main__":
    sys.exit(main())
