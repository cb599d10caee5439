"""An extension of griffe: the cross-references of docstrings, :class:`X` and the like, as mkdocstrings writes them."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|mod):`([\w.]+)`")
PACKAGE, FACADE = "fastpool", "WorkerPool"


class Roles(griffe.Extension):
    """What begins with the package's name, or is a member of the facade, becomes a link."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        def linked(role: re.Match[str]) -> str:
            name = role[1]
            if name.startswith(f"{PACKAGE}."):
                target = name
            elif name == FACADE:
                target = f"{PACKAGE}.{name}"
            elif name in members:
                target = f"{PACKAGE}.{FACADE}.{name}"
            else:
                return f"`{name}`"
            return f"[`{name.removeprefix(f'{PACKAGE}.')}`][{target}]"

        members = pkg[FACADE].final_target.members
        stack: list[Any] = [pkg]
        while stack:
            item = stack.pop()
            if item.docstring is not None:
                item.docstring.value = ROLE.sub(linked, item.docstring.value)
            stack += [member for member in item.members.values() if not member.is_alias]
