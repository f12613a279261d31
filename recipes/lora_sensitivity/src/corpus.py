"""Texts made by a small grammar of our own, for runs without any file.

They have the form of the data sets and none of their content: restaurants that do not exist, and
people who never talked. The same number gives the same texts.
"""

import random

from configs.config import DatasetType
from src.examples import Example

__all__ = ["made_examples"]

_NAMES = (
    *("Quill", "Harbour Nine", "Old Kiln", "Marrow", "Tin Lantern", "Saltway", "Fernhouse"),
    *("Cobalt", "Three Pears", "Lowtide", "Anvil", "Rook", "Paper Boat", "Linden"),
)
_KINDS = ("restaurant", "pub", "coffee shop")
_FOODS = ("Greek", "Thai", "French", "Peruvian", "Georgian", "vegan")
_PRICES = ("cheap", "moderate", "high")
_AREAS = ("riverside", "city centre")
_PEOPLE = ("Ida", "Milo", "Noor", "Sven", "Tess", "Otto")
_THINGS = ("the ladder", "two tickets", "your notes", "a cake", "the spare key", "my coat")
_DAYS = ("Monday", "Tuesday", "Thursday", "Friday", "Saturday", "Sunday")


def made_examples(dataset: DatasetType, count: int, *, seed: int) -> list[Example]:
    """``count`` samples.

    Args:
        dataset: Whose form they have.
        count: How many.
        seed: Which.

    >>> made_examples(DatasetType.SAMSUM, 1, seed=0)[0].source.count(chr(10))
    1
    """
    draw = random.Random(seed)
    make = _restaurant if dataset is DatasetType.E2E_NLG else _dialogue
    examples: list[Example] = []
    while len(examples) < count:
        examples.extend(make(draw))
    return examples[:count]


def _restaurant(draw: random.Random) -> list[Example]:
    """One restaurant, said in two ways."""
    name, kind, food = draw.choice(_NAMES), draw.choice(_KINDS), draw.choice(_FOODS)
    slots = [f"name[{name}]", f"eatType[{kind}]", f"food[{food}]"]
    area = draw.choice((*_AREAS, None))
    where = ""
    if area is not None:
        slots.append(f"area[{area}]")
        where = f" in the {area}" if area == "city centre" else f" by the {area}"
    price = draw.choice((*_PRICES, None))
    cost = ""
    if price is not None:
        slots.append(f"priceRange[{price}]")
        cost = f" at {'low' if price == 'cheap' else price} prices"
    texts = (
        f"{name} is a {kind}{where} that serves {food} food{cost}.",
        f"There is a {kind}{where} called {name}; it has {food} food{cost}.",
        f"For {food} food{cost}{where}, try the {kind} {name}.",
    )
    source = ", ".join(slots)
    return [Example(source, text) for text in draw.sample(texts, 2)]


def _dialogue(draw: random.Random) -> list[Example]:
    asker, giver = draw.sample(_PEOPLE, 2)
    thing, day = draw.choice(_THINGS), draw.choice(_DAYS)
    agrees = draw.random() < 0.7
    answer = "Sure." if agrees else "Sorry, I need it."
    told = (
        f"{giver} will bring {asker} {thing} on {day}."
        if agrees
        else f"{giver} cannot give {asker} {thing}."
    )
    return [Example(f"{asker}: Can you bring {thing} on {day}?\n{giver}: {answer}", told)]
