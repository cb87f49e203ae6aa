"""Arguments that a function does not have, under the names that SciPy and others give to what it has."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["names_ours", "turned_round"]

P = ParamSpec("P")
R = TypeVar("R")

RENAMED = {
    "f": "func function fn fun integrand",
    "rtol": "epsrel rel_tol reltol relative_tolerance tol tolerance eps precision",
    "atol": "epsabs abs_tol abstol absolute_tolerance",
    "max_nfev": "limit maxiter max_iter max_evals maxeval max_neval max_nevals max_ninter maxfev max_subdivisions "
    "max_n minlevel miniter limlst maxp1 n neval num_samples n_samples",
    "n": "neval n_eval n_points npoints num_points max_nfev n_samples num_samples nsamples samples sample_size N "
    "maxeval max_evals limit maxiter",
    "replicates": "n_estimates num_estimates n_replicates",
    "iterations": "nitn n_iterations num_iterations max_iterations maxiter",
    "bins": "nbins n_bins ninc",
    "rule": "quadrature order method integrator",
    "sequence": "qrng engine sampler",
    "seed": "rng generator random_state qrng",
    "points": "point breakpoints breaks break_points singularities",
    "vectorized": "vec_func vectorised vectorize vec vector",
    "chunk_size": "batch_size chunksize cache_size max_batch",
    "args": "params parameters fargs func_args kwargs",
    "gradient": "grad adjoint gradient_mode differentiable",
    "progress": "verbose pbar show_progress",
    "on_failure": "errors raises warn",
    "dim": "axis",
    "kind": "bc_type method k",
    "distribution": "dist rv noise sigma std",
    "weight": "importance_weight",
}
"""What each of our arguments is called elsewhere."""

SAME_VALUE = ("rtol", "atol", "points", "args", "dim", "n", "max_nfev", "replicates", "iterations", "bins")
"""Those of which a value means the same under another name, if it is a small one to be printed."""

COUNTS_OTHERS = {
    "limit",
    "maxiter",
    "max_iter",
    "max_ninter",
    "max_subdivisions",
    "minlevel",
    "miniter",
    "limlst",
    "maxp1",
}
"""Arguments that count something else than evaluations."""

NEEDLESS = {
    "full_output": "the Result has it all: result.error, result.nfev, result.status, result.message, result.plan",
    "complex_func": "leave it out, f may return complex tensors",
    "weight": "multiply f by it; singular ends are found, interior singularities are named in points=",
    "wvar": "write the weight into f; singular ends are found, interior singularities are named in points=",
    "norm": "leave it out, the error of several components is that of the worst",
    "workers": "leave it out, f gets many x at once; torch.set_num_threads sets the threads",
    "dtype": "it is that of the tensors among a, b and args: a limit torch.tensor(0.0, dtype=torch.float64)",
    "device": "it is that of the tensors among a, b and args: a limit torch.tensor(0.0, device='cuda')",
    "initial": "only the cumulative functions have it",
    "even": "leave it out, any number of samples is served",
    "n_dim": "the dimension is the length of a and b",
    "dim": "the dimension is the length of a and b",
    "integration_domain": "the limits are a and b: all lower ones in a, all upper ones in b",
    "ranges": "the limits are a and b: all lower ones in a, all upper ones in b",
    "bounds": "the limits are a and b: all lower ones in a, all upper ones in b",
    "limits": "the limits are a and b",
    "lb": "integrate f times the density by quadgrad.quad where limits are needed",
    "ub": "integrate f times the density by quadgrad.quad where limits are needed",
    "loc": "it belongs to the distribution, torch.distributions.Normal(loc, scale)",
    "scale": "it belongs to the distribution, torch.distributions.Normal(loc, scale)",
    "conditional": "divide by the expectation of the condition",
    "points": "breakpoints are for quadgrad.quad: split the box there, and add",
    "rule": "points are drawn: n= or rtol= say how many",
    "log": "quadgrad.quad has it, for f that returns a logarithm",
    "callback": "leave it out, result.plan shows where f was evaluated",
    "region": "quadgrad.cubature and quadgrad.qmc have it",
    "jumps": "quadgrad.quad has it; a part of a box is region=quadgrad.Where(g) of cubature and qmc",
    "seed": "leave it out, nothing is drawn at random",
    "progress": "leave it out, it is for calls that take long: cubature, qmc and vegas have it",
    "opts": "what is in it are arguments here: rtol, atol, points",
    "backend": "leave it out, what f returns decides: tensors of torch, or of TensorFlow by quadgrad.tensorflow",
}
"""What has no counterpart, and why none is needed."""


def names_ours(verb: Callable[P, R]) -> Callable[P, R]:
    """Let a function say what its own name is for an argument that it does not have."""
    parameters = inspect.signature(verb).parameters
    accepted = frozenset(parameters)
    by_position = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    needed = frozenset(name for name in by_position if parameters[name].default is inspect.Parameter.empty)
    most = len(by_position)

    @functools.wraps(verb)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        # A compiler that traces this would have to look into it; it refuses what is wrong by itself.
        if not torch.compiler.is_compiling() and not (
            len(args) <= most
            and kwargs.keys() <= accepted
            and (len(args) >= len(needed) or needed <= kwargs.keys() | set(by_position[: len(args)]))
        ):
            raise TypeError(_explain(verb.__name__, args, kwargs, by_position, accepted, needed))
        return verb(*args, **kwargs)

    return checked


def _explain(
    verb: str, args: Sequence[Any], kwargs: Mapping[str, Any], by_position: Sequence[str], accepted: frozenset[str],
    needed: frozenset[str],
) -> str:  # fmt: skip
    """Say what is wrong with a call, one sentence for each argument."""
    said = [f"{name!r}: {_ours(name, value, accepted)}" for name, value in kwargs.items() if name not in accepted]
    if said:
        return f"{verb}() got an unexpected keyword argument " + "; and ".join(said)
    if len(args) > len(by_position):
        more = args[len(by_position)]
        by_name = "rtol" if "rtol" in accepted else "dx"
        return (
            f"{verb}() takes {len(by_position)} arguments by position, {', '.join(by_position)}, and "
            f"{len(args)} were "
            f"given: write the others with their names, such as {by_name}={more!r:.40}"
        )
    missing = [name for name in by_position[len(args) :] if name in needed - kwargs.keys()]
    text = (
        f"{verb}() is missing {' and '.join(missing)}: write "
        f"{verb}({', '.join(n for n in by_position if n in needed)})"
    )
    if "b" not in missing or len(args) != 2:
        return text
    if pairs := turned_round(args[1]):
        return text + pairs
    if isinstance(args[1], list | tuple) and len(args[1]) == 2:
        text += f", here {verb}(f, {args[1][0]!r:.20}, {args[1][1]!r:.20}): the limits are two arguments"
    return text


def turned_round(limits: Any) -> str:
    """Say which corners are meant by a pair of limits for each coordinate; nothing where limits are not that."""
    pairs = limits.tolist() if hasattr(limits, "tolist") else limits
    if not pairs or not isinstance(pairs, list | tuple):
        return ""
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return ""
    low, high = ([pair[k] for pair in pairs] for k in range(2))
    return f". A pair for each coordinate is turned round: a={low!r:.60}, b={high!r:.60}"


def _ours(name: str, value: Any, accepted: frozenset[str]) -> str:
    """Say what to write for an argument of another name."""
    for ours, others in RENAMED.items():
        if ours in accepted and name in others.split():
            if name in COUNTS_OTHERS:
                what = "points" if ours == "n" else "evaluations of f for each integral"
                return f"that is {ours} here, which counts {what}"
            if ours in SAME_VALUE and isinstance(value, int | float | list | tuple) and len(repr(value)) <= 40:
                return f"that is {ours} here, {ours}={value!r}"
            return f"that is {ours} here"
    if name in NEEDLESS:
        return NEEDLESS[name]
    near = difflib.get_close_matches(name, accepted, 1)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(accepted))}"
