"""Which operations of torch do what: the only place where they are listed."""

from __future__ import annotations

from typing import Any

__all__ = [
    "COMPARISONS", "DRAWS", "ESCAPES", "MAKES_A_LEAF", "NO_DERIVATIVE", "RANDOM", "ROUNDINGS", "SELECTIONS", "STATE", "is_in_place",
    "name_of",
]  # fmt: skip

STATE = frozenset(
    ["requires_grad", "register_hook", "register_post_accumulate_grad_hook", "retain_grad", "retains_grad", "is_leaf", "grad_fn", "_backward_hooks", "shape", "size", "dim", "ndim", "dtype", "device", "layout", "__len__", "numel", "nelement", "is_complex", "is_floating_point", "is_signed", "stride", "is_contiguous", "data_ptr", "__repr__", "__format__", "_version", "storage_offset", "untyped_storage", "storage", "is_sparse", "is_cuda", "is_nested", "is_quantized", "element_size", "itemsize", "nbytes", "names", "__hash__", "__deepcopy__", "get_device", "is_meta", "is_inference", "_is_view", "_base", "is_same_size", "is_cpu", "is_mps", "is_xla", "is_xpu", "is_mkldnn", "is_neg", "is_conj", "output_nr", "volatile", "dim_order", "__reduce_ex__", "__dir__", "_set_grad_enabled", "is_set_to", "name", "__dlpack__", "ndimension", "__dlpack_device__", "__contains__", "broadcast_shapes", "result_type", "_is_all_true", "_is_any_true", "allclose", "equal", "isnan", "isinf", "isfinite", "isreal", "isposinf", "isneginf", "is_nonzero", "can_cast", "unwrap_dead_wrappers", "_assert_async", "_functorch", "_has_compatible_shallow_copy_type", "is_shared", "pin_memory", "is_pinned"]
)
"""What reads or sets a tensor's properties, or asks what no derivative goes through."""

MAKES_A_LEAF = frozenset(("requires_grad_", "requires_grad="))

COMPARISONS = frozenset(
    ["gt", "lt", "ge", "le", "greater", "less", "greater_equal", "less_equal", "__gt__", "__lt__", "__ge__", "__le__", "gt_", "lt_", "ge_", "le_"]
)

ROUNDINGS = {
    **dict.fromkeys(
        ["floor", "ceil", "trunc", "fix", "floor_", "ceil_", "trunc_", "long", "int", "short", "char", "byte", "__int__", "__index__", "frac"], "integers"
    ),
    **dict.fromkeys(("round", "round_"), "halves"),
    **dict.fromkeys(
        ["sign", "sgn", "sign_", "heaviside", "signbit", "bool", "threshold", "threshold_", "hardshrink", "floor_divide", "__floordiv__", "__rfloordiv__", "remainder", "fmod", "__mod__", "__rmod__"], "zero",
    ),
}  # fmt: skip
"""Operations that move in steps, and where."""

SELECTIONS = frozenset(["argmax", "argmin", "argsort", "sort", "topk", "max", "min", "msort", "unique", "searchsorted", "bucketize", "median"])
"""Operations that tell places, which change by steps."""

DRAWS = frozenset(["bernoulli", "bernoulli_", "multinomial", "poisson", "binomial"])

RANDOM = DRAWS | frozenset(
    ["normal", "normal_", "uniform_", "rand_like", "randn_like", "exponential_", "_standard_gamma", "_sample_dirichlet", "cauchy_", "geometric_", "log_normal_", "random_", "randperm"]
)

NO_DERIVATIVE = frozenset(("normal",))
"""Operations whose results require grad, and whose derivative torch takes for zero although it is not."""

ESCAPES = frozenset(("item", "tolist"))
"""Operations that give Python a number."""

_IN_PLACE = frozenset(
    ["__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__", "__ifloordiv__", "__imod__", "__iand__", "__ior__", "__ixor__", "data="]
)


def is_in_place(name: str) -> bool:
    """Whether an operation writes to its first argument."""
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def name_of(func: Any) -> str:
    """Return the name of a torch function; that of an attribute which is set ends with ``=``."""
    name = getattr(func, "__name__", None) or str(func)
    if name in ("__get__", "__set__"):
        owner = getattr(getattr(func, "__self__", None), "__name__", name)
        return owner + "=" * (name == "__set__")
    return name
