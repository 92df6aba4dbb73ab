"""What durability costs: the same rounds with and without fsync, in turn, in one run of this script.

With ``run.fsync: true``, the default, an update is on the device before it is acknowledged and a version before the
updates that made it are given up; with false both are in the kernel's cache, which survives the death of the
process, but not that of the machine. Everything else is `benchmarks.round_overhead`: a real server, client processes
that return constant deltas at once. Both kinds take turns, each first in every other turn, so that a machine
that slows down or speeds up meets both alike.

How to read the result: ``round_s`` are medians over all rounds of a kind, from the start of one to the start of the
next; ``ratio`` is the one with fsync over the one without, ``ratios`` the same turn by turn. ``commit_s`` is the part
that runs beside the next round and so shows in a round only where that is shorter. ``fsync_s`` says what the device
itself does, measured right after: the median of writing and syncing one update's bytes, and of syncing alone after
one block. A file system in memory (``file_system`` says which it is) syncs for nothing: ``--folder`` chooses another.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.round_overhead import round_times, run

BLOCK: Final = 4096
KINDS: Final = (("fsync", True), ("no_fsync", False))


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, as the kernel names it."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, name, *_ = line.split()
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, name
    return kind


def sync_seconds(folder: Path, nbytes: int, repeats: int = 15) -> float:
    """Median seconds to write so many bytes to a new file and sync it."""
    content, path, spent = os.urandom(nbytes), folder / "sync", []
    for _ in range(repeats):
        with path.open("wb", buffering=0) as file:
            began = time.perf_counter()
            file.write(content)
            os.fsync(file.fileno())
            spent.append(time.perf_counter() - began)
        path.unlink()
    return statistics.median(spent)


def turn(arguments: argparse.Namespace, folder: Path, *, fsync: bool) -> dict[str, Any]:
    """One run of one kind."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        result = run(arguments, Path(own), fsync=fsync)
        between, phases = round_times(Path(own) / "run")
    return {
        "payload_bytes": result["payload_bytes"],
        "round_s": between,
        "commit_s": [phase["commit"] for phase in phases if "commit" in phase],
        "median_s": statistics.median(between),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--parameters", type=int, default=4_385_920)
    parser.add_argument("--rounds", type=int, default=11, help="in each turn")
    parser.add_argument("--turns", type=int, default=4, help="runs of each kind")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where run directories lie")
    arguments = parser.parse_args()
    done: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for number in range(arguments.turns):
        for fsync in (True, False) if number % 2 == 0 else (False, True):
            done[fsync].append(turn(arguments, arguments.folder, fsync=fsync))
            print(f"turn {number}  fsync {fsync!s:5}  {done[fsync][-1]['median_s']:.3f} s a round", flush=True)
    medians = {
        name: {kind: statistics.median(s for each in done[fsync] for s in each[name]) for kind, fsync in KINDS}
        for name in ("round_s", "commit_s")
    }
    payload = done[True][0]["payload_bytes"]
    line = {
        "benchmark": "durability",
        "settings": {name: getattr(arguments, name) for name in ("clients", "parameters", "rounds", "turns")},
        "payload_bytes": payload,
        **medians,
        "ratio": medians["round_s"]["fsync"] / medians["round_s"]["no_fsync"],
        "ratios": [a["median_s"] / b["median_s"] for a, b in zip(done[True], done[False], strict=True)],
        "fsync_s": {"update": sync_seconds(arguments.folder, payload), "block": sync_seconds(arguments.folder, BLOCK)},
        "file_system": file_system(arguments.folder),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
