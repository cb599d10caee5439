"""What a build with FASTPOOL_DEBUG=1 counts in a segment, compared when that is closed: what was begun was ended.

See ``Segment.tally``. A worker that was killed may have been between an event and its tally, or within a record. A map
that ended in an error leaves its input in the segment.
"""

from __future__ import annotations

from typing import Any


def wrongs(tally: dict[str, Any]) -> list[str]:
    """A line for each pair of counts that do not belong together."""
    if tally.get("damaged"):
        return ["the blocks of a heap make no list"]
    killed = [n for n, *_ in tally["lanes"]]
    found = []
    for owner, (taken, freed, used, _) in enumerate(tally["heaps"]):
        slack = killed[owner] if owner < len(killed) else 0
        if not 0 <= used - (taken - freed) <= slack:
            found.append(f"heap {owner}: {taken} blocks taken, {freed} freed, but {used} in use")
    *_, (_, _, used, held) = tally["heaps"]
    if tally["finished"] and used != held + tally["functions"]:
        found.append(f"the parent's heap: {used} blocks in use, {held} held, functions: {tally['functions']}")
    for worker, (_, opened, closed, bell) in enumerate(tally["lanes"]):
        if not 0 <= opened - closed <= killed[worker]:
            found.append(f"lane {worker}: {opened} records opened, {closed} closed")
        found += wrong_rings(f"the bell of worker {worker}", bell, 1, tally["silences"])
    found += wrong_rings("the parent's bell", tally["bell"], len(killed), 0)
    return found


def wrong_rings(name: str, bell: tuple[int, int, int], ringers: int, silences: int) -> list[str]:
    """Each sleep is ended by one ring of each ringer at most, and a bell is not drained more often than it was rung."""
    sleeps, rung, drained = bell
    if rung <= sleeps * ringers and drained <= rung + silences:
        return []
    return [f"{name}: {sleeps} sleeps of which {ringers} may ring, {rung} rings, drained {drained} times"]
