"""What the benchmarks share: timing, peak memory, and the tables in results.md.

Used by every `benchmarks/<name>.py` as `from harness import Row, measure, publish`. It knows nothing of what
is measured: a benchmark runs its peer and ours in one process run and hands over finished rows.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).with_name("results.md")
HEADER = ("what", "peer", "ours", "ratio", "bar", "met")


@dataclass(frozen=True)
class Row:
    """One claim: the peer's figure and ours in the same unit, their ratio, and the bar it must reach.

    `met` is None where the bar cannot be judged here (no peer, no accelerator); a note then says why.
    """

    what: str
    peer: str
    ours: str
    ratio: str
    bar: str
    met: bool | None


@dataclass(frozen=True)
class Stats:
    """Wall seconds of several runs."""

    median: float
    min: float
    max: float

    def __str__(self) -> str:
        return f"{self.median:.3g} s ({self.min:.3g}-{self.max:.3g})"


def measure(fn: Callable[[], object], repeat: int = 3, warm: int = 0) -> Stats:
    """Wall seconds of `fn()`, `repeat` times after `warm` runs that do not count."""
    for _ in range(warm):
        fn()
    return summarise([_seconds(fn) for _ in range(repeat)])


def _seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def summarise(seconds: Sequence[float]) -> Stats:
    return Stats(statistics.median(seconds), min(seconds), max(seconds))


def peak_rss(fn: Callable[[], object], over_start: bool = False) -> int:
    """Bytes of resident memory that a fork of this process peaks at while it runs `fn()`.

    With `over_start`, only what came on top of the fork's memory before the call (for example the loaded
    model). RuntimeError if `fn` fails there. Fork before any thread pool starts: threads do not survive it.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os._exit(_in_child(fn, write_end))
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0 or not answer:
        raise RuntimeError(f"the measured function failed in its process (status {status}); see stderr")
    start, peak = map(int, answer.split())
    return peak - start if over_start else peak


def _in_child(fn: Callable[[], object], write_end: int) -> int:
    try:
        start = _reset_peak()
        fn()
        os.write(write_end, f"{start} {_peak()}".encode())
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _reset_peak() -> int:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak a fork starts with is its parent's
    return _peak()


def _peak() -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found.group(1)) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def ratio(ours: float, peer: float) -> str:
    """`3.2x`: how many times less ours takes than the peer; below 1 ours is the slower."""
    return f"{peer / ours:.2f}x" if ours else "-"


def publish(section: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Print the section as markdown; with `--write` among the arguments, also put it into results.md."""
    text = _render(section, rows, notes)
    print(text)
    if "--write" in sys.argv:
        RESULTS.write_text(replace(RESULTS.read_text() if RESULTS.exists() else "", section, text))
    return text


def quick() -> bool:
    """Whether `--quick` asks for a smoke size, whose figures are not for results.md."""
    return "--quick" in sys.argv


def replace(page: str, section: str, text: str) -> str:
    """`page` with the named section put in place of the old one, or added at the end; the rest untouched."""
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    block = f"{begin}\n{text}\n{end}\n"
    if begin not in page:
        return f"{page.rstrip()}\n\n{block}".lstrip()
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2].removeprefix("\n")
    return before + block + after


def _render(section: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    mark = {True: "yes", False: "**no**", None: "-"}
    cells = [HEADER, ("---",) * len(HEADER)]
    cells += [(r.what, r.peer, r.ours, r.ratio, r.bar, mark[r.met]) for r in rows]
    table = ["| " + " | ".join(_cell(c) for c in row) + " |" for row in cells]
    size = " (quick size: a smoke run, not a result)" if quick() else ""
    head = [f"## {section}{size}", "", f"{machine()}, {datetime.now(UTC):%Y-%m-%d}", ""]
    return "\n".join([*head, *table, *(["", *(f"- {n}" for n in notes)] if notes else [])])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def machine() -> str:
    """Processor, cores, memory, accelerator and the libraries whose speed is measured, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = [f"{_processor()}, {_cores()} cores, {memory:.0f} GiB", *_accelerators()]
    return ", ".join([*facts, f"Python {platform.python_version()}", *_libraries()])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.machine()


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")  # never imported for this line: many benchmarks need none
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _libraries() -> list[str]:
    found = []
    for name in ("torch", "transformers", "numpy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
