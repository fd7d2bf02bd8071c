"""Momentum SGD in fixed point, whose steps can be undone exactly (Maclaurin, Duvenaud and Adams 2015, Section 3).

Weights and velocities are whole multiples of 2^-52, kept as int64: sums are exact, so the reverse pass can subtract
what the forward pass added. Only the product with the momentum loses information: about log2(1 / momentum) bits of each
velocity in each step. An `InformationBuffer` keeps these bits, and no others.
"""

import hashlib
from fractions import Fraction

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ddbench.errors import DdbenchError

FRACTION_BITS = 52
"""Binary places behind the point; 11 bits and the sign are in front of it."""
LARGEST = 2**62
"""Bound of the integers: the sum of two below it does not overflow. In numbers 2^10 = 1024."""
DENOMINATOR = 2**16
"""Largest denominator of a momentum: a momentum is off by less than 2^-16 / denominator, and 0.9 = 9/10 is exact."""
WORD = 32
"""Bits of a full word of the buffer."""


def as_ratio(momentum: float) -> Fraction:
    """Return the momentum as a ratio of small integers. Raises `ValueError` where that is not in (0, 1]."""
    ratio = Fraction(momentum).limit_denominator(DENOMINATOR)
    if not 0 < ratio <= 1:
        raise ValueError(
            f"Reverse() undoes steps with a momentum above 0 and at most 1, not {momentum}: "
            "without momentum a step cannot be undone; take Recompute() or Checkpoint()"
        )
    return ratio


class InformationBuffer:
    """The digits that products with ratios below 1 would lose, for `size` integers at once.

    The product of v with n / d takes the remainder of v by d out, and packs a digit between 0 and n - 1 in its place:

        rest <- rest d + (v mod d),    v <- floor(v / d) n + (rest mod n),    rest <- floor(rest / n)

    Each line is a bijection of integers, so the product can be undone. `rest`, one integer for each v, grows by the
    factor d / n: by log2(d / n) bits. All grow alike, so a common bound decides when the low 32 bits of all of them
    become a full word: no v needs a flag of its own. Memory after T products: 8 + T log2(d / n) / 8 bytes for each v.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.rest = torch.zeros(size, dtype=torch.int64, device=device)
        self.words: list[Tensor] = []
        self._bound = 0
        self._undo: list[tuple[int, bool]] = []

    @property
    def nbytes(self) -> int:
        """The bytes of the digits."""
        return sum(tensor.nbytes for tensor in (self.rest, *self.words))

    @property
    def empty(self) -> bool:
        """True where every product is undone and no digit is left."""
        return not self._undo and not self.words and not bool(self.rest.any())

    def multiply(self, values: Int64[Tensor, " size"], ratio: Fraction) -> None:
        """Multiply `values` by `ratio`, in place."""
        n, d = ratio.numerator, ratio.denominator
        spill = (self._bound + 1) * d > 2**63
        self._undo.append((self._bound, spill))
        if spill:
            self.words.append(self.rest.to(torch.int32))
            self.rest >>= WORD
            self._bound >>= WORD
        self._exchange(values, d, n)
        self._bound = ((self._bound + 1) * d - 1) // n

    def divide(self, values: Int64[Tensor, " size"], ratio: Fraction) -> None:
        """Undo the latest `multiply`, which was by `ratio`, in place."""
        self._bound, spill = self._undo.pop()
        self._exchange(values, ratio.numerator, ratio.denominator)
        if spill:
            self.rest <<= WORD
            self.rest |= self.words.pop().to(torch.int64) & (2**WORD - 1)

    def _exchange(self, values: Tensor, taken: int, packed: int) -> None:
        """Take a digit to base `taken` out of the values and pack one to base `packed` instead, in place."""
        quotient = torch.div(values, taken, rounding_mode="floor")
        self.rest.mul_(taken).add_(values.sub_(quotient, alpha=taken))
        torch.mul(quotient, packed, out=values)
        # The rest is not negative: rounding towards zero is the floor, and faster.
        torch.div(self.rest, packed, rounding_mode="trunc", out=quotient)
        values.add_(self.rest).sub_(quotient, alpha=packed)
        self.rest.copy_(quotient)


class ReversibleMomentum:
    """Weights and velocities in fixed point, and the steps of momentum SGD on them, forward and back.

        v <- momentum v + fix(g + decay w),    w <- w - fix(lr v)

    `fix` rounds to a multiple of 2^-52. Both roundings are functions of what the reverse pass has at hand, so
    `undo_weights` and then `undo_velocities`, with the same gradient, restore every bit.
    Raises `DdbenchError` where a number is not finite or reaches 1024.
    """

    def __init__(self, weights: Float[Tensor, " size"], velocities: Float[Tensor, " size"]) -> None:
        self._weights, self._velocities = _fix(weights), _fix(velocities)
        self.buffer = InformationBuffer(len(weights), weights.device)
        self._start = self._checksum()

    @property
    def nbytes(self) -> int:
        """The bytes of weights, velocities and buffer."""
        return self._weights.nbytes + self._velocities.nbytes + self.buffer.nbytes

    @property
    def weights(self) -> Float[Tensor, " size"]:
        """The weights in float64."""
        return self._weights.double().mul_(2.0**-FRACTION_BITS)

    @property
    def velocities(self) -> Float[Tensor, " size"]:
        """The velocities in float64."""
        return self._velocities.double().mul_(2.0**-FRACTION_BITS)

    @property
    def at_start(self) -> bool:
        """True where weights and velocities have the bytes that they began with, and the buffer is empty."""
        return self.buffer.empty and self._checksum() == self._start

    def step(self, gradient: Float[Tensor, " size"], lr: float, momentum: Fraction, decay: float) -> None:
        """Take a step with the gradient at the weights."""
        self.buffer.multiply(self._velocities, momentum)
        self._velocities += self._force(gradient, decay)
        _check(self._velocities)
        self._weights -= self._move(lr)
        _check(self._weights)

    def undo_weights(self, lr: float) -> None:
        """Undo the first half of the latest step: go back to the weights that its gradient was taken at."""
        self._weights += self._move(lr)
        _check(self._weights)

    def undo_velocities(self, gradient: Float[Tensor, " size"], momentum: Fraction, decay: float) -> None:
        """Undo the other half, with the gradient at the weights."""
        self._velocities -= self._force(gradient, decay)
        _check(self._velocities)
        self.buffer.divide(self._velocities, momentum)

    def _force(self, gradient: Tensor, decay: float) -> Tensor:
        """Return fix(g + decay w)."""
        return _fix(gradient.double() + decay * self.weights if decay else gradient)

    def _move(self, lr: float) -> Tensor:
        """Return fix(lr v)."""
        return _rounded(self._velocities.double().mul_(lr))

    def _checksum(self) -> bytes:
        checksum = hashlib.blake2b()
        for tensor in (self._weights, self._velocities):
            checksum.update(tensor.cpu().numpy().data)
        return checksum.digest()


def _fix(values: Float[Tensor, " size"]) -> Int64[Tensor, " size"]:
    """Return the nearest multiples of 2^-52."""
    return _rounded(values.double() * 2.0**FRACTION_BITS)


def _rounded(units: Float[Tensor, " size"]) -> Int64[Tensor, " size"]:
    """Return the nearest integers; `units` is overwritten."""
    _check(units)
    return units.round_().to(torch.int64)


def _check(units: Tensor) -> None:
    """Raise `DdbenchError` where a number is as large as `LARGEST`, or not a number."""
    low, high = torch.aminmax(units)
    # Not the other way about: a comparison with NaN is false.
    if not (low > -LARGEST and high < LARGEST):
        raise DdbenchError(
            "A weight, a velocity or a gradient reached 1024, beyond the range of exactly reversible training.",
            "Lower the learning rates, or go back with Recompute() or Checkpoint().",
        )
