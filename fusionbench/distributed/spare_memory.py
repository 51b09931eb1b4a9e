"""Main memory that this process may still take, where SLURM or a container allows it less than the machine has."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
# Of version 2 and 1: the limit, what is in use, and the part of it that the kernel gives back when asked.
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def spare_memory() -> int:
    """Return the bytes that are to spare on the machine, or in the narrowest control group that this process is in."""
    return min([int(psutil.virtual_memory().available), *group_spares(Path("/proc/self/cgroup"), _CGROUPS)])


def group_spares(listed: Path, root: Path) -> list[int]:
    """Return what each control group that has a limit has to spare.

    Args:
        listed: The kernel's list of this process's groups: ``hierarchy:controllers:path`` a line.
        root: Where groups are folders.
    """
    try:
        lines = listed.read_text().splitlines()
    except OSError:  # no Linux
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind in _FILES:
            group = root / kind / path.strip("/")
            # A container may see its own group as the root, or its path from outside, which is not there.
            found += [_spare(each, *_FILES[kind]) for each in (group, *group.parents) if each.is_relative_to(root)]
    return [spare for spare in found if spare is not None]


def _spare(group: Path, limit: str, used: str, given_back: str) -> int | None:
    """Return what one group has to spare; None: it has no limit."""
    try:
        most = int((group / limit).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, most - int((group / used).read_text()) + int(stat.get(given_back, 0)))
    except (OSError, ValueError):  # not there, or "max"
        return None
