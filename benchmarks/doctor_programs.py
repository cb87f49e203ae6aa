"""Random programs that sever, are wrong or jump on known lines, with what each line takes away.

A program is written twice. Its *twin* has a differentiable line where the program has one that severs, with the
same value: so autograd itself tells what is lost. Let G(S) be autograd's derivative where the lines of S sever. A
path that meets several of them counts for the first one, so the line l, the lines before it being B, takes
G(B) - G(B and l).
"""

from __future__ import annotations

import itertools
import linecache
import math
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["CLEAN", "SEVERING", "STEPS", "RandomProgram", "write_program"]

N = 4
_COUNT = itertools.count()

CLEAN = [
    "torch.sin({u}) + {w}",
    "torch.tanh({u} * {w})",
    "0.5 * ({u} - {w})",
    "{u} @ M",
    "torch.softmax({u}, 0) * {w}",
    "torch.exp(-({u} ** 2))",
    "torch.nn.functional.softplus({u})",
    "torch.relu({u}) + 0.1 * {w}",
    "torch.where({u} > 0.1, {u} - 0.1, 0.2 * ({u} - 0.1))",
    "torch.cumsum(0.4 * {u}, 0)",
    "{u}.sort().values * {w}",
    "net({u})",
    "torch.vmap(lambda t, s: torch.sin(t * s))({u}, {w})",
    "torch.autograd.grad(torch.sin({u}).sum(), {u}, create_graph=True)[0]",
    "torch.func.grad(lambda t: torch.cos(t).sum())({u})",
    "checkpoint(torch.sin, {u}, use_reentrant=False)",
    "Right.apply({u})",
    "torch.atan({u} + {w}.sum().item() * 0.0 + {w})",
    "torch.clamp({u}, -0.7, 0.7)",
]
"""Lines without a fault; the one with ``.item()`` severs what changes nothing."""

SEVERING = {
    "detach": ("{u}.detach() * {w}", "{u} * {w}"),
    "item": ("{u}.sum().item() * {w}", "{u}.sum() * {w}"),
    "float": ("float({u}[0]) * {w}", "{u}[0] * {w}"),
    "tolist": ("torch.tensor({u}.tolist(), dtype=torch.float64)", "1.0 * {u}"),
    "tensor": ("torch.tensor([{u}[i] for i in range(4)], dtype=torch.float64)", "1.0 * {u}"),
    "numpy": ("torch.from_numpy(np.sin({u}.detach().numpy()))", "torch.sin({u})"),
    "scipy": ("torch.from_numpy(expit({u}.detach().numpy()))", "torch.sigmoid({u})"),
    "rewrapped": ("torch.tensor({u}.detach().numpy().copy(), requires_grad=True)", "1.0 * {u}"),
    "no_grad": ("torch.no_grad()(lambda: {u} * {w})()", "{u} * {w}"),
    "data": ("{u}.data * {w}", "{u} * {w}"),
    "parameter": ("torch.nn.Parameter({u} * 2.0)", "{u} * 2.0"),
    "written": ("torch.no_grad()(lambda b, v: b.copy_(v))(torch.zeros(4, dtype=torch.float64), {u})", "1.0 * {u}"),
    "normal": ("torch.normal({u}, 0.3)", "torch.normal({u}.detach(), 0.3) - {u}.detach() + {u}"),
    "grad": (
        "torch.autograd.grad(({u} ** 3).sum(), {u}, retain_graph=True)[0]",
        "torch.autograd.grad(({u} ** 3).sum(), {u}, create_graph=True)[0]",
    ),
    "vmap": ("torch.vmap(lambda t, s: t.detach() * s)({u}, {w})", "{u} * {w}"),
    "func.grad": ("torch.func.grad(lambda t: (t.detach() * t).sum())({u})", "1.0 * {u}"),
    "checkpoint": ("checkpoint(lambda t, s: t.detach() * s, {u}, {w}, use_reentrant=False)", "{u} * {w}"),
    "no_output": ("Cut.apply({u}) * {w}", "{u} * {w}"),
}
"""Lines that sever, and their differentiable twins."""

STEPS = [
    "({u} > {c}).to(torch.float64) * {w}",
    "torch.round(2.0 * {u}) * {w}",
    "table[{u}.argmax()] * {w}",
    "{w} * (2.0 if {u}.sum().item() > {c} else 1.0)",
    "torch.where({u} > {c}, {w} + 1.0, {w})",
    "torch.floor(3.0 * {u}) + {w}",
    "{w} * torch.sign({u} - {c})",
]


class Right(torch.autograd.Function):
    """A custom function that is right."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return u.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (u,) = ctx.saved_tensors
        return grads[0] * u.cos()


class Cut(torch.autograd.Function):
    """A custom function whose output carries no gradient."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        out = u.clone()
        ctx.mark_non_differentiable(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.zeros(N, dtype=torch.float64)


class Wrong(torch.autograd.Function):
    """A custom function whose derivative is off by a factor and a shift."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.factor = factor
        return u.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (u,) = ctx.saved_tensors
        return grads[0] * u.cos() * ctx.factor, None


@dataclass(eq=False)
class RandomProgram:
    """A program ``f(x, y)`` of text lines; ``faults`` are the numbers of its lines that sever, by kind."""

    lines: list[str]
    twins: dict[int, str]
    kinds: dict[int, str]
    steps: list[int]
    inputs: list[Tensor]
    module: torch.nn.Module
    names: dict[str, Any] = field(default_factory=lambda: {})
    file: str = ""

    def compile(self, severing: set[int] | None = None) -> Any:
        """Return the function in which these lines sever (all, if it is None); others are their twins."""
        lines = [
            line if severing is None or i not in self.twins or i in severing else self.twins[i]
            for i, line in enumerate(self.lines)
        ]
        text = "def f(x, y):\n" + "".join(f"    {line}\n" for line in lines)
        file = f"random_program_{next(_COUNT)}.py"
        if severing is None:
            self.file = file
            linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        space = dict(self.names)
        exec(compile(text, file, "exec"), space)
        return space["f"]

    def slope(self, severing: set[int], steps: list[Tensor]) -> float:
        """Return autograd's derivative along these steps of inputs and parameters, where these lines sever."""
        torch.default_generator.set_state(self.names["state"])
        sources = [*self.inputs, *self.module.parameters()]
        out = self.compile(severing)(*self.inputs)
        if not out.requires_grad:
            return 0.0
        gradients = torch.autograd.grad(out, sources, allow_unused=True)
        return sum(float((g * s).sum()) for g, s in zip(gradients, steps, strict=True) if g is not None)

    def losses(self, steps: list[Tensor]) -> dict[int, float]:
        """Return what each faulty line takes away of the derivative along the steps."""
        severing = sorted(i for i, kind in self.kinds.items() if kind != "wrong")
        wrong = sorted(i for i, kind in self.kinds.items() if kind == "wrong")
        lost: dict[int, float] = {}
        for k, i in enumerate(severing):
            lost[i] = self.slope(set(severing[:k]), steps) - self.slope(set(severing[: k + 1]), steps)
        for k, i in enumerate(wrong):
            later = set(severing) | set(wrong[k + 1 :])
            lost[i] = self.slope(later, steps) - self.slope(later | {i}, steps)
        return lost

    def jumps(self, steps: list[Tensor], reach: float = 2.0, points: int = 81) -> bool:
        """Tell whether the value jumps along the steps, looked at on a grid and then closely."""
        ts = [reach * (2.0 * i / (points - 1) - 1.0) for i in range(points)]
        found = [self.value(steps, t) for t in ts]
        for (a, va), (b, vb) in itertools.pairwise(zip(ts, found, strict=True)):
            if abs(vb - va) > 1e-6 and self._jump_between(steps, a, va, b, vb):
                return True
        return False

    def _jump_between(self, steps: list[Tensor], a: float, va: float, b: float, vb: float) -> bool:
        largest = 0.0
        for k in range(14):  # a smooth difference is halved each time, once an extremum between is left behind
            m = 0.5 * (a + b)
            vm = self.value(steps, m)
            a, va, b, vb = (a, va, m, vm) if abs(vm - va) > abs(vb - vm) else (m, vm, b, vb)
            largest = max(largest, abs(vb - va)) if k < 3 else largest
        return abs(vb - va) > 0.05 * largest

    def value(self, steps: list[Tensor], t: float) -> float:
        """Return the value where the inputs are moved."""
        torch.default_generator.set_state(self.names["state"])
        sources = [*self.inputs, *self.module.parameters()]
        kept = [s.detach().clone() for s in sources]
        with torch.no_grad():
            for source, step in zip(sources, steps, strict=True):
                source.add_(t * step)
        value = float(self._function(*self.inputs))
        with torch.no_grad():
            for source, base in zip(sources, kept, strict=True):
                source.copy_(base)
        return value if math.isfinite(value) else 0.0

    @property
    def _function(self) -> Any:
        if "compiled" not in self.__dict__:
            self.__dict__["compiled"] = self.compile()
        return self.__dict__["compiled"]


def write_program(seed: int, length: int = 30, severing: int = 5, wrong: int = 0, steps: int = 0) -> RandomProgram:
    """Return a random program of so many lines, with at most so many that sever."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(N, N), torch.nn.Tanh()).double()
    for p in net.parameters():
        p.data = 0.6 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    random_tensor = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    names = {
        "torch": torch, "np": np, "expit": expit, "checkpoint": checkpoint, "net": net,
        "M": 0.5 * random_tensor(N, N),
        "Right": Right, "Wrong": Wrong, "Cut": Cut, "table": random_tensor(N),
        "state": torch.Generator().manual_seed(seed).get_state(),
    }  # fmt: skip
    count = draw.randint(6, length)
    places = draw.sample(range(count), min(count, draw.randint(min(1, severing), severing) + wrong + steps))
    roles = dict(zip(places, ["wrong"] * wrong + ["step"] * steps + ["sever"] * count, strict=False))
    lines, twins, kinds, jumps = [], dict[int, str](), dict[int, str](), list[int]()
    for i in range(count):
        u, w = (draw.choice(["x", "y", *(f"a{j}" for j in range(max(0, i - 6), i))]) for _ in range(2))
        fill = SimpleNamespace(u=u, w=w, c=round(draw.uniform(-0.4, 0.4), 3)).__dict__
        role = roles.get(i)
        if role == "sever":
            kind = draw.choice(list(SEVERING))
            text, twin = SEVERING[kind]
            kinds[i], twins[i] = kind, f"a{i} = {twin.format(**fill)}"
        elif role == "wrong":
            text = f"Wrong.apply({u}, {draw.choice([0.0, -1.0, 0.5, 1.1, 2.0])})"
            kinds[i], twins[i] = "wrong", f"a{i} = torch.sin({u})"
        elif role == "step":
            text = draw.choice(STEPS)
            jumps.append(i)
        else:
            text = draw.choice(CLEAN)
        lines.append(f"a{i} = {text.format(**fill)}")
    last = [f"a{j}" for j in range(max(0, count - 6), count)]
    lines.append(
        "return (("
        + " + ".join(f"{draw.uniform(0.5, 1.5):.3f} * {a}" for a in last)
        + " + 0.3 * x + 0.2 * y) ** 2).sum()"
    )
    inputs = [random_tensor(N).requires_grad_() for _ in range(2)]
    return RandomProgram(lines, twins, kinds, jumps, inputs, net, names)
