"""Integrals inside integrands: the inner errors are the outer one's noise, their warnings become one.

While search calls an integrand, it opens a record; an inner call of a verb finds it and writes to it
instead of warning by itself.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any

__all__ = ["InnerRecord", "current_record"]


@dataclass
class InnerRecord:
    """What a call has to say when it is done.

    The worst relative error of inner integrals, what those that failed had to say, the first jump not marked, and,
    of a part of a batch, the numbers of arguments on which f does not depend although they require grad.
    """

    noise: float = 0.0
    failures: dict[str, int] = field(default_factory=lambda: {})
    jump: str = ""
    severed: tuple[str, ...] = ()
    _token: Token[InnerRecord | None] | None = None

    def __enter__(self) -> InnerRecord:
        """Collect the reports of inner integrals from here on."""
        self._token = _record.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave it to the surrounding integral again."""
        if self._token is not None:
            _record.reset(self._token)

    @staticmethod
    def current() -> InnerRecord:
        """Return the record that is open."""
        record = current_record()
        assert record is not None
        return record

    def __reduce__(self) -> Any:
        """Leave out what is this process' own."""
        return InnerRecord, (self.noise, self.failures, self.jump, self.severed)

    def note(self, noise: float, failures: dict[str, int]) -> None:
        """Enter what an inner call reports."""
        self.noise = max(self.noise, noise)
        for sentence, count in failures.items():
            self.failures[sentence] = self.failures.get(sentence, 0) + count


_record: ContextVar[InnerRecord | None] = ContextVar("quadgrad_inner_record", default=None)


def current_record() -> InnerRecord | None:
    """Return the record of the surrounding integral, if there is one."""
    return _record.get()
