"""Shares of several streams: which of them a lane takes from at each of its turns.

A lane takes from the first stream at those turns t where floor((t + 1) w + o) > floor(t w + o), w being the stream's
share and o in [0, 1) the lane's offset (a Beatty sequence); the turns that are left go to the other streams by the
same rule. So after t turns a lane has taken w t samples from a stream, off by fewer than there are streams, and how
many is known without going through the turns. The offsets of neighbouring lanes lie far apart, so that a step, which
is a stretch of lanes, has about the shares of the whole run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import floor, gcd, sqrt


@dataclass(frozen=True)
class Mix:
    """Shares of streams; exact, so that machines agree."""

    shares: tuple[Fraction, ...]
    """Of each stream, all together 1."""

    @classmethod
    def of(cls, weights: Sequence[float]) -> Mix:
        """Shares in proportion to positive weights, taken as the decimal numbers that they are written as."""
        exact = [Fraction(repr(float(weight))) for weight in weights]
        return cls(tuple(weight / sum(exact) for weight in exact))

    @classmethod
    def of_one(cls) -> Mix:
        """A single stream."""
        return cls((Fraction(1),))

    def take(self, turn: int, *, lane: int, lanes: int) -> tuple[int, int]:
        """The stream that a lane takes from at its `turn`, and how often it took from it before."""
        left = Fraction(1)
        for stream, share in enumerate(self.shares):
            if share == left:
                return stream, turn
            rate, offset = share / left, _offset(lane, lanes, level=stream)
            before = floor(turn * rate + offset)
            if floor((turn + 1) * rate + offset) > before:
                return stream, before
            turn, left = turn - before, left - share
        raise AssertionError("the last stream takes every turn that is left")


def _offset(lane: int, lanes: int, *, level: int) -> Fraction:
    """Offsets of the lanes, evenly spaced over [0, 1) on every level."""
    return Fraction(lane * _stride(lanes, level) % lanes, lanes)


@cache
def _stride(lanes: int, level: int) -> int:
    """How far apart the offsets of two neighbouring lanes are: near an irrational share, another on each level."""
    target = sqrt(5 + 2 * level) % 1 * lanes
    coprime = [stride for stride in range(1, lanes + 1) if gcd(stride, lanes) == 1]
    return min(coprime, key=lambda stride: abs(stride - target))
