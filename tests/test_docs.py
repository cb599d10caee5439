"""Every example of the documentation runs, and prints what it says."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fastpool
import fastpool.pool
import fastpool.utils

ROOT = Path(fastpool.__file__).parent.parent
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]
EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
]
NEEDS = {"use_dill=True": "dill", "progress_bar=True": "tqdm", '"rich"': "rich"}  # packages that are optional
IMPORTS_MAIN = re.compile(r'start_method="(spawn|forkserver)"')


def run_here(script: Path) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(script), run_name="__main__")
    return printed.getvalue()


def run_apart(script: Path) -> str:
    """As a program of its own, which workers can import."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code: str, tmp_path: Path) -> None:
    """Run as a script, as a reader would. A comment behind a print, far to the right, is what it prints."""
    for sign, package in NEEDS.items():
        if sign in code:
            pytest.importorskip(package, reason=f"{package} is not installed")
    script = tmp_path / "example.py"
    script.write_text(code)
    printed = run_apart(script) if IMPORTS_MAIN.search(code) else run_here(script)
    expected = re.findall(r"^\s*print\(.*\)\s{4,}# (.*)$", code, re.M)
    assert expected == printed.splitlines()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those of the guide are checked when it is built."""
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text())
    if (ROOT / "mkdocs.yml").exists():  # a whole checkout, not a copy for a special build
        assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("module", [fastpool, fastpool.pool, fastpool.utils])
def test_doctests(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0
