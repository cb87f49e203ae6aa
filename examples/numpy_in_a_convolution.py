"""NumPy inside a layer: what the doctor says of each way to write it, and the way that is right.

    python examples/numpy_in_a_convolution.py

A layer convolves images with NumPy (or SciPy), because that is the code one has. Autograd does not see it. People
detach, convert and wrap again, or write a ``torch.autograd.Function``: the loss still falls, since other parameters
learn, and nobody notices that the kernel does not, or learns something else. Each pair below is one such way and
the same layer mended; ``main`` prints the reports of all, a test asserts them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import signal, special
from torch import Tensor

import quadgrad as qg

IMAGE = torch.sin(torch.arange(36, dtype=torch.float64)).reshape(6, 6)


def make_kernel() -> Tensor:
    """Return the kernel that is learnt."""
    return torch.tensor([[0.4, -0.3], [0.2, 0.5]], dtype=torch.float64, requires_grad=True)


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate an image with a kernel, as a convolutional layer does."""
    return signal.correlate2d(image, kernel, mode="valid")


def loss_of(features: Tensor, kernel: Tensor) -> Tensor:
    """Return a loss that depends on the kernel by the features and directly: so that something is still learnt."""
    return (features**2).mean() + 0.01 * (kernel**2).sum()


# -- the tensor is detached, and NumPy's result wrapped again


def detached(kernel: Tensor) -> Tensor:
    """Lose the kernel's gradient on the way to NumPy."""
    features = torch.from_numpy(convolve(IMAGE.numpy(), kernel.detach().cpu().numpy()))
    return loss_of(features, kernel)


def rewrapped(kernel: Tensor) -> Tensor:
    """Lose it too: ``requires_grad=True`` makes a new leaf, and connects it with nothing."""
    features = convolve(IMAGE.numpy(), kernel.detach().cpu().numpy())
    return loss_of(torch.tensor(features, requires_grad=True), kernel)


bridged_convolution = qg.bridge.wrap(lambda kernel: convolve(IMAGE.numpy(), kernel))


def bridged(kernel: Tensor) -> Tensor:
    """Call the same NumPy code through the bridge, which differentiates it."""
    return loss_of(bridged_convolution(kernel), kernel)


def equivalent(kernel: Tensor) -> Tensor:
    """Take torch's own function for it, which is faster."""
    return loss_of(torch.nn.functional.conv2d(IMAGE[None, None], kernel[None, None])[0, 0], kernel)


# -- a custom function whose backward pass convolves the wrong way round


class Flipped(torch.autograd.Function):
    """Forward is right; backward correlates with the gradient flipped, which a symmetric kernel would not show."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor) -> Tensor:
        return torch.from_numpy(convolve(IMAGE.numpy(), kernel.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.from_numpy(signal.convolve2d(IMAGE.numpy(), grads[0].numpy(), mode="valid"))


class Mended(Flipped):
    """The derivative by the kernel is a correlation of the image with the gradient."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.from_numpy(convolve(IMAGE.numpy(), grads[0].numpy()))


def custom_wrong(kernel: Tensor) -> Tensor:
    """Use the function whose backward pass is wrong."""
    return loss_of(Flipped.apply(kernel), kernel)


def custom_mended(kernel: Tensor) -> Tensor:
    """Use the function whose backward pass is right."""
    return loss_of(Mended.apply(kernel), kernel)


# -- NumPy's names for what torch has


def activation_in_numpy(kernel: Tensor) -> Tensor:
    """Clip with NumPy what torch could clip."""
    features = torch.nn.functional.conv2d(IMAGE[None, None], kernel[None, None])[0, 0]
    return loss_of(torch.from_numpy(np.clip(features.detach().numpy(), -0.5, 0.5)), kernel)


def activation_in_torch(kernel: Tensor) -> Tensor:
    """Clip with torch."""
    features = torch.nn.functional.conv2d(IMAGE[None, None], kernel[None, None])[0, 0]
    return loss_of(features.clamp(-0.5, 0.5), kernel)


# -- a wrapper around SciPy whose result is wrapped again


def bessel(x: Tensor) -> Tensor:
    """Wrap SciPy's Bessel function the way that loses the gradient."""
    return torch.tensor(special.jv(1.5, x.detach().numpy()), requires_grad=True)


def scipy_rewrapped(kernel: Tensor) -> Tensor:
    """Use the wrapper that loses the gradient."""
    return loss_of(bessel(kernel.exp()), kernel)


bridged_bessel = qg.bridge.wrap(lambda x: special.jv(1.5, x), lambda x: special.jvp(1.5, x))


def scipy_bridged(kernel: Tensor) -> Tensor:
    """Use the bridge, which is told the derivative."""
    return loss_of(bridged_bessel(kernel.exp()), kernel)


Loss = Callable[[Tensor], Tensor]

PAIRS: list[tuple[Loss, Loss]] = [
    (detached, bridged),
    (rewrapped, equivalent),
    (custom_wrong, custom_mended),
    (activation_in_numpy, activation_in_torch),
    (scipy_rewrapped, scipy_bridged),
]
"""Each way that is wrong, and one that is right."""


def main() -> None:
    """Print what the doctor says of every way."""
    for wrong, right in PAIRS:
        for loss in (wrong, right):
            print(f"-- {loss.__name__}\n{qg.doctor.check(loss, make_kernel())}\n")


if __name__ == "__main__":
    main()
