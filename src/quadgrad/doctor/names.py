"""Which operations of torch do what: the only place where they are listed."""

from __future__ import annotations

from typing import Any

__all__ = [
    "COMPARISONS", "DRAWS", "ESCAPES", "MAKES_A_LEAF", "NO_DERIVATIVE", "RANDOM", "READS", "ROUNDINGS",
    "SELECTIONS", "SHAPED", "STATE", "STEPPING", "is_in_place", "name_of",
]  # fmt: skip


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


STATE = _names(
    "__contains__ __deepcopy__ __dir__ __dlpack__ __dlpack_device__ __format__ __hash__ __len__ __reduce_ex__ "
    "__repr__ _assert_async _backward_hooks _base _functorch _has_compatible_shallow_copy_type _is_all_true "
    "_is_any_true _is_view _set_grad_enabled _version allclose broadcast_shapes can_cast data_ptr device dim "
    "dim_order dtype element_size equal get_device grad_fn is_complex is_conj is_contiguous is_cpu is_cuda "
    "is_floating_point is_inference is_leaf is_meta is_mkldnn is_mps is_neg is_nested is_nonzero is_pinned "
    "is_quantized is_same_size is_set_to is_shared is_signed is_sparse is_xla is_xpu isfinite isinf isnan "
    "isneginf isposinf isreal itemsize layout name names nbytes ndim ndimension nelement numel output_nr "
    "pin_memory register_hook register_post_accumulate_grad_hook requires_grad result_type retain_grad "
    "retains_grad shape size storage storage_offset stride untyped_storage unwrap_dead_wrappers volatile"
)
"""What reads or sets a tensor's properties, or asks what no derivative goes through."""

READS = _names(
    "__contains__ __deepcopy__ __dlpack__ __format__ __reduce_ex__ __repr__ _assert_async _is_all_true "
    "_is_any_true allclose data_ptr equal is_nonzero storage untyped_storage"
)
"""Those by which a program gets to know what a tensor holds."""

MAKES_A_LEAF = _names("requires_grad_ requires_grad=")

COMPARISONS = _names(
    "__ge__ __gt__ __le__ __lt__ ge ge_ greater greater_equal gt gt_ le le_ less less_equal lt lt_"
)

ROUNDINGS = (
    dict.fromkeys(
        _names("__index__ __int__ byte ceil ceil_ char fix floor floor_ frac int long short trunc trunc_"),
        "integers",
    )
    | dict.fromkeys(_names("grid_sample(nearest) round round_"), "halves")
    | dict.fromkeys(
        _names(
            "__floordiv__ __mod__ __rfloordiv__ __rmod__ bool floor_divide fmod hardshrink heaviside remainder sgn "
            "sign sign_ signbit threshold threshold_ _threshold"
        ),
        "zero",
    )
)
"""Operations that move in steps, and where."""

SELECTIONS = _names("argmax argmin argsort bucketize max median min msort searchsorted sort topk unique")
"""Operations that tell places, which change by steps."""

SHAPED = _names("empty_like full_like new_empty new_full new_ones new_zeros ones_like randint_like zeros_like")
"""Operations of which only the shape depends on what they are given."""

DRAWS = _names("bernoulli bernoulli_ multinomial poisson binomial")

STEPPING = COMPARISONS | frozenset(ROUNDINGS) | SELECTIONS | DRAWS | _names("to type as_tensor tensor astype")
"""What moves in steps, and in which numbers it does."""

RANDOM = DRAWS | _names(
    "_sample_dirichlet _standard_gamma cauchy_ exponential_ geometric_ log_normal_ normal normal_ rand_like "
    "randn_like random_ randperm uniform_"
)

NO_DERIVATIVE = _names("normal")
"""Operations whose results require grad, and whose derivative torch takes for zero although it is not."""

ESCAPES = _names("item tolist")
"""Operations that give Python a number."""

_IN_PLACE = _names(
    "__iadd__ __iand__ __idiv__ __ifloordiv__ __imod__ __imul__ __ior__ __ipow__ __isub__ __itruediv__ "
    "__ixor__ __setitem__ data="
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
