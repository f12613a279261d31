"""The best fixed bits per layer that a search finds: what a router has to beat."""

from collections.abc import Callable, Sequence

__all__ = ["greedy_allocation"]


def greedy_allocation(
    layers: int,
    precisions: Sequence[int],
    budget: float,
    cost: Callable[[tuple[int, ...]], float],
    *,
    swaps: int = 64,
) -> tuple[int, ...]:
    """Bits per layer of at most ``budget`` on average, by one-layer sensitivities, then swaps.

    From the lowest precision in all layers on, the step up that saves most per bit is taken for as
    long as the budget allows, where what a step saves was measured with that layer alone changed.
    Then one layer goes up and another down by a step, measured together, for as long as that helps.

    Args:
        layers: How many.
        precisions: Bits to choose from.
        budget: Mean bits over layers that may not be exceeded.
        cost: What to minimise: the cross-entropy of an allocation.
        swaps: Measurements of the second part, at most.

    Returns:
        Bits of each layer.

    Cost: ``1 + layers * (len(precisions) - 1) + swaps`` measurements.

    >>> pays = lambda bits: 4 / bits[0] + 1 / bits[1]
    >>> greedy_allocation(2, [2, 4], 3.0, pays)
    (4, 2)
    """
    offered = sorted(precisions)
    base = (offered[0],) * layers
    lowest = cost(base)
    alone = {
        (layer, bits): cost((*base[:layer], bits, *base[layer + 1 :]))
        for layer in range(layers)
        for bits in offered[1:]
    }
    alone |= {(layer, offered[0]): lowest for layer in range(layers)}
    chosen = list(base)
    while steps := [
        ((alone[layer, chosen[layer]] - alone[layer, bits]) / (bits - chosen[layer]), layer, bits)
        for layer in range(layers)
        for bits in offered
        if bits > chosen[layer] and sum(chosen) + bits - chosen[layer] <= budget * layers + 1e-9
    ]:
        _, layer, bits = max(steps, key=lambda step: (step[0], -step[1], -step[2]))
        chosen[layer] = bits
    return _swapped(tuple(chosen), offered, budget, cost, swaps)


def _swapped(
    start: tuple[int, ...],
    offered: Sequence[int],
    budget: float,
    cost: Callable[[tuple[int, ...]], float],
    measurements: int,
) -> tuple[int, ...]:
    best, lowest = start, cost(start)
    improved = True
    while improved and measurements > 0:
        improved = False
        for trial in _neighbours(best, offered, budget):
            if measurements == 0:
                break
            measurements -= 1
            if (found := cost(trial)) < lowest:
                best, lowest, improved = trial, found, True
                break
    return best


def _neighbours(
    chosen: tuple[int, ...], offered: Sequence[int], budget: float
) -> list[tuple[int, ...]]:
    found = []
    for up, high in enumerate(chosen):
        for down, low in enumerate(chosen):
            if up == down or high == offered[-1] or low == offered[0]:
                continue
            trial = list(chosen)
            trial[up] = offered[offered.index(high) + 1]
            trial[down] = offered[offered.index(low) - 1]
            if sum(trial) <= budget * len(chosen) + 1e-9:
                found.append(tuple(trial))
    return found
