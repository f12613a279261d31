"""How likely a uniform router shows as much by chance: bounds that hold for every window size.

A floor says what chance shows on average; a bound says what it shows next to never. The null model
is that of `moetrace.metrics.noise_floor`: T tokens pick K distinct experts out of E.
"""

import math

__all__ = ["chance_of_dead", "chance_of_maximum"]


def chance_of_maximum(largest: int, tokens: int, *, num_experts: int, top_k: int) -> float:
    """Upper bound of the chance that a uniform router loads its heaviest expert at least so much.

    ``E exp(-T KL(m / T, p))``: the Chernoff bound of the binomial tail, for any of E experts.
    Valid for every T; dimensionless.

    Args:
        largest: m, the assignments of the heaviest expert.
        tokens: T.
        num_experts: E.
        top_k: K.

    Source: Hoeffding 1963, theorem 1.

    >>> chance_of_maximum(500, 1000, num_experts=4, top_k=2)
    1.0
    >>> chance_of_maximum(10, 10, num_experts=2, top_k=1) == 2 * 0.5**10
    True
    """
    p = top_k / num_experts
    if p <= 0 or largest <= tokens * p:
        return 1.0
    share = min(1.0, largest / tokens)
    distance = share * math.log(share / p)
    if share < 1.0:
        distance += (1 - share) * math.log((1 - share) / (1 - p))
    return min(1.0, num_experts * math.exp(-tokens * distance))


def chance_of_dead(tokens: int, *, num_experts: int, top_k: int, dead: int = 1) -> float:
    """Upper bound of the chance that a uniform router leaves this many experts without a token.

    ``C(E, d) (1 - K / E)^(T d)``: the mean number of sets of d experts that are all idle, were
    they independent; idle experts make one another less likely. Dimensionless.

    Args:
        tokens: T.
        num_experts: E.
        top_k: K.
        dead: d, from 1.

    >>> chance_of_dead(2, num_experts=4, top_k=2)
    1.0
    >>> chance_of_dead(4, num_experts=4, top_k=2)
    0.25
    """
    idle = max(0.0, 1 - top_k / num_experts)
    if dead == 1 or idle == 0.0:
        return min(1.0, num_experts * idle**tokens)
    log_sets = (
        math.lgamma(num_experts + 1) - math.lgamma(dead + 1) - math.lgamma(num_experts - dead + 1)
    )
    return math.exp(min(0.0, log_sets + tokens * dead * math.log(idle)))
