"""Integrals inside integrands: the inner errors are the outer one's noise, their warnings become one.

While search calls an integrand, it opens a record; an inner call of a verb finds it and writes to it
instead of warning by itself.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass, field

__all__ = ["InnerRecord", "current_record"]


@dataclass
class InnerRecord:
    """The worst relative error of inner integrals, what those that failed had to say, the first jump not marked."""

    noise: float = 0.0
    failures: dict[str, int] = field(default_factory=lambda: {})
    jump: str = ""
    _token: Token[InnerRecord | None] | None = None

    def __enter__(self) -> InnerRecord:
        """Collect the reports of inner integrals from here on."""
        self._token = _record.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave it to the surrounding integral again."""
        if self._token is not None:
            _record.reset(self._token)

    def note(self, noise: float, failures: dict[str, int]) -> None:
        """Enter what an inner call reports."""
        self.noise = max(self.noise, noise)
        for sentence, count in failures.items():
            self.failures[sentence] = self.failures.get(sentence, 0) + count


_record: ContextVar[InnerRecord | None] = ContextVar("quadgrad_inner_record", default=None)


def current_record() -> InnerRecord | None:
    """Return the record of the surrounding integral, if there is one."""
    return _record.get()
