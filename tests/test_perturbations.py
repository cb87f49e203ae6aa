"""The perturbation loss: its noise, and gradients beside a plain loop's on the same noise."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributions import (
    Independent,
    Normal,
)
from torch.utils.checkpoint import checkpoint

import quadgrad as qg
from benchmarks.perturbations import Live

CPU = torch.device("cpu")
NOISE = Normal(0.0, 0.25)
cross_entropy = nn.CrossEntropyLoss(reduction="none")
Loss = Callable[[Tensor, Tensor], Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    draw = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype) / 4)
    return module


def convolutional(channels: int = 4, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, padding=1)]
    layers += [nn.BatchNorm2d(channels)] if norm else []
    layers += [nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    layers += [nn.Dropout(dropout)] if dropout else []
    return seeded(nn.Sequential(*layers, nn.Linear(16 * channels, 10)))


def images(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = generator(1)
    x = torch.rand(count, 1, 8, 8, generator=draw, dtype=dtype)
    return x, torch.randint(0, 10, (count,), generator=draw)


def perturbed(x: Tensor, target: Tensor, distribution: Any = NOISE, **options: Any) -> list[Tensor]:
    """Return what a loss is called with: all chunks."""
    seen: list[Tensor] = []

    def loss(xs: Tensor, targets: Tensor) -> Tensor:
        seen.append(xs.clone())
        return xs.flatten(1).sum(1)

    with torch.no_grad():
        qg.perturbation_loss(loss, x, target, distribution, **options)
    return seen


def naive_loop(loss: Loss, x: Tensor, target: Tensor, chunks: list[Tensor], n: int) -> Tensor:
    """Call backward on chunk after chunk of given perturbed images, as one writes it down; return the value."""
    total, place = x.new_zeros(()), 0
    for xs in chunks:
        items = torch.arange(place, place + len(xs)) % len(x)
        place += len(xs)
        part = loss(x[items] + (xs - x[items]).detach(), target[items]).sum() / (n * len(x))
        part.backward()
        total += part.detach()
    return total


# --------------------------------------------------------------------------------------- beside a naive loop


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 6, 12, 13, 1000])
@pytest.mark.parametrize(("dropout", "norm"), [(0.0, False), (0.5, True)])
def test_gradients_are_those_of_a_loop_on_the_same_noise(
    chunk_size: int | None, dropout: float, norm: bool
) -> None:
    if norm and chunk_size == 1:
        chunk_size = 2
    x, y = images(6)
    options = {"n": 8, "seed": 3, "chunk_size": chunk_size}
    chunks = perturbed(x, y, **options)
    assert sum(map(len, chunks)) == 48
    assert max(map(len, chunks)) <= (chunk_size or 256)
    model = convolutional(dropout=dropout, norm=norm)
    other = copy.deepcopy(model)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    state = torch.get_rng_state()
    value = qg.perturbation_loss(lambda xs, ys: cross_entropy(model(xs), ys), xs[0], y, NOISE, **options)
    ours = torch.get_rng_state()
    value.backward()
    torch.set_rng_state(state)
    exact = naive_loop(lambda xs, ys: cross_entropy(other(xs), ys), xs[1], y, chunks, 8)
    assert torch.equal(torch.get_rng_state(), ours)
    torch.testing.assert_close(value.detach(), exact)
    torch.testing.assert_close(xs[0].grad, xs[1].grad)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert not norm or int(model[1].num_batches_tracked) == len(chunks)  # type: ignore[index]


def test_a_model_is_called_once_for_each_chunk_and_stays_in_its_mode() -> None:
    model, calls = convolutional(dropout=0.5), list[bool]()
    x, y = images(4)

    def loss(xs: Tensor, ys: Tensor) -> Tensor:
        calls.append(model.training)
        return cross_entropy(model(xs), ys)

    qg.perturbation_loss(loss, x, y, NOISE, n=6, chunk_size=8).backward()
    assert calls == [True] * 3
    model.eval()
    qg.perturbation_loss(loss, x, y, NOISE, n=6, chunk_size=8).backward()
    assert calls[3:] == [False] * 3


def test_the_global_generator_is_not_touched() -> None:
    x, y = images(4)
    model = convolutional()
    state = torch.get_rng_state()
    qg.perturbation_loss(lambda xs, ys: cross_entropy(model(xs), ys), x, y, NOISE).backward()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("wanted", ["x", "target", "weight", "loc", "scale"])
def test_each_gradient_alone_is_that_of_autograd_and_of_differences(wanted: str) -> None:
    draw = generator(4)
    make = lambda *shape: torch.rand(*shape, generator=draw, dtype=torch.float64) + 0.2
    tensors = {"x": make(3, 2), "target": make(3), "weight": make(2), "loc": make(2), "scale": make(())}
    value = tensors[wanted].requires_grad_()

    def mean(value: Tensor) -> Tensor:
        t = tensors | {wanted: value * 1.0}  # not a leaf
        loss = lambda xs, ys: (torch.tanh(xs @ t["weight"]) - ys) ** 2 * ys
        distribution = Independent(Normal(t["loc"], t["scale"].expand(2)), 1)
        return qg.perturbation_loss(loss, t["x"], t["target"], distribution, n=4, chunk_size=5)

    assert torch.autograd.gradcheck(mean, value)
    assert torch.autograd.gradgradcheck(mean, value)
    assert torch.autograd.gradcheck(mean, value, check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradcheck(mean, value, check_batched_grad=True)
    (backward,) = torch.autograd.grad(mean(value), value)
    torch.testing.assert_close(torch.func.grad(mean)(value.detach()), backward)
    hessian = torch.autograd.functional.hessian(mean, value)
    torch.testing.assert_close(torch.func.hessian(mean)(value.detach()), hessian)


def test_a_hundred_models_under_vmap() -> None:
    x, y = torch.rand(5, 2, generator=generator()), torch.rand(5, generator=generator(1))
    weights = torch.randn(7, 2, generator=generator(2))
    mean = lambda w: qg.perturbation_loss(lambda xs, ys: (xs @ w - ys) ** 2, x, y, NOISE, chunk_size=3)
    values = torch.stack([mean(w) for w in weights])
    torch.testing.assert_close(torch.vmap(mean)(weights), values)
    gradients = torch.stack([torch.func.grad(mean)(w) for w in weights])
    torch.testing.assert_close(torch.vmap(torch.func.grad(mean))(weights), gradients)


def test_forward_mode_without_gradients() -> None:
    x, y, w = torch.rand(3, 2), torch.rand(3), torch.rand(2)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(w, torch.ones(2))
        value = qg.perturbation_loss(lambda xs, ys: xs @ dual - ys, x, y, NOISE, n=4)
        tangent = forward_ad.unpack_dual(value).tangent
    xs = torch.cat(perturbed(x, y, n=4))
    torch.testing.assert_close(tangent, xs.sum(1).mean())


def test_a_gradient_can_be_asked_for_again_and_scaled() -> None:
    x, y, w = torch.rand(3, 2), torch.rand(3), torch.rand(2, requires_grad=True)
    value = qg.perturbation_loss(lambda xs, ys: (xs @ w - ys) ** 2, x, y, NOISE, n=4)
    first = torch.autograd.grad(value, w, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(-3 * value, w)[0], -3 * first)


# ------------------------------------------------------------------------------------- derivatives of gradients


@pytest.mark.parametrize(("dropout", "norm"), [(0.0, False), (0.5, True)])
def test_a_gradient_penalty_sees_the_same_dropout_and_counts_no_batch_twice(dropout: float, norm: bool) -> None:
    x, y = images(4, torch.float64)
    model = convolutional(2, dropout, norm).double()
    other = copy.deepcopy(model)
    chunks = perturbed(x, y, n=4, chunk_size=8)
    state = torch.get_rng_state()
    value = qg.perturbation_loss(
        lambda xs, ys: cross_entropy(model(xs), ys), x, y, Normal(0.0, 0.25), n=4, chunk_size=8
    )
    torch.rand(3)  # other draws in between
    after = torch.get_rng_state(), [b.clone() for b in model.buffers()]
    gradients = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
    assert torch.equal(torch.get_rng_state(), after[0])
    assert all(map(torch.equal, model.buffers(), after[1]))
    penalty = torch.autograd.grad(sum(g.square().sum() for g in gradients), list(model.parameters()))
    torch.set_rng_state(state)
    parts = [cross_entropy(other(xs), y.repeat(2)).sum() for xs in chunks]
    exact = torch.autograd.grad(torch.stack(parts).sum() / 16, list(other.parameters()), create_graph=True)
    exact = torch.autograd.grad(sum(g.square().sum() for g in exact), list(other.parameters()))
    for a, b in zip(penalty, exact, strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_that_changes_from_call_to_call_has_no_derivative_of_its_gradient() -> None:
    numbers = random.Random(0)
    w = torch.rand(2, requires_grad=True)
    loss = lambda xs, ys: numbers.random() * (xs @ w) ** 2
    value = qg.perturbation_loss(loss, torch.rand(3, 2), torch.rand(3), NOISE)
    torch.autograd.grad(value, w, retain_graph=True)
    with pytest.raises(qg.IntegrandError, match="changes from call to call"):
        torch.autograd.grad(value, w, create_graph=True)


# -------------------------------------------------------------------------------------------- what is closed over


class Unseen(torch.autograd.Function):
    """A function that shows a torch function mode nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return gradients[0][:, None] * w, gradients[0] @ x


def test_a_parameter_that_goes_by_unseen_gets_its_gradient() -> None:
    calls = []
    x, y, w = torch.rand(3, 2), torch.rand(3), torch.rand(2, requires_grad=True)
    loss = lambda xs, ys: (calls.append(1), (Unseen.apply(xs, w) - ys) ** 2)[1]
    value = qg.perturbation_loss(loss, x, y, NOISE, n=4, chunk_size=6)
    assert len(calls) == 2
    exact = qg.perturbation_loss(lambda xs, ys: (xs @ w - ys) ** 2, x, y, NOISE, n=4, chunk_size=6)
    torch.testing.assert_close(torch.autograd.grad(value, w)[0], torch.autograd.grad(exact, w)[0])
    double = [
        torch.autograd.grad(torch.autograd.grad(v, w, create_graph=True)[0].sum(), w)[0]
        for v in (qg.perturbation_loss(loss, x, y, NOISE, n=4), qg.perturbation_loss(loss, x, y, NOISE, n=4))
    ]
    torch.testing.assert_close(*double)


def test_what_later_chunks_meet_first_gets_its_gradient() -> None:
    x, y = torch.rand(4, 2), torch.arange(4.0)
    weights = [torch.rand(2, requires_grad=True) for _ in range(4)]
    loss = lambda xs, ys: xs @ weights[int(ys[0])]
    value = qg.perturbation_loss(loss, x, y, NOISE, n=4, chunk_size=1)
    gradients = torch.autograd.grad(value, weights)
    xs = torch.cat(perturbed(x, y, n=4)).unflatten(0, (4, 4))
    for i, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, xs[:, i].sum(0) / 16)


@pytest.mark.parametrize("leaf", [True, False])
def test_a_checkpoint_that_hides_its_weights_is_refused(leaf: bool) -> None:
    x, y = torch.rand(3, 2), torch.arange(3.0)
    inner, outer = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def loss(reentrant: bool) -> Any:
        start = lambda xs: xs.requires_grad_() if leaf else inner(xs)
        return lambda xs, ys: outer(checkpoint(inner, start(xs), use_reentrant=reentrant)).sum(1)

    with pytest.raises(qg.IntegrandError, match="use_reentrant=False"):
        qg.perturbation_loss(loss(True), x, y, NOISE, n=4)
    value = qg.perturbation_loss(loss(False), x, y, NOISE, n=4)
    slopes = torch.autograd.grad(value, inner.parameters())
    naive = torch.autograd.grad(loss(False)(torch.cat(perturbed(x, y, n=4)), y).mean(), inner.parameters())
    torch.testing.assert_close(slopes, naive)


def test_a_loss_that_differentiates_what_it_closes_over() -> None:
    """A stand-in would cut paths: everything then runs in plain torch, and dropout not twice."""
    x, y = images(3)
    model = convolutional(2, dropout=0.5)
    v = torch.rand(1, requires_grad=True)
    w = v * 2.0

    def loss(xs: Tensor, ys: Tensor) -> Tensor:
        losses = cross_entropy(model(xs) * (w + v), ys)
        (slope,) = torch.autograd.grad(losses.sum(), v, create_graph=True)  # along both paths
        return losses + slope

    state = torch.get_rng_state()
    value = qg.perturbation_loss(loss, x, y, NOISE, n=4, chunk_size=6)
    after = torch.get_rng_state()
    gradient = torch.autograd.grad(value, v, retain_graph=True)[0]  # the graph of w
    torch.set_rng_state(state)
    parts = [loss(xs, y.repeat(2)).sum() for xs in perturbed(x, y, n=4, chunk_size=6)]
    exact = torch.stack(parts).sum() / 12
    assert torch.equal(after, torch.get_rng_state())
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, v)[0])


def test_inside_another_perturbation_loss() -> None:
    w = torch.rand(2, requires_grad=True, dtype=torch.float64)
    x, y = torch.rand(3, 2, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    noise = Normal(torch.tensor(0.0).double(), 0.1)

    def inner(xs: Tensor, ys: Tensor) -> Tensor:
        mean = qg.perturbation_loss(lambda a, b: (a @ w) ** 2, xs[:1].detach() * 0, ys[:1], noise, n=2)
        return (xs @ w - ys) ** 2 + mean

    value = qg.perturbation_loss(inner, x, y, noise, n=2)
    (gradient,) = torch.autograd.grad(value, w)
    d = perturbed(torch.zeros(1, 2).double(), y[:1], noise, n=2)[0]
    a = torch.cat(perturbed(x, y, noise, n=2))
    exact = ((a @ w - y.repeat(2)) ** 2).mean() + ((d @ w) ** 2).mean()
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, w)[0])


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_autocast(where: str) -> None:
    x, y = images(4)
    model = convolutional()
    seen: list[torch.dtype] = []

    def loss(xs: Tensor, ys: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "inside" or torch.is_autocast_enabled("cpu")):
            out = model(xs)
        seen.append(out.dtype)
        return cross_entropy(out.float(), ys)

    with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
        value = qg.perturbation_loss(loss, x, y, NOISE, n=4)
    value.backward()
    assert seen == [torch.bfloat16]
    weight = model[0].weight  # type: ignore[index]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(perturbed(x, y, n=4)[0])
    (exact,) = torch.autograd.grad(cross_entropy(out.float(), y.repeat(4)).sum(), weight)
    torch.testing.assert_close(weight.grad, exact / 16)


def test_half_precision_sums_in_single() -> None:
    x, y = torch.zeros(8, 1, dtype=torch.bfloat16), torch.zeros(8)
    w = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    value = qg.perturbation_loss(lambda xs, ys: w.expand(len(xs)), x, y, NOISE, n=512, chunk_size=8)
    value.backward()
    assert value.dtype == w.grad.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert float(value.detach()) == float(w.grad) == 1.0  # type: ignore[arg-type]  # bfloat16 counts to 256


def test_embeddings_with_sparse_gradients() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    x, y = torch.rand(3, 2), torch.tensor([0, 2, 2])
    qg.perturbation_loss(lambda xs, ys: (xs * table(ys)).sum(1), x, y, NOISE, n=4, chunk_size=3).backward()
    grad = table.weight.grad
    assert grad is not None
    grad = grad.to_dense() if grad.is_sparse else grad
    xs = torch.cat(perturbed(x, y, n=4))
    torch.testing.assert_close(grad[0], xs[::3].sum(0) / 12)
    assert not grad[[1, 3, 4]].any()


def test_without_gradient_nothing_is_kept() -> None:
    x, y = images(3)
    model = convolutional().requires_grad_(False)
    loss = lambda xs, ys: cross_entropy(model(xs), ys)
    value = qg.perturbation_loss(loss, x, y, NOISE)
    assert not value.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(qg.perturbation_loss(loss, x, y, NOISE), value)


# ------------------------------------------------------------------------------------------------- many processes


def test_shards_with_the_numbers_of_their_items_add_up_to_the_whole_batch() -> None:
    """What data-parallel processes do: each has some of the images, and the mean of gradients is taken."""
    x, y = images(6)
    model, numbers = convolutional(), torch.tensor([5, 900, 2, 17, 4, 2**33])
    loss = lambda xs, ys: cross_entropy(model(xs), ys)
    whole = qg.perturbation_loss(loss, x, y, NOISE, index=numbers, seed=3)
    shards = [
        qg.perturbation_loss(loss, x[i::2], y[i::2], NOISE, index=numbers[i::2], seed=3, chunk_size=7)
        for i in (0, 1)
    ]
    torch.testing.assert_close(sum(shards) / 2, whole)
    weight = model[0].weight  # type: ignore[index]
    exact = torch.autograd.grad(whole, weight)[0]
    torch.testing.assert_close(torch.autograd.grad(sum(shards) / 2, weight)[0], exact)


def test_a_distributed_data_parallel_model_reduces_once() -> None:
    x, y = images(4)
    model = convolutional(norm=True)
    other, sizes = copy.deepcopy(model), list[int]()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)

        def reduce(state: Any, bucket: Any) -> Any:
            sizes.append(bucket.buffer().numel())
            future: Any = torch.futures.Future()
            future.set_result(2 * bucket.buffer())  # what a reduction would do is seen in the gradient
            return future

        reduce.__annotations__.clear()  # which it compares with classes, not with their names
        parallel.register_comm_hook(None, reduce)
        for _ in range(2):
            sizes.clear()
            parallel.zero_grad()
            loss = lambda xs, ys: cross_entropy(parallel(xs), ys)
            qg.perturbation_loss(loss, x, y, NOISE, n=4, chunk_size=8).backward()
            assert sum(sizes) == sum(p.numel() for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()
    qg.perturbation_loss(lambda xs, ys: cross_entropy(other(xs), ys), x, y, NOISE, n=4, chunk_size=8).backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, 2 * b.grad)


@pytest.mark.filterwarnings("ignore")
def test_inside_compiled_code() -> None:
    x, y, w = torch.rand(3, 2), torch.rand(3), torch.rand(2, requires_grad=True)
    loss = lambda xs, ys: (xs @ w - ys) ** 2
    step = lambda x: 2 * qg.perturbation_loss(loss, x, y, NOISE)
    value = torch.compile(step, backend="eager")(x)
    torch.testing.assert_close(value, step(x))
    torch.testing.assert_close(torch.autograd.grad(value, w), torch.autograd.grad(step(x), w))
    compiled = torch.compile(loss, backend="eager")
    value = 2 * qg.perturbation_loss(compiled, x, y, NOISE)
    torch.testing.assert_close(torch.autograd.grad(value, w), torch.autograd.grad(step(x), w))


# -------------------------------------------------------------------------------------------------------- memory


def test_live_tensors_are_a_fifth_of_those_of_the_naive_step() -> None:
    x, y = images(128)
    model = convolutional(16)
    with Live() as naive:
        xs = x.repeat_interleave(16, 0)
        xs = xs + 0.25 * torch.randn(xs.shape, generator=generator())
        cross_entropy(model(xs), y.repeat_interleave(16)).mean().backward()
    model.zero_grad()
    with Live() as ours:
        qg.perturbation_loss(lambda xs, ys: cross_entropy(model(xs), ys), x, y, NOISE).backward()
    assert naive.peak > 2e7
    assert ours.peak < 0.2 * naive.peak
