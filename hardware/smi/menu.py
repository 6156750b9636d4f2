"""The numbered menu of flavors, and the dialogue that asks for one of its lines."""

import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from hardware.catalog import Catalog
from hardware.errors import shown
from hardware.models import Flavor

Choice = TypeVar("Choice")


class Menu(NamedTuple):
    """Flavors that have a number, and those beyond, which have a name alone."""

    numbered: dict[int, Flavor]
    """By place in the platform's menu, in its order."""

    others: tuple[Flavor, ...]
    """In the order of the catalog."""

    catalog: Catalog

    def lines(self, current: str = "") -> list[str]:
        """Return the menu as text, with a star at the current flavor."""
        texts = [f"{number}. {flavor.id}" for number, flavor in self.numbered.items()]
        texts += [f"   {flavor.id}" for flavor in self.others]
        flavors = [*self.numbered.values(), *self.others]
        return [f"{text}  *" if flavor.id == current else text for text, flavor in zip(texts, flavors, strict=True)]

    def span(self) -> str:
        """Return the numbers that may be given, as the prompt writes them."""
        return f"{min(self.numbered)}-{max(self.numbered)}"

    def flavor(self, answer: str) -> Flavor:
        """Return the flavor of a number or a name.

        Raises:
            ValueError: neither is on the menu.
        """
        for number, flavor in self.numbered.items():
            if answer == str(number):
                return flavor
        try:
            return self.catalog.flavor(answer)
        except ValueError as error:
            if answer and not answer.lstrip("+-").isdecimal():
                raise
            message = f"selection: {shown(answer)} is not on the menu; use {self.span()}, or a name"
            raise ValueError(message) from error


def menu_of(catalog: Catalog) -> Menu:
    """Return the menu of a catalog; of two flavors with one place, the first has it."""
    numbered: dict[int, Flavor] = {}
    for flavor in sorted(catalog.flavors, key=lambda flavor: flavor.menu_index or 0):
        if flavor.menu_index is not None:
            numbered.setdefault(flavor.menu_index, flavor)
    others = tuple(flavor for flavor in catalog.flavors if flavor not in numbered.values())
    return Menu(numbered, others, catalog)


def converse(span: str, parse: Callable[[str], Choice], act: Callable[[Choice], None]) -> None:
    """Ask for a selection and act on it, again and again, until `q` or the end of the input.

    What `parse` refuses is told and asked again at a terminal; from a pipe, where nobody answers, it ends the dialogue.

    Raises:
        ValueError: `act` refuses, or `parse` does from a pipe.
    """
    while True:
        try:
            answer = input(f"Selection ({span}, q, Q): ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            raise
        if answer in {"q", "Q"}:
            return
        try:
            choice = parse(answer)
        except ValueError as error:
            if not sys.stdin.isatty():
                raise
            print(error)
            continue
        act(choice)
