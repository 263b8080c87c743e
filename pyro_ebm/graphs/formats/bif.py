"""The Bayesian Interchange Format, `.bif`: networks with names, as the bnlearn repository has them.

    variable rain { type discrete [ 2 ] { yes, no }; }
    probability ( grass | rain, sprinkler ) {
      (yes, on) 0.99, 0.01;      the child's probabilities, for states of the parents
      default 0.5, 0.5;          for those that are not listed
    }
    probability ( rain ) { table 0.2, 0.8; }

References:
    Cozman 1998, The interchange format for Bayesian networks. https://www.bnlearn.com/bnrepository
"""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs.formats.network import Tables
from pyro_ebm.graphs.formats.tokens import Tokens, read_text

_WORD = re.compile(r'"[^"]*"|[{}()\[\]|;,]|[^\s{}()\[\]|;,"]+')
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# Probabilities in files are rounded.
_ROUNDING = 1e-2


def read_bif(path: Path) -> Tables:
    """The variables, states and conditional probabilities of a `.bif` file; names are those in the file.

    Raises:
        GraphError: if it is malformed; the message has the line.
    """
    text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), read_text(path))
    return _Parser(Tokens(path, text, _WORD), path).network()


class _Parser:
    def __init__(self, tokens: Tokens, path: Path) -> None:
        self.tokens = tokens
        self.path = path
        self.states: dict[str, tuple[str, ...]] = {}
        self.tables: dict[str, tuple[list[str], Tensor]] = {}  # by child

    def network(self) -> Tables:
        while len(self.tokens):
            kind = self.tokens.literal("network", "variable", "probability")
            if kind == "network":
                self._name("the network's name")
                self._skip_block()
            elif kind == "variable":
                self._variable()
            else:
                self._probability()
        missing = [name for name in self.states if name not in self.tables]
        if missing or not self.states:
            raise GraphError(
                f"{self.path}: got no probability ( {missing[0] if missing else '...'} ), expected a variable or more, "
                "and one such block for each."
            )
        number = {name: position for position, name in enumerate(self.states)}
        factors = [(tuple(number[name] for name in scope), table) for scope, table in self.tables.values()]
        return Tables(tuple(self.states), tuple(self.states.values()), factors, named=True)

    def _variable(self) -> None:
        name = self._name("a variable's name")
        if name in self.states:
            raise self.tokens.error("each variable once")
        self.tokens.literal("{")
        states: list[str] = []
        while (word := self.tokens.literal("type", "property", "}")) != "}":
            if word == "property":
                self._skip_statement()
                continue
            for each in ("discrete", "["):
                self.tokens.literal(each)
            count = self.tokens.integer("the number of states", 1)
            for each in ("]", "{"):
                self.tokens.literal(each)
            states = self._list("}", "a state")
            self.tokens.literal(";")
            if len(states) != count or len(set(states)) != count:
                raise self.tokens.error(f'{count} states of variable "{name}", all different, and not {states}')
        if not states:
            raise self.tokens.error(f'"type discrete" in variable "{name}"')
        self.states[name] = tuple(states)

    def _probability(self) -> None:
        self.tokens.literal("(")
        scope = [self._known()]
        child = scope[0]
        if child in self.tables:
            raise self.tokens.error("the probabilities of each variable once")
        if self.tokens.literal("|", ")") == "|":
            while self.tokens.peek() != ")":
                scope.append(self._known())
                if scope[-1] in scope[:-1]:
                    raise self.tokens.error("each parent once, and not the variable itself")
                if self.tokens.peek() == ",":
                    self.tokens.literal(",")
            self.tokens.literal(")")
        self.tables[child] = (scope, self._table(scope))

    def _table(self, scope: list[str]) -> Tensor:
        """The probabilities, `(K_child, K_parent, ...)`."""
        sizes = [len(self.states[name]) for name in scope]
        rows = math.prod(sizes[1:])
        table = torch.full((sizes[0], rows), torch.nan, dtype=torch.float64)  # by states of the parents
        default: Tensor | None = None
        self.tokens.literal("{")
        while (word := self.tokens.literal("table", "default", "property", "(", "}")) != "}":
            if word == "property":
                self._skip_statement()
            elif word == "table":
                table = self._weights(table.numel()).reshape(table.shape)
            elif word == "default":
                default = self._weights(sizes[0])
            else:
                states = self._list(")", "a parent's state")
                if len(states) != len(scope) - 1:
                    raise self.tokens.error(f"{len(scope) - 1} states in front of it, one for each of {scope[1:]}")
                row = 0
                for name, state in zip(scope[1:], states, strict=True):
                    row = row * len(self.states[name]) + self._state(name, state)
                table[:, row] = self._weights(sizes[0])
        if default is not None:
            table = torch.where(table.isnan(), default.unsqueeze(-1), table)
        for total, states_of in zip(table.sum(0).tolist(), product(*(self.states[n] for n in scope[1:])), strict=True):
            if not abs(total - 1) < _ROUNDING:
                given, got = ", ".join(states_of), "none" if math.isnan(total) else f"ones that add up to {total:.4g}"
                raise self.tokens.error(f'probabilities of "{scope[0]}" for ({given}) that add up to 1, and not {got}')
        return table.reshape(sizes)

    def _state(self, name: str, state: str) -> int:
        if state not in self.states[name]:
            raise self.tokens.error(f'a state of "{name}" ({", ".join(self.states[name])}) before it, not "{state}"')
        return self.states[name].index(state)

    def _weights(self, count: int) -> Tensor:
        """Numbers with commas or spaces between them, up to a semicolon."""
        weights = []
        while self.tokens.peek() != ";":
            weights.append(self.tokens.weight("a probability"))
            if self.tokens.peek() == ",":
                self.tokens.literal(",")
        self.tokens.literal(";")
        if len(weights) != count:
            raise self.tokens.error(f"{count} probabilities before it, and not {len(weights)}")
        return torch.tensor(weights, dtype=torch.float64)

    def _list(self, close: str, what: str) -> list[str]:
        """Names with commas or spaces between them, up to what closes the list."""
        names = []
        while self.tokens.peek() != close:
            names.append(self._name(what))
            if self.tokens.peek() == ",":
                self.tokens.literal(",")
        self.tokens.literal(close)
        return names

    def _name(self, what: str) -> str:
        name = self.tokens.word(what)
        if name in "{}()[]|;,":
            raise self.tokens.error(what)
        return name.strip('"')

    def _known(self) -> str:
        name = self._name("a variable")
        if name not in self.states:
            raise self.tokens.error("a variable that is declared above")
        return name

    def _skip_statement(self) -> None:
        while self.tokens.word('";"') != ";":
            continue

    def _skip_block(self) -> None:
        self.tokens.literal("{")
        while self.tokens.literal("property", "}") != "}":
            self._skip_statement()
