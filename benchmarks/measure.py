"""Measure a command as a whole: wall, CPU seconds and memory of its process and all below it."""

import json
import os
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def measure(name: str, line: list[str], every: bool = False) -> dict[str, Any]:
    """Run a command, print what it took (and its memory at each tenth of its time), return the JSON that it printed."""
    wall, cpu, seen, said = cost(line)
    print(f"{name}: {wall:.1f} s, {cpu:.1f} CPU s, peak {seen.most / 2**20:.0f} MiB in all processes, "
          f"{seen.largest / 2**20:.0f} in the largest", flush=True)  # fmt: skip
    if every:
        tenths = seen.resident[:: max(1, len(seen.resident) // 10)]
        print(f"resident as it went: {' '.join(f'{each / 2**20:.0f}' for each in tenths)} MiB", flush=True)
    return json.loads(said)


def cost(line: list[str]) -> "tuple[float, float, Seen, str]":
    """Wall and CPU seconds of a command with all its processes, what was seen of them, and what it printed."""
    start, seen = time.monotonic(), Seen()
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=watch, args=(process, seen))
        watcher.start()
        said = process.communicate()[0]
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {process.returncode}")
    return time.monotonic() - start, sum(seen.cpu.values()), seen, said


@dataclass
class Seen:
    """What a process and all below it took so far: CPU seconds of each, and the most resident bytes of all at once."""

    cpu: dict[int, float] = field(default_factory=dict)
    most: int = 0
    largest: int = 0  # resident bytes of one of them, the most there ever were
    resident: list[int] = field(default_factory=list)  # of all at once, each time


def watch(process: subprocess.Popen[str], seen: Seen) -> None:
    """Look five times a second until the process ends; pages that processes share count for each of them."""
    while process.poll() is None:
        resident = 0
        for pid in family(process.pid):
            with suppress(OSError):  # it has ended
                facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                seen.cpu[pid] = (int(facts[11]) + int(facts[12])) / TICKS
                resident += int(facts[21]) * PAGE
                seen.largest = max(seen.largest, int(facts[21]) * PAGE)
        seen.most = max(seen.most, resident)
        seen.resident.append(resident)
        time.sleep(0.2)


def family(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for pid in found:
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # it has ended
                found += map(int, path.read_text().split())
    return found
