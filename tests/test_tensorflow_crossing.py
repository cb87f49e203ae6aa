"""Arrays between torch and TensorFlow: the same numbers, one memory, and no end of the process."""

import subprocess
import sys

import numpy as np
import pytest
import torch

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

from quadgrad.tensorflow._crossing import (  # noqa: E402  (needs TensorFlow)
    ALIGNMENT,
    is_tensor,
    tensorflow_dtype,
    to_tensorflow,
    to_torch,
    torch_dtype,
)

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128,
]  # fmt: skip


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (3, 0, 2), (5, 4, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_there_and_back(dtype, shape):
    here = (torch.rand(shape) * 3 if dtype is not torch.bool else torch.rand(shape) > 0.5).to(dtype)
    there = to_tensorflow(here)
    assert there.dtype == tensorflow_dtype(dtype) and tuple(there.shape) == shape
    assert torch_dtype(there.dtype) is dtype
    back = to_torch(there)
    assert back.dtype is dtype and torch.equal(back, here)
    assert np.array_equal(tf.cast(there, tf.complex128).numpy(), here.to(torch.complex128).numpy())


def test_a_large_block_crosses_without_a_copy():
    block = torch.rand(2**20, dtype=torch.float64)
    there = to_tensorflow(block)
    assert to_torch(there).data_ptr() == block.data_ptr()
    made = tf.random.uniform((2**20,), dtype=tf.float64)
    assert to_torch(made).data_ptr() == to_torch(made).data_ptr()


@pytest.mark.parametrize("offset", range(1, ALIGNMENT // 8))
def test_memory_that_is_not_aligned_is_copied(offset):
    block = torch.arange(64.0, dtype=torch.float64)[offset:]
    there = to_tensorflow(block)
    assert np.array_equal(there.numpy(), block.numpy())
    assert to_torch(there).data_ptr() % ALIGNMENT == 0


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.T, lambda t: t[:, ::2], lambda t: t[1:].expand(3, 3, 4), lambda t: torch.conj(t * 1j),
        lambda t: torch.conj(t * 1j).imag, lambda t: t.detach().requires_grad_(),
    ],
)  # fmt: skip
def test_views_cross_as_what_they_show(view):
    shown = view(torch.arange(16.0, dtype=torch.float64).reshape(4, 4))
    assert np.array_equal(to_tensorflow(shown).numpy(), shown.detach().resolve_conj().resolve_neg().numpy())


def test_a_variable_that_is_assigned_to_leaves_what_crossed_before():
    variable = tf.Variable(tf.ones(100, tf.float64))
    before = to_torch(variable)
    assert is_tensor(variable) and not is_tensor(1.0) and not is_tensor(np.ones(3))
    variable.assign(tf.zeros(100, tf.float64))
    variable.assign_add(tf.ones(100, tf.float64) * 5)
    assert torch.equal(before, torch.ones(100, dtype=torch.float64))
    assert float(to_torch(variable)[0]) == 5.0


def test_memory_outlives_its_owner():
    there = to_tensorflow(torch.arange(1000.0))
    here = to_torch(tf.range(1000.0))
    torch.rand(10_000), tf.random.uniform((10_000,))
    assert np.array_equal(there.numpy(), here.numpy())


def test_other_numbers_are_refused():
    with pytest.raises(TypeError, match="TensorFlow's string cannot be integrated"):
        to_torch(tf.constant("text"))


def test_importing_quadgrad_does_not_import_tensorflow():
    code = (
        "import sys, quadgrad; assert 'tensorflow' not in sys.modules and 'quadgrad.tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("way", ["import quadgrad.tensorflow", "import quadgrad; quadgrad.tensorflow"])
def test_where_tensorflow_is_missing_the_import_says_what_to_do(way):
    code = f"import sys; sys.modules['tensorflow'] = None\n{way}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and "pip install 'quadgrad[tensorflow]'" in ended.stderr
