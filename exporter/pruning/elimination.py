"""Orders channels by what the loss grows if they are removed, and what remains makes up for them.

With the second moments A of a layer's input x, the channels x_r that are removed are best given by
those that stay, x_s, as ``M x_s``, where ``M = A_rs A_ss^-1``. The layer's kernel absorbs M, so
that its output errs by the residual alone. An error of the input, e, costs ``et H e``, where H is
the sum of ``K_p G K_pt`` over the positions of the kernel, and G is the Fisher information at the
output. So removing a channel costs a diagonal element of H, carried over to the channels that stay,
divided by one of ``A^-1``: the formula of the optimal brain surgeon (Hassibi and Stork, 1993).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from exporter.graph.channels import Floats, Indices
from exporter.graph.removal import Refit

RIDGE = 1e-4
"""What is added to each channel's variance, as a part of it.

It stands for the noise of integers, so that channels are not given by small differences of others.
"""

LEAST_RIDGE = 1e-12
"""The same as a part of the mean variance, for channels that never vary."""

AT_ONCE = 64
"""One channel of so many is removed before costs are computed anew."""


Columns = Sequence[Indices]


@dataclass(frozen=True)
class Taken:
    """What a consumer knows of the channels that it takes.

    Attributes:
        mean: Mean of the channels, about which moments are taken; zero if no bias can correct it.
        scatter: Second moments of the channels, with a ridge.
        importance: Cost of an error of the channels, channels x channels.
    """

    mean: Floats
    scatter: Floats
    importance: Floats

    @cached_property
    def inverse(self) -> Floats:
        """The inverse of the second moments."""
        return np.asarray(np.linalg.inv(self.scatter))

    def refit(self, kept: Indices) -> Refit:
        """Returns how the channels are best given by those that are kept."""
        matrix = np.linalg.solve(self.scatter[np.ix_(kept, kept)], self.scatter[kept]).T
        return Refit(np.asarray(matrix), self.mean - matrix @ self.mean[kept])


def ridged(scatter: Floats) -> Floats:
    """Adds a ridge to second moments, which makes them positive definite."""
    variances = np.diag(scatter)
    least = LEAST_RIDGE * variances.mean() or 1.0
    return np.asarray(scatter + np.diag(np.maximum(RIDGE * variances, least)))


@dataclass(frozen=True)
class Elimination:
    """The order in which channels of a group are removed.

    Attributes:
        order: Their numbers within the group, the first to go first.
        errors: What the loss has grown by once 0, 1, 2, ... of them are gone.
    """

    order: Indices
    errors: Floats


def eliminate(count: int, takers: Sequence[tuple[Taken, Columns]]) -> Elimination:
    """Removes one channel after the other, always those that cost least.

    Args:
        count: The number of channels in the group.
        takers: The consumers of these channels, which may take others as well, and where each
            channel of the group is among those that they take.
    """
    states = [_State(*taker) for taker in takers]
    left, order, errors = np.arange(count), [], [0.0]
    while len(left):
        costs = sum(state.costs(left) for state in states)
        chosen = np.argsort(costs, kind="stable")[: max(1, len(left) // AT_ONCE)]
        total = sum(state.remove(left[chosen]) for state in states)
        # Channels that are removed together share the cost of all.
        steps = np.arange(1, len(chosen) + 1) / len(chosen)
        errors.extend(errors[-1] + max(0.0, total) * steps)
        order.extend(left[chosen].tolist())
        left = np.delete(left, chosen)
    return Elimination(np.array(order), np.array(errors))


class _State:
    """The inverse moments and the importance of the channels of a group that a consumer still has.

    Those of its other channels, which stay, are not needed: both blocks are updated by themselves.
    """

    def __init__(self, taken: Taken, columns: Columns) -> None:
        chosen = np.concatenate(columns)
        self._inverse = taken.inverse[np.ix_(chosen, chosen)]
        self._importance = taken.importance[np.ix_(chosen, chosen)]
        ends = np.cumsum([len(each) for each in columns])
        self._columns = np.split(np.arange(len(chosen)), ends[:-1])
        self._single = all(len(each) == 1 for each in columns)
        self._stay = np.arange(len(chosen))
        self._places = self._stay.copy()

    def costs(self, channels: Indices) -> Floats:
        """Returns what each channel costs by itself."""
        places = self._places
        if self._single:
            at = places[channels]
            return np.asarray(np.diag(self._importance)[at] / np.diag(self._inverse)[at])
        blocks = (np.ix_(at, at) for at in (places[self._columns[c]] for c in channels))
        return np.array(
            [np.trace(np.linalg.solve(self._inverse[b], self._importance[b])) for b in blocks]
        )

    def remove(self, channels: Indices) -> float:
        """Removes channels together; returns what they cost."""
        at = self._places[np.concatenate([self._columns[channel] for channel in channels])]
        stay = np.delete(np.arange(len(self._inverse)), at)
        inverse, importance = self._inverse, self._importance
        block = inverse[np.ix_(at, at)]
        # What is removed is best given by this of what stays.
        given = -np.linalg.solve(block, inverse[np.ix_(at, stay)])
        own, cross = importance[np.ix_(at, at)], importance[np.ix_(stay, at)]
        cost = float(np.trace(np.linalg.solve(block, own)))
        carried = cross @ given
        self._importance = (
            importance[np.ix_(stay, stay)] + carried + carried.T + given.T @ own @ given
        )
        self._inverse = inverse[np.ix_(stay, stay)] + inverse[np.ix_(stay, at)] @ given
        self._stay = np.delete(self._stay, at)
        self._places[self._stay] = np.arange(len(stay))
        return cost
