"""Run the benchmarks: ``python -m benchmarks`` all of them, ``python -m benchmarks peaks single`` some.

Targets stand beside what was measured; missing one is printed, and is no failure of the program.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console

import quadgrad as qg
from benchmarks import (
    antiderivative,
    bridge,
    coverage,
    cubature,
    distances,
    doctor,
    families,
    fuzz,
    gradients,
    memory,
    peaks,
    peers,
    perturbations,
    points,
    ranks,
    sampled,
    samples,
    sampling,
    shapes,
    single,
    table,
    tensorflow,
    tensors,
    training,
    transforms,
    vegas,
)
from benchmarks.findings import Findings
from benchmarks.report import show_findings, show_setting

BENCHMARKS: dict[str, Callable[..., Findings]] = {
    "peaks": peaks.measure,
    "distances": distances.measure,
    "single": single.measure,
    "memory": memory.measure,
    "training": training.measure,
    "transforms": transforms.measure,
    "shapes": shapes.measure,
    "tensors": tensors.measure,
    "tensorflow": tensorflow.measure,
    "points": points.measure,
    "samples": samples.measure,
    "sampled": sampled.measure,
    "ranks": ranks.measure,
    "coverage": coverage.measure,
    "sampling": sampling.measure,
    "perturbations": perturbations.measure,
    "cubature": cubature.measure,
    "vegas": vegas.measure,
    "antiderivative": antiderivative.measure,
    "bridge": bridge.measure,
    "table": table.measure,
    "families": families.measure,
    "fuzz": fuzz.measure,
    "peers": peers.measure,
    "gradients": gradients.measure,
    "doctor": doctor.measure,
}

AGAINST = ("transforms", "shapes")
"""Pages that can time an earlier commit in turn with this one."""


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Time quadgrad beside its peers and its own integrand."
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"which ones, of: {', '.join(BENCHMARKS)}; default all"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full batch sizes, for a quick look (default 1)"
    )
    parser.add_argument("--seed", type=int, help="of the random families, to see a run again (default: a new one)")
    parser.add_argument(
        "--against", metavar="SRC",
        help="src folder of another commit, its kernel built: the pages transforms and shapes time it as well",
    )  # fmt: skip
    parser.add_argument(
        "--keep-freed-memory", action="store_true",
        help="call qg.keep_freed_memory() first, which other commits did when they were imported",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, help="of the page fuzz (default: until it has enough claims)")
    parser.add_argument("--claims", type=int, help="of the page fuzz, about so many (default 1,100,000)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TASK",
        help="of the page fuzz, and again for more: 'family', ':way', 'family:way', 'family:way:turn'",
    )  # fmt: skip
    parser.add_argument("--first", type=int, default=0, help="of the page doctor: the first program's number")
    parser.add_argument("--count", type=int, help="of the page doctor: how many programs (default all 1,100)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if not 0 < options.scale <= 1:
        parser.error(f"--scale {options.scale:g} must be above 0 and at most 1")
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    if options.keep_freed_memory:
        qg.keep_freed_memory()
    show_setting(console, options.keep_freed_memory)
    for name in options.names or BENCHMARKS:
        with console.status(f"{name} ..."):
            more = {"seed": options.seed} if name in ("bridge", "cubature", "doctor", "families", "fuzz") else {}
            more |= {key: getattr(options, key) for key in ("minutes", "claims", "only")} if name == "fuzz" else {}
            more |= {key: getattr(options, key) for key in ("first", "count")} if name == "doctor" else {}
            more |= {"against": options.against} if name in AGAINST else {}
            findings = BENCHMARKS[name](options.scale, **more)
        show_findings(findings, console)


if __name__ == "__main__":
    main()
