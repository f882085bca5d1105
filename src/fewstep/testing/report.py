"""How a check answers: everything that is wrong, in words, or what was found right."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.errors import FewstepError


class CheckFailed(FewstepError):
    """Something does not keep its contract; the message lists all that is wrong."""


class Findings:
    """Collects what was checked; `finish` raises CheckFailed where anything was wrong."""

    def __init__(self, what: str) -> None:
        """Start to check `what`."""
        self._what = what
        self._right: list[str] = []
        self._wrong: list[str] = []

    def note(self, law: str, holds: bool, otherwise: str) -> bool:
        """Record a law; `otherwise` says what is seen and what to do. Returns whether it holds."""
        (self._right if holds else self._wrong).append(law if holds else f"{law}: {otherwise}")
        return holds

    def attempt(self, law: str, call: Callable[[], Tensor]) -> Tensor | None:
        """Return the call's result; an exception is recorded as a broken law, and gives None."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001  it is a stranger's code: anything may come
            self._wrong.append(f"{law}: it raised {type(error).__name__}: {error}")
            return None

    def finish(self) -> list[str]:
        """Return the laws that hold. Raises CheckFailed with every one that does not."""
        if self._wrong:
            raise CheckFailed(
                f"{self._what} breaks {len(self._wrong)} of "
                f"{len(self._wrong) + len(self._right)} laws: " + "; ".join(self._wrong)
            )
        return self._right


def largest(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference of two tensors."""
    return float((a - b).abs().max())
