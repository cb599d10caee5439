"""Cores and memory this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpool import cpu_count, machine


def test_cpu_count_respects_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= cpu_count() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cpu_count() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The control group this process seems to be in; `forget` reads its files again."""
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_own_groups", lambda: iter([group, tmp_path / "a", tmp_path]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    forget()
    yield group
    forget()


def forget() -> None:
    machine._cpu_quota.cache_clear()
    machine._memory_limit.cache_clear()


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 64)]
)
def test_cpu_quota(group: Path, quota: str, cores: int) -> None:
    (group / "cpu.max").write_text(quota + "\n")
    assert cpu_count() == cores


def test_the_tightest_group_counts(group: Path) -> None:
    (group / "cpu.max").write_text("800000 100000")
    (group.parent / "cpu.max").write_text("300000 100000")
    assert cpu_count() == 3


def test_version_1_quota(group: Path) -> None:
    (group / "cpu.cfs_quota_us").write_text("250000")
    (group / "cpu.cfs_period_us").write_text("100000")
    assert cpu_count() == 3
    (group / "cpu.cfs_quota_us").write_text("-1")
    forget()
    assert cpu_count() == 64


def test_memory_limit(group: Path) -> None:
    whole = machine.memory_bytes()
    assert whole > 1 << 20
    (group / "memory.max").write_text("max")
    forget()
    assert machine.memory_bytes() == whole
    (group / "memory.max").write_text("1048576")
    forget()
    assert machine.memory_bytes() == 1 << 20


def test_own_groups_exist_or_are_empty() -> None:
    assert all(isinstance(path, Path) for path in machine._own_groups())
