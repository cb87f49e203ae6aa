"""The line to write instead: for each kind of severing, and for what the source line says."""

from __future__ import annotations

import re

from quadgrad.doctor.names import STEPPING

__all__ = ["RAISED", "remedy_for", "step_remedy"]

_BRIDGE = "wrap what is not torch: g = quadgrad.bridge.wrap(numpy_function), and call g(x) with the tensor"

_NUMPY = {
    "clip": "torch.clamp", "maximum": "torch.maximum", "minimum": "torch.minimum", "where": "torch.where",
    "concatenate": "torch.cat", "abs": "torch.abs", "absolute": "torch.abs", "power": "torch.pow",
    "interp": "quadgrad.spline, or torch.lerp", "trapezoid": "quadgrad.trapezoid", "trapz": "quadgrad.trapezoid",
    "convolve": "torch.nn.functional.conv1d", "linalg.solve": "torch.linalg.solve",
    "linalg.inv": "torch.linalg.inv",
    "linalg.norm": "torch.linalg.vector_norm", "arctan2": "torch.atan2", "fft.fft": "torch.fft.fft",
    "array": "torch.stack", "stack": "torch.stack", "tensordot": "torch.tensordot",
}  # fmt: skip
"""What NumPy calls otherwise than torch; other names are torch's own."""

_SAME = frozenset(
    [
        "exp",
        "log",
        "sin",
        "cos",
        "tan",
        "sinh",
        "cosh",
        "tanh",
        "sqrt",
        "sum",
        "mean",
        "prod",
        "cumsum",
        "cumprod",
        "dot",
        "matmul",
        "einsum",
        "outer",
        "arctan",
        "arcsin",
        "arccos",
        "log1p",
        "expm1",
        "square",
        "var",
        "std",
        "sort",
        "diff",
        "roll",
        "flip",
        "stack",
        "linspace",
        "sinc",
        "logaddexp",
        "hypot",
        "sign",
    ]
)

_BY_LIBRARY = {
    "spectral_norm": "its power iteration runs under no_grad: what it takes away is nothing once it has converged. "
    "Call the layer some times before, or examine it in eval(); if it is meant: with "
    'quadgrad.doctor.intended("why"): around the call',
}
"""By the function of a library that severs."""

_BY_OPERATION = {
    "gumbel_softmax(hard=True)": "a straight-through estimator: the sample moves in steps, and has the gradient of "
    'the soft one; if it is meant: with quadgrad.doctor.intended("why"):, else hard=False',
    "item": "leave out .item(): torch computes with the tensor itself",
    "tolist": "leave out .tolist(): index the tensor, x[0], x[1], ...",
    "__float__": "leave out float(...), and take torch's functions instead of math's: torch.exp(x) for math.exp(x)",
    "__int__": "an integer has no derivative: keep the number a tensor, or mark the line with "
    'quadgrad.doctor.intended("why")',
    "__array__": _BRIDGE,
    "numpy": _BRIDGE,
    "detach": 'leave out .detach(); if it is meant: with quadgrad.doctor.intended("why"):',
    "detach_": "leave out .detach_()",
    "data": "leave out .data: the tensor itself, x * 2; changes of parameters in place belong into an optimiser",
    "data=": "x.data = ... is seen by nobody: compute a new tensor, y = f(x), and go on with y",
    "tensor": "torch.tensor copies the numbers only: torch.stack([a, b]) for a list of tensors, x.clone() for one",
    "as_tensor": "torch.as_tensor of a list copies the numbers only: torch.stack([a, b])",
    "new_tensor": "x.clone()",
    "nn.Parameter": "nn.Parameter(f(x)) is a new leaf: make x the parameter, and compute f(x) in forward()",
    "grad": "torch.autograd.grad(y, x, create_graph=True): without it the derivative is a constant",
    "normal": "Normal(mean, std).rsample(), or mean + std * torch.randn_like(std)",
    "argmax": "a place has no derivative: torch.softmax(x / temperature, -1) weighs them",
    "__setitem__": "written where no gradient is recorded: out of torch.no_grad(), or y = torch.where(mask, a, x)",
    "copy_": "written where no gradient is recorded: y = x instead of buffer.copy_(x), or leave torch.no_grad()",
}


def remedy_for(op: str, detail: str, source: str, through: str) -> str:
    """Return what to write instead of an operation that severs.

    Parameters
    ----------
    op, detail : str
        The operation, and what else is known of it: ``"no_grad"``, ``"integer"``, ``"function"``,
        ``"edited"``.
    source : str
        The line.
    through : str
        The function of a library that did it, if one did.
    """
    if detail == "edited":
        return (
            "the array shares the tensor's memory: y = f(x) instead of writing to it, or a copy, .detach().clone()"
        )
    if (replaced := _numpy_in(source)) and op in ("detach", "numpy", "__array__", "item", "__float__", "tolist"):
        return replaced
    if through.endswith(".sample") or through in _BY_LIBRARY:
        name = through.removesuffix(".sample")
        rsample = f"{name}.rsample() where there is one; else the score estimator, weighing log_prob"
        return _BY_LIBRARY.get(through, rsample)
    if detail == "no_grad" and op not in ("normal", "item", "tolist", "detach", "numpy"):
        return 'out of torch.no_grad(); if it is meant: with quadgrad.doctor.intended("why"):'
    if op == "detach" and re.search(r"numpy\(|np\.|scipy", source):
        return _BRIDGE
    if detail == "function":
        return "the function's outputs carry no gradient: let its forward return what requires one"
    if op in _BY_OPERATION:
        return _BY_OPERATION[op]
    if op.endswith("_"):
        return f"{op} writes where autograd does not look: y = x.{op.rstrip('_')}(...) gives a new tensor"
    if detail == "integer":
        return "integers have no derivative: stay with floating point numbers"
    return (
        f"torch has no derivative for {op}: write it with functions that have one, or "
        "quadgrad.bridge.wrap(lambda a: ...) differentiates it by differences"
    )


def _numpy_in(source: str) -> str:
    """Return torch's names for the NumPy functions on a line."""
    names = re.findall(r"\b(?:np|numpy)\.((?:linalg\.|fft\.)?\w+)\(", source)
    told = [
        f"{_NUMPY.get(name, 'torch.' + name)} for np.{name}" for name in names if name in _NUMPY or name in _SAME
    ]
    if not told:
        return ""
    return "; ".join(dict.fromkeys(told)) + ", with the tensor itself"


def step_remedy(op: str, integrates: bool) -> str:
    """Return what to do about a jump that moves with what is varied."""
    if op.startswith(("bernoulli", "multinomial", "poisson", "binomial")):
        return "the score estimator (weigh log_prob(sample)), quadgrad.expectation, or a relaxed distribution"
    if op.startswith(
        ("argm", "sort", "argsort", "topk", "max", "min", "searchsorted", "bucketize", "median", "unique")
    ):
        return (
            "weigh instead of choosing: torch.softmax(x / temperature, -1); a table: interpolate, quadgrad.spline"
        )
    if op in ("detach", "numpy", "__array__", "__float__", "item", "tolist", "data"):
        return "what it is turned into decides by steps: torch.sigmoid((x - c) / width) in the tensor's own numbers"
    if integrates:
        return "name the place where the integrand jumps: points=..., or jumps=lambda x, ...: its zero"
    if op in (
        "gt",
        "lt",
        "ge",
        "le",
        "__gt__",
        "__lt__",
        "__ge__",
        "__le__",
        "sign",
        "heaviside",
        "greater",
        "less",
    ):
        return "torch.sigmoid((x - c) / width); an average over noise: quadgrad.expectation with a score estimator"
    if op in STEPPING:
        return (
            "a straight-through estimator, marked with quadgrad.doctor.intended, or the number itself, not rounded"
        )
    return (
        "what this line gives jumps: an index, a size, a count or a text made of what is varied, or the nearest of "
        "some; weigh or interpolate instead, torch.sigmoid((x - c) / width)"
    )


RAISED = {
    r"grad can be implicitly created only for scalar outputs": (
        "backward",
        "y.sum().backward() for the sum, or y.backward(gradient=weights) for a weighed one",
    ),
    r"Can't call numpy\(\) on Tensor that requires grad": ("numpy", _BRIDGE),
    r"leaf Variable that requires grad.* in-place|a leaf Variable that requires grad is being used": (
        "in place",
        "a leaf is not written to: y = x + 1 instead of x += 1; a parameter is initialised under torch.no_grad()",
    ),
    r"does not require grad and does not have a grad_fn": (
        "backward",
        "nothing of what the loss is computed from requires grad: the rows above it say where it was lost",
    ),
    r"modified by an inplace operation": (
        "in place",
        "y = x * 2 instead of x *= 2: the backward pass needs what was overwritten",
    ),
    r"backward through the graph a second time": (
        "backward",
        "one backward for the sum of the losses, or retain_graph=True for the first; a state kept between steps: "
        "state.detach()",
    ),
    r"returned an invalid gradient|returned an incorrect number of gradients|must match the size|"
    r"mat1 and mat2 shapes|size mismatch|Expected size for first two dimensions": (
        "backward",
        "the backward of a custom function has to return one gradient for each input, in the input's shape",
    ),
    r"does not have a derivative|derivative for .* is not implemented": (
        "backward",
        "torch has no derivative for this: quadgrad.bridge.wrap differentiates it by differences",
    ),
}
"""What torch says of a gradient, by a pattern: the operation and the remedy."""
