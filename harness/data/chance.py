"""How many questions would leave the replay buffer if nothing were learned: hard ones are met again, and luck turns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache


class FrozenPolicy:
    r"""A policy that never changes, with the accuracies that the plain groups of a run's new questions have shown.

    It answers a question right with a probability p of the question's own, whatever it was asked before. Over questions
    p is spread as those accuracies are: a share w_j of the groups has shown p_j.

    Of a question in the buffer, k of n answers were right since its admission. For an order of them that has the
    probability p^k (1 - p)^(n - k), so by Bayes' rule

        P(p_j | k, n) = w_j p_j^k (1 - p_j)^(n - k) / sum_i w_i p_i^k (1 - p_i)^(n - k).

    The next group of G answers graduates it if at least tau G are right. Their number is binomial:

        q(p) = sum over m >= tau G of C(G, m) p^m (1 - p)^(G - m).

    The chance of a visit is the mean of q over the p that are left, sum_j P(p_j | k, n) q(p_j). Every visit has it,
    given all that came before. By linearity of expectation the chances of all visits add up to the expected number of
    graduations, although an entry that has graduated is not visited again.

    Example: groups of 2 have shown 0 of 2 as often as 1 of 2, tau is 0.5, and an entry was admitted at 0 of 2. Left are
    p = 0 with weight 1 and p = 0.5 with weight 0.5^0 0.5^2 = 1/4, that is 4/5 and 1/5. q(0) = 0, q(0.5) = 1 - 1/4. The
    chance is 1/5 of 3/4, 0.15.

    A reward between 0 and 1 counts as that part of a right answer.
    """

    def __init__(self, seen: Iterable[tuple[float, int]] = ()) -> None:
        self._seen: Counter[float] = Counter(dict(seen))

    def see(self, accuracy: float, group_size: int) -> None:
        """A plain group of a new question."""
        self._seen[round(accuracy * group_size) / group_size] += 1

    def chance(self, accuracy: float, *, num_groups: int, group_size: int, tau: float) -> float:
        """Probability that the next group reaches `tau`, after `num_groups` groups of a question with this mean
        accuracy. Where no accuracy that was seen explains them, p is that mean."""
        num_right, num_wrong = accuracy * num_groups * group_size, (1 - accuracy) * num_groups * group_size
        logs = {p: math.log(n) + _power(p, num_right) + _power(1 - p, num_wrong) for p, n in self.seen()}
        most = max(logs.values(), default=-math.inf)
        if most == -math.inf:
            return _reaches(accuracy, group_size, tau)
        weights = {p: math.exp(value - most) for p, value in logs.items()}
        total = sum(weights.values())
        return sum(weight * _reaches(p, group_size, tau) for p, weight in weights.items()) / total

    def seen(self) -> list[tuple[float, int]]:
        """Groups by accuracy: what another one is made from."""
        return sorted(self._seen.items())


def _power(base: float, exponent: float) -> float:
    """Logarithm of base^exponent; 0^0 is 1."""
    if exponent <= 0:
        return 0.0
    return exponent * math.log(base) if base > 0 else -math.inf


@lru_cache(maxsize=1024)
def _reaches(p: float, group_size: int, tau: float) -> float:
    """Probability of an accuracy of at least `tau` in a group of answers, each right with probability p."""
    enough = [m for m in range(group_size + 1) if m / group_size >= tau]
    return sum(math.comb(group_size, m) * p**m * (1 - p) ** (group_size - m) for m in enough)
