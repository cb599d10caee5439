"""Rules of the house that a machine can check."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import fastpool

PACKAGE = Path(fastpool.__file__).parent
SOURCES = sorted(PACKAGE.glob("*.py")) + sorted(PACKAGE.glob("*.pyx"))
CORE = sorted((PACKAGE.parent / "csrc").glob("*.[ch]"))

# From the top to the leaves: a module imports only what stands below it (docs/architecture.md).
LAYERS = [
    {"__main__"},
    {"demo"},
    {"__init__"},
    {"pool", "utils"},
    {"mapping", "applying"},
    {"supervisor"},
    {"results", "schedule", "process", "worker", "remote", "recovery", "insights"},
    {"job", "threads"},
    {"timeouts"},
    {"arrays", "progress"},
    {"options"},
    {"functions", "spawning", "raised", "engine"},
    {"_worker", "_collect"},
    {"_applies"},
    {"_feed", "_lane", "_timing"},
    {"_codec", "_plan"},
    {"_nursery", "_packed"},
    {"_native", "_tagwriter", "_tagreader"},
    {"_scalars", "_signals", "_references"},
    {"serializer"},
    {"dilled"},
    {"definition", "errors", "machine", "_reserve"},
]


def imports_of(path: Path) -> set[str]:
    text = path.read_text()
    found = set(re.findall(r"^\s*from fastpool\.(\w+) c?import", text, re.M))
    for names in re.findall(r"^from (?:fastpool|\.) c?import ([^\n(]+)", text, re.M):
        found |= {name.strip().split(" as ")[0] for name in names.split(",")}
    return {name for name in found if (PACKAGE / f"{name}.py").exists() or (PACKAGE / f"{name}.pyx").exists()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_imports_run_one_way(path: Path) -> None:
    [level] = [i for i, layer in enumerate(LAYERS) if path.stem in layer]
    below = set().union(*LAYERS[level + 1 :])
    assert imports_of(path) <= below


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_polls(path: Path) -> None:
    assert not re.findall(r"time\.sleep|\bsleep\(0|timeout=0\.\d", path.read_text())


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_knows_no_python_and_calls_the_system_in_one_file(path: Path) -> None:
    text = path.read_text()
    assert '#include "Python.h"' not in text
    assert "#include <Python.h>" not in text
    if path.name not in ("platform.c", "platform.h", "points.c"):  # the last only acts in a build for tests
        assert not re.findall(r"#include <(sys/|unistd|poll|pthread|signal|fcntl|time)", text)


def test_only_one_extension_links_the_core() -> None:
    setup = PACKAGE.parent / "setup.py"
    assert re.findall(r'extension\("(\w+)", sorted', setup.read_text()) == ["_native"]
    assert len(setup.read_text().splitlines()) < 100


@pytest.mark.parametrize("name", fastpool.__all__)
def test_public_names_are_documented(name: str) -> None:
    thing = getattr(fastpool, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            if callable(value) and not method.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{method}"


def test_documented_parameters_are_the_parameters() -> None:
    for function in (fastpool.WorkerPool, fastpool.WorkerPool.map):
        given = [name for name in inspect.signature(function).parameters if name != "self"]
        section = (inspect.getdoc(function) or "").split("Parameters\n----------\n")[1].split("\n\n")[0]
        assert re.findall(r"^(\w+) :|^(func)$", section, re.M), function
        named = re.findall(r"^(\w+)(?: :|$)", section, re.M)
        if function is not fastpool.WorkerPool:
            section = (inspect.getdoc(function) or "").split("Parameters\n----------\n")[1].split("\nReturns\n")[0]
            named = re.findall(r"^(\w+)(?: :|$)", section, re.M)
        assert named == given


def stub_names(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return {name for name in names if not name.endswith("__") and "LoopHost" not in name}


@pytest.mark.parametrize(
    "name",
    [
        "_native",
        "_signals",
        "_references",
        "_tagwriter",
        "_tagreader",
        "_feed",
        "_timing",
        "_worker",
        "_collect",
        "_reserve",
    ],
)
def test_stubs_match_the_extensions(name: str) -> None:
    module = __import__(f"fastpool.{name}", fromlist=[name])
    real = set()
    for kind in vars(module).values():
        if inspect.isclass(kind) and kind.__module__ == f"fastpool.{name}":
            real |= {f"{kind.__name__}.{item}" for item in vars(kind) if not item.startswith("_")}
    attributes = {
        f"{node.name}.{item.target.id}"
        for node in ast.parse((PACKAGE / f"{name}.pyi").read_text()).body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    assert stub_names(PACKAGE / f"{name}.pyi") | attributes == real
