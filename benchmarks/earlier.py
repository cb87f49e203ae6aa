"""Time another commit's quadgrad in turn with this one's: a process of its own runs a page's tasks by their names.

``python -m benchmarks.earlier MODULE`` is that process: it imports the module, which offers ``make_tasks``, with
the other package on its path, reads names from its input, one a line, and answers with seconds.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.findings import Figure, Target, compare
from benchmarks.timing import Seconds, Task, interleave

__all__ = ["Earlier", "time_in_turn"]

NOT_GIVEN = "Not beside an earlier commit: its src folder was not given with --against."
NOISE = 1.05
"""How much longer than before still counts as no slower: what two runs of one commit differ by."""


class Earlier:
    """The process of another commit, or another process of this one; its tasks can be timed in turn with ours."""

    def __init__(self, source: str, module: str) -> None:
        root = Path(__file__).parent.parent
        if not Path(source, "quadgrad").is_dir():
            raise FileNotFoundError(
                f"--against {source} holds no folder quadgrad: it must be the src of a checkout"
            )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.earlier", module],
            cwd=root,
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(source).resolve()), str(root)))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the process of the earlier commit ended: {self.process.wait()}")
        return line

    def task(self, name: str) -> Task:
        """Return a task: the one of that name, run there, timed there."""

        def run() -> float:
            assert self.process.stdin is not None
            print(name, file=self.process.stdin, flush=True)
            return float(self._read())

        return run

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def time_in_turn(
    tasks: dict[str, Task], names: Iterable[str], against: str | None, module: str, repeats: int, pause: float
) -> tuple[dict[str, Seconds], list[Figure], list[str]]:
    """Time a page's tasks, those of these names beside the earlier commit's; return its figures and notes, too."""
    if against is None:
        return interleave(tasks, repeats, warm_up=2, pause=pause), [], [NOT_GIVEN]
    earlier, before = Earlier(against, module), {name: f"{name}, the commit before" for name in names}
    tasks = tasks | {renamed: earlier.task(name) for name, renamed in before.items()}
    seconds = interleave(tasks, repeats, warm_up=2, pause=pause)
    earlier.close()
    figures = [
        compare(f"{name}: now over before", seconds[name], seconds[renamed], Target(NOISE))
        for name, renamed in before.items()
    ]
    return seconds, figures, [f"The commit before: {earlier.version}"]


def main() -> None:
    """Run the tasks that are asked for."""
    import quadgrad

    tasks: dict[str, Task] = importlib.import_module(sys.argv[1]).make_tasks()
    print(quadgrad.__file__, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        own = tasks[line.strip()]()
        whole = time.perf_counter() - start
        print(own if isinstance(own, float) else whole, flush=True)


if __name__ == "__main__":
    main()
