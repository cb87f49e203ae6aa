"""Change one constant or comparison at a time, and see whether a test notices: ``python tests/mutations.py``.

Run by hand, from the root of the repository; it is no test. Each mutation is made in a copy of ``src``, and the
tests that should catch it run against the copy until the first one fails. What survives is printed last: a number
that may be anything, or a test that is missing. ``--list`` prints the table, ``--check`` only looks whether every
pattern is found once.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = Path("src", "quadgrad", "_core")


@dataclass(frozen=True)
class Mutation:
    """One change.

    Attributes
    ----------
    name : str
        What is changed.
    file : str
        Below ``_core``, or a folder.
    old, new : str
        A regular expression that must match exactly once, and what replaces its first group, or all of it.
    tests : str
        Arguments for pytest: those that should notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str

    def apply(self, source: Path) -> None:
        """Change a copy of ``src``."""
        place = source / self.file
        paths = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        hits = [(path, hit) for path in paths for hit in re.finditer(self.old, path.read_text(), re.MULTILINE)]
        if len(hits) != 1:
            raise LookupError(f"{self.name}: {self.old!r} matches {len(hits)} times in {self.file}")
        (path, hit), text = hits[0], hits[0][0].read_text()
        low, high = hit.span(1 if hit.re.groups else 0)
        path.write_text(text[:low] + self.new + text[high:])


def constant(name: str, new: str) -> tuple[str, str]:
    """Return pattern and replacement for a constant at the top of a module."""
    return rf"^{name} = (.+)$", new


COUNTS = "tests/test_counts.py -k kernel"
DECISIONS = "tests/test_decide.py"
ESTIMATES = "tests/test_estimates.py"
READING = "tests/test_reading.py"
JUMPS = "tests/test_jumps.py"
ERRORS = "tests/test_gradient_error.py"
LAYERS = "tests/test_gradient_layers.py"
RESOLVE = "tests/test_resolve.py -k 'is_zero_to_rounding or searching_again'"
SEARCHED = "tests/test_counts.py -k searched"
POINTS = "tests/test_points.py"
PERTURBED = "tests/test_perturbations.py"
NOISE = "tests/test_perturbations_noise.py"
DATA = "tests/test_perturbations_data.py -k 'not spawn and not forked'"
CERTIFY = "tests/test_perturbations_certify.py"
UNSEEN = "tests/test_unseen.py"
SPIKES = "tests/test_spikes.py tests/test_open_spikes.py"
WITNESSES = "tests/test_witnesses.py"
CARRIED = "tests/test_carried.py"
REACH = "tests/test_reach.py"
SERIES = "tests/test_series.py tests/test_reach.py"
ZOOM = "tests/test_zoom.py tests/test_reach.py"
ROUNDING = "tests/test_noise_of_rounding.py tests/test_honesty.py"
HELD_OUT = "tests/test_held_out.py"
CUBATURE = "tests/test_scouts.py tests/test_held_out.py tests/test_cubature.py"

MUTATIONS = (
    # ----------------------------------------------------------------------------------------- search
    Mutation("share of the tolerance for a cell", "search/decide.py", *constant("SHARE", "1.0"), COUNTS),
    Mutation("rounds of values that are not finite", "search/decide.py", *constant("PATIENCE", "7"), DECISIONS),
    Mutation("what is faint", "search/decide.py", *constant("FAINT", "0.2"), DECISIONS),
    Mutation("what is zero to rounding", "search/decide.py", r"(5\.0) \* totals\.floor", "10.0", DECISIONS),
    Mutation(
        "where rounding ends a search", "search/decide.py", r"allowed, (2\.0) \* totals\.floor", "4.0", DECISIONS
    ),
    Mutation(
        "an error that is just allowed", "search/decide.py", r"met = error / allowed (<=) 1\.0", "<", DECISIONS
    ),
    Mutation(
        "an error that is just the target", "search/decide.py", r"done = error / target (<=) 1\.0", "<", DECISIONS
    ),
    Mutation("a cell's error that is just allowed", "search/decide.py", r"sums\[-2\] (>) verdict", ">=", DECISIONS),
    Mutation(
        "cells of a faint integral", "search/decide.py", r"most = \((0\.5) \* totals\.error", "0.9", DECISIONS
    ),
    Mutation(
        "the last round of values that are not finite",
        "search/decide.py",
        r"lost = bad (>) PATIENCE",
        ">=",
        DECISIONS,
    ),
    Mutation("why nothing is left to split", "search/decide.py", r"tolerance\.eps\*\*(0\.5)", "0.4", DECISIONS),
    Mutation(
        "a small error where nothing is left to split",
        "search/decide.py",
        r"totals\.error (>) tolerance\.eps",
        ">=",
        DECISIONS,
    ),
    # ------------------------------------------------------------------------------------ search: looks
    Mutation("the grid of the look for needles", "search/looks/needles.py", r"COARSEST = (11), 8", "6", UNSEEN),
    Mutation("how closely the look zooms", "search/looks/needles.py", r"ZOOMS = 16, (8)", "1", UNSEEN),
    Mutation("octaves at ends of wide pieces", "search/looks/wide.py", *constant("OCTAVES", "1"), UNSEEN),
    Mutation("a gap that matters", "search/looks/gaps.py", *constant("MATTERS", "10.0"), SPIKES),
    Mutation("a gap that rounding explains", "search/looks/gaps.py", *constant("ROUNDING", "1e8"), SPIKES),
    Mutation("a spike that is resolved", "search/looks/open_spikes.py", *constant("RESOLVED", "1e3"), SPIKES),
    Mutation("octaves around a spike", "search/looks/spikes.py", *constant("OCTAVES", "2"), SPIKES),
    Mutation("how often spikes are followed", "search/looks/spikes.py", *constant("PASSES", "1"), SPIKES),
    Mutation(
        "how far a witness is from an argument", "search/looks/witnesses.py", *constant("AWAY", "0.1"), WITNESSES
    ),
    Mutation("how many witnesses a piece has", "search/looks/witnesses.py", *constant("MOST", "1"), WITNESSES),
    Mutation("what settles a witness", "search/looks/witnesses.py", *constant("SETTLES", "1e6"), WITNESSES),
    Mutation("how near a carried spike is", "search/looks/carried.py", *constant("NEAREST", "0.1"), CARRIED),
    # ----------------------------------------------------------------------------- search: piles and ends
    Mutation("what is smooth after all", "search/piles/zoom.py", *constant("SMOOTH", "0.9"), ZOOM),
    Mutation("how often a bend is asked", "search/piles/zoom.py", *constant("SURE", "1"), ZOOM),
    Mutation("what proves a kink", "search/piles/corners.py", *constant("PROVES", "20.0"), REACH),
    Mutation("a pile's part of the error", "search/piles/stretches.py", *constant("WORST", "0.5"), REACH),
    Mutation("what a place saves", "search/piles/watch.py", r"^SAVES, SAVES_STRONG = (600)", "10**9", REACH),
    Mutation("terms of a series", "search/ends/waves.py", *constant("TERMS", "4"), SERIES),
    Mutation("fewest terms of a series", "search/ends/tails.py", *constant("FEWEST", "2"), SERIES),
    Mutation("a tail that fits", "search/ends/waves.py", r"^FITS, NEGLIGIBLE = (0\.03)", "3.0", SERIES),
    Mutation("a series that is good", "search/ends/towards.py", *constant("GOOD", "1e4"), SERIES),
    Mutation("what rounding hides", "search/ends/fading.py", r"^HIDDEN, GROWS = (0\.3)", "1e-9", SERIES),
    Mutation("noise that rounding explains", "search/noisy.py", *constant("EXPLAINED", "0.0"), ROUNDING),
    # ------------------------------------------------------------------------------------- search: boxes
    Mutation("points held out that disagree", "search/boxes/held_out.py", *constant("BEYOND", "1e6"), HELD_OUT),
    Mutation("first bisections of boxes", "search/boxes/bodies.py", *constant("BISECTIONS", "0"), CUBATURE),
    Mutation("faces that show more", "search/boxes/neighbours.py", r"^HIGHER = (3\.0)", "1e9", CUBATURE),
    Mutation("how many scouts", "search/boxes/scouts.py", *constant("POINTS", "4"), CUBATURE),
    Mutation("what was lost again", "search/boxes/scouts.py", *constant("LOST", "1e9"), CUBATURE),
    Mutation("how far scouts climb", "search/boxes/scouts.py", r"ELITE, STEPS = 128, 32, (8)", "1", CUBATURE),
    Mutation("errors left in boxes", "search/boxes/holding.py", *constant("NEGLIGIBLE", "2.0"), CUBATURE),
    # -------------------------------------------------------------------------------------- estimates
    Mutation("floor of an error", "estimates/null_rules.py", *constant("FLOOR", "20.0"), ESTIMATES),
    Mutation("rounding of x", "estimates/null_rules.py", *constant("PLACE", "0.6"), COUNTS),
    Mutation("values beyond the nodes", "estimates/null_rules.py", *constant("BEYOND", "12.0"), ESTIMATES),
    Mutation("safety of an error", "estimates/null_rules.py", *constant("SAFETY", "5.0"), COUNTS),
    Mutation("what is no decay", "estimates/null_rules.py", *constant("SLOW", "0.95"), COUNTS),
    Mutation(
        "what one bisection cannot resolve", "estimates/null_rules.py", *constant("UNRESOLVED", "0.8"), COUNTS
    ),
    Mutation("where a pole is looked for", "estimates/null_rules.py", *constant("NEAR", "0.9"), COUNTS),
    Mutation("how well a pole is known", "estimates/null_rules.py", *constant("UNSURE", "0.6"), COUNTS),
    Mutation("steps of heights of poles", "estimates/null_rules.py", *constant("STEPS", "4.0"), COUNTS),
    Mutation("when the rougher half is to blame", "estimates/null_rules.py", *constant("ROUGHER", "1e4"), COUNTS),
    Mutation("when a lower column is taken", "estimates/singular_ends.py", *constant("CLOSE", "0.3"), ESTIMATES),
    Mutation("the node nearest to an end", "estimates/singular_ends.py", *constant("NEAREST", "2.0**-240"), COUNTS),
    # ------------------------------------------------------------------------------------------- mesh
    Mutation("a pole at an end", "mesh", *constant("AT_END", "2.0**-4"), COUNTS),
    Mutation("how far a cell at an end is split", "mesh", *constant("STEP", "2.0**-5"), COUNTS),
    Mutation("how close to a limit f is looked at", "mesh", *constant("LIMIT", "2.0**-36"), ESTIMATES),
    Mutation("the same in ulps", "mesh", *constant("ULPS", "256.0"), ESTIMATES),
    Mutation("how close to an end the series is checked", "mesh", *constant("DEEPEST", "2.0**-200"), ESTIMATES),
    Mutation("halvings before logarithmic nodes", "mesh", *constant("DEEP", "5.0"), COUNTS),
    Mutation("halvings before they are tried again", "mesh", *constant("EVERY", "5.0"), COUNTS),
    Mutation("octaves of a cell at an end", "mesh/interval.py", *constant("DEPTH", "10"), COUNTS),
    Mutation("bisections at once", "mesh/poles.py", *constant("LEVELS", "10"), COUNTS),
    # ------------------------------------------------------------------------------------ breakpoints
    Mutation("order of a zero's derivatives", "breakpoints/implicit.py", *constant("ORDER", "3"), READING),
    Mutation("how uncertain g is", "breakpoints/implicit.py", *constant("VALUE_ULPS", "400.0"), READING),
    Mutation("where g is flat", "breakpoints/implicit.py", *constant("FLAT_ZERO", "1e-9"), READING),
    Mutation("what is no zero but a jump", "breakpoints/crossings.py", *constant("VANISHED", "0.9"), READING),
    Mutation("nodes of a scan", "breakpoints/crossings.py", *constant("_NODES", "8"), READING),
    Mutation("scans", "breakpoints/jumps.py", *constant("SCANS", "1"), JUMPS + " -k scan_misses"),
    Mutation(
        "steps of the root finder", "breakpoints/roots.py", *constant("MOST_STEPS", "10"), JUMPS + " -k scan_misses"
    ),
    Mutation(
        "what shows a jump",
        "breakpoints/unmarked.py",
        *constant("INSIDE", "0.5"),
        JUMPS + " -k only_unmarked_jumps",
    ),
    Mutation(
        "what shows one outside of the nodes",
        "breakpoints/unmarked.py",
        *constant("OUTSIDE", "1.0"),
        JUMPS + " -k no_node_tells",
    ),
    Mutation(
        "what is flat beside a jump",
        "breakpoints/unmarked.py",
        *constant("BESIDE_JUMP", "2.0"),
        JUMPS + " -k marked_by_what",
    ),
    # --------------------------------------------------------------------------------------- gradient
    Mutation("reading distance in ulps", "gradient/boundary.py", r"^AWAY_ULPS, AWAY_GAP = (64\.0)", "1.0", READING),
    Mutation(
        "reading distance in widths",
        "gradient/boundary.py",
        r"^AWAY_ULPS, AWAY_GAP = 64\.0, (2\.0\*\*-40)",
        "2.0**-38",
        READING,
    ),
    Mutation(
        "reading distance in narrow pieces",
        "gradient/boundary.py",
        r"AWAY_GAP \* gap\), (0\.25) \* gap",
        "0.5",
        READING,
    ),
    Mutation(
        "rounding of a value that is a derivative",
        "gradient/boundary.py",
        *constant("READ_ROUNDING", "5.0"),
        READING,
    ),
    Mutation(
        "what decays towards an end",
        "gradient/pathwise.py",
        *constant("DECAY", "0.5"),
        "tests/test_gradients.py -k moves_with_the_limit",
    ),
    Mutation("what is smooth enough for its halves", "gradient/columns.py", *constant("FALLS_OFF", "0.9"), ERRORS),
    Mutation(
        "how much a difference of halves is trusted", "gradient/measure.py", *constant("CAUTION", "1.0"), ERRORS
    ),
    Mutation("where halving helps", "gradient/measure.py", *constant("HELPED", "1.0"), ERRORS + " " + LAYERS),
    Mutation("how far layers reach", "gradient/layers.py", r"^OCTAVES, .* = (40\.0)", "10.0", LAYERS),
    Mutation("when a layer is looked at closely", "gradient/layers.py", *constant("TELLING", "1e6"), LAYERS),
    Mutation(
        "layers before the first search", "gradient/resolve.py", r"hidden\.any\(\)\) (and not first)", "", SEARCHED
    ),
    Mutation(
        "how close to an end a derivative is drawn", "gradient/singular_ends.py", *constant("AIM", "10.0"), SEARCHED
    ),
    Mutation("searches of a derivative", "gradient/resolve.py", *constant("SEARCHES", "1"), RESOLVE),
    Mutation("a derivative that is zero", "gradient/resolve.py", *constant("ZERO", "500.0"), RESOLVE),
    Mutation(
        "rounding below which no derivative is searched",
        "gradient/resolve.py",
        *constant("HIDDEN", "5.0"),
        SEARCHED,
    ),
    # ----------------------------------------------------------------------------------------- points
    Mutation(
        "the middle of float64's digits",
        "points/digits.py",
        r"sub_\(1\.0 - 0\.5\*\*self\.count \* (0\.5)\)",
        "0.0",
        POINTS,
    ),
    Mutation("digits of float32", "points/digits.py", r"^FLOAT32 = .* (23), 0x", "22", POINTS),
    Mutation("Gray's code", "points/sobol.py", r"directions\[\.\.\., (:-1)\]", "1:", POINTS),
    Mutation("diagonal of a scramble", "points/sobol.py", r"\(one - 1\) \| (one)", "0", POINTS),
    Mutation("digits behind the diagonal", "points/sobol.py", r"& (\(one - 1\)) \| one", "0", POINTS),
    Mutation("digits before the diagonal", "points/sobol.py", r"& (\(one - 1\)) \| one", "(4 * one - 1)", POINTS),
    Mutation("replicates of a scramble", "points/sobol.py", r"MATRIX\), (replicate), d", "replicate * 0", POINTS),
    Mutation("dimensions of a scramble", "points/sobol.py", r"replicate, (dimension), c", "dimension * 0", POINTS),
    Mutation("key of an item", "points/sequence.py", *constant("ITEM", "0x53484654"), POINTS),
    Mutation(
        "dimensions of an item's shift", "points/sequence.py", r"item, (dimension)\)", "dimension * 0", POINTS
    ),
    Mutation("replicates", "points/sequence.py", r"key\), (self\.numbers\(\))\[", "(self.numbers() * 0)", POINTS),
    Mutation("terms for an index", "points/binary.py", r"stop (- 1)\)\.bit", "// 512", POINTS),
    Mutation("where a group of blocks begins", "points/binary.py", r"number << (\(low \+ middle\))", "low", POINTS),
    Mutation("a hash of fewer rounds", "points/hashing.py", r"return (mixed\.bitwise_xor_.*)$", "mixed", POINTS),
    Mutation(
        "order of keys",
        "points/hashing.py",
        r"bits = mix(\(\(key \+ 1\) \* GOLDEN \+ bits\))",
        "(key) + bits",
        POINTS,
    ),
    Mutation("length of a seed", "points/hashing.py", r"number (>>=) 64", "//= 2**63 *", POINTS),
    Mutation("sign of a seed", "points/hashing.py", r"int\((number < 0)\)", "0", POINTS),
    Mutation("digits of the lattice", "points/lattice.py", r"arange\((BITS - 1), B", "BITS - 2", POINTS),
    Mutation(
        "shifts of the lattice",
        "points/lattice.py",
        r"return (self\.random_bits\(SHIFT\))",
        "self.random_bits(SHIFT)[:1].expand(self.replicates, -1)",
        POINTS,
    ),
    # ---------------------------------------------------------------------------------- perturbations
    Mutation("seeds of blocks", "perturbations/noise.py", r"hash_numbers\((seed, BLOCK, g)\)", "seed", NOISE),
    Mutation("orders of blocks", "perturbations/noise.py", r"points = (points\[order\])", "points", NOISE),
    Mutation("shifts of items", "perturbations/noise.py", r"moved_by\(some, (shift)\)", "shift[:1]", NOISE),
    Mutation("items of a chunk", "perturbations/averaged.py", r"\[(shift\[b:c\]) for", "shift[: c - b]", NOISE),
    Mutation(
        "points of a chunk",
        "perturbations/averaged.py",
        r"for shift in self\.shifts\], (j, k)\)",
        "0, k - j",
        NOISE,
    ),
    Mutation("sums of a third chunk", "perturbations/averaged.py", r"(\.add_\(gradient\))", "", PERTURBED),
    Mutation(
        "sums in single precision",
        "perturbations/averaged.py",
        r"gradient, key = (_widened\(gradient\))",
        "gradient",
        PERTURBED,
    ),
    Mutation(
        "leaves past the stand-ins", "perturbations/averaged.py", r"leaves \+= (\[t for .*)$", "[]", PERTURBED
    ),
    Mutation("chunks that ran before", "perturbations/averaged.py", r"number (\+ 1), state", "* 0", PERTURBED),
    Mutation(
        "random numbers of another time", "perturbations/again.py", r"^    (state\.put_back\(\))", "pass", PERTURBED
    ),
    Mutation("random numbers afterwards", "perturbations/again.py", r"(now\.put_back\(\))", "pass", PERTURBED),
    Mutation("what was written", "perturbations/again.py", r"(written\.put_back\(\))", "pass", PERTURBED),
    Mutation("running statistics", "perturbations/again.py", r"return (value\.clone\(\)) if", "value", PERTURBED),
    Mutation("a loss that changes", "perturbations/averaged.py", r"eps\) \*\* (0\.5)", "0.0", PERTURBED),
    Mutation(
        "autocast around a call",
        "perturbations/averaged.py",
        r"loss=(unaided\.restore\(self\.loss\))",
        "self.loss",
        PERTURBED,
    ),
    Mutation("epochs", "verbs/perturbed.py", r"self\.seed, EPOCH, (epoch)\)", "0", DATA),
    Mutation("epochs of workers", "verbs/perturbed.py", r'device="cpu"\)(\.share_memory_\(\))', "", DATA),
    Mutation("what is kept for an epoch", "verbs/perturbed.py", r"key = (epoch), x", "0", DATA),
    Mutation("points that choose a class", "verbs/certify.py", r"counts\((n0), n\)", "0", CERTIFY),
    Mutation("items of a certificate", "verbs/certify.py", r"CERTIFY, (i)\)", "0", CERTIFY),
    Mutation("the bound", "verbs/certify.py", r"n - hits (\+ 1), alpha", "", CERTIFY),
    Mutation("scores that are NaN", "verbs/certify.py", r"isnan\(\)\.any\(1\), (-1)\)", "0", CERTIFY),
)


def run(mutation: Mutation, folder: Path) -> tuple[str, float]:
    """Return what became of a mutation, and the seconds that took."""
    copy = folder / "src"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
    mutation.apply(copy / "quadgrad" / "_core")
    began = time.perf_counter()
    done = run_tests(mutation.tests, copy)
    outcome = {0: "SURVIVED", 1: "caught"}.get(done.returncode, f"no answer ({done.returncode})")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return f"{outcome:10s} {failed.group(1) if failed else ''}", time.perf_counter() - began


def run_tests(tests: str, source: Path) -> subprocess.CompletedProcess[str]:
    """Run some tests against a copy of ``src`` until the first one fails."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "-rfE",
        *shlex.split(tests),
    ]
    paths = os.pathsep.join((str(source), str(ROOT)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def main() -> int:
    """Make the mutations whose names contain one of the words given, by default all."""
    parser = argparse.ArgumentParser(description="Change one number at a time and see whether a test notices.")
    parser.add_argument("words", nargs="*", help="parts of names of mutations")
    parser.add_argument("--list", action="store_true", help="print the table")
    parser.add_argument("--check", action="store_true", help="only look whether every pattern is found once")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if not options.words or any(word in m.name for word in options.words)]
    survived = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not (options.list or options.check):
            for tests in dict.fromkeys(m.tests for m in chosen):
                if run_tests(tests, ROOT / "src").returncode != 0:
                    print(f"the tests do not pass as they are: {tests}")
                    return 2
        for mutation in chosen:
            label = f"{mutation.name} ({mutation.file}): {mutation.new}"
            if options.list:
                print(label)
                continue
            try:
                if options.check:
                    shutil.copytree(ROOT / CORE, folder / "core", dirs_exist_ok=True)
                    mutation.apply(folder / "core")
                    continue
                outcome, seconds = run(mutation, folder)
            except LookupError as error:
                outcome, seconds = str(error), 0.0
            if "caught" not in outcome:
                survived.append(label)
            print(f"{label}: {outcome} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen)} mutations, {len(survived)} not caught", *survived, sep="\n  ")
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())
