"""The part of the grammar that has no operators: numbers, names, functions, brackets, tables."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from services.contracts.questions.formulas.cursor import Cursor
from services.contracts.questions.formulas.names import (
    CONSTANTS,
    FUNCTION_SPELLINGS,
    FUNCTIONS,
    GREEK,
    HYPERBOLIC,
    TRIGONOMETRIC,
    is_special,
)
from services.contracts.questions.formulas.numerals import number, repeated, times
from services.contracts.questions.formulas.spellings import spellings, word_set
from services.contracts.questions.formulas.tree import Node, Unfinished, Unreadable
from services.contracts.questions.formulas.words import Token

_MARKS: Final = word_set("overline bar vec hat tilde widehat overrightarrow widetilde dot ddot")
_FIGURES: Final = word_set("angle triangle measuredangle odot")
_ALPHABETS: Final = word_set("mathbb mathcal mathfrak mathscr")
_MATRICES: Final = word_set("matrix pmatrix bmatrix Bmatrix smallmatrix array")
_UNKNOWN_FUNCTIONS: Final = "fghFGHPQ"
_MANY_ARGUMENTS: Final = word_set("gcd lcm max min")
_BASES: Final = spellings(
    "2 two | 3 three | 4 four | 5 five | 6 six | 7 seven | 8 eight | 9 nine | 10 ten | 16 sixteen"
)


class Atoms(Cursor):
    """Atoms; `Reader` adds the rules that they are put together by."""

    def elements(self) -> list[Node]:
        raise NotImplementedError

    def sequence(self) -> Node:
        raise NotImplementedError

    def sum(self) -> Node:
        raise NotImplementedError

    def power(self) -> Node:
        raise NotImplementedError

    def exponent(self) -> Node:
        raise NotImplementedError

    def starts_factor(self, left: Node) -> bool:
        raise NotImplementedError

    def braces(self) -> Node:
        """The one value between LaTeX's braces; several make a set, which plain text writes so."""
        self.expect("{")
        bars, self.bars = self.bars, 0
        node = self.over()
        self.expect("}")
        self.bars = bars
        return Node("set", node.parts) if node.kind == "list" else node

    def over(self) -> Node:
        """A sequence, or one over another as in plain TeX."""
        node = self.sequence()
        if self.accept("over"):
            return Node("divide", (node, self.sequence()))
        return Node("call", (node, self.sequence()), "binomial") if self.accept("choose") else node

    def atom(self) -> Node:
        token = self.here
        if token.kind == "number":
            return self._number()
        if token.kind == "word":
            return self._word()
        if token.kind == "text":
            self.take()
            return self._function(token.text) if token.text in FUNCTIONS else self._name(f"text {token.text}")
        if token.kind == "command":
            return self._command()
        if token.is_sign("{") and self._says_such_that():
            return self.bracketed()
        if token.is_sign("{"):
            return self.braces()
        if token.is_sign("(", "[", "\\{"):
            return self.bracketed()
        if self.accept("|"):
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            self.expect("|")
            return Node("call", (node,), "abs")
        if token.kind == "end":
            raise Unfinished("something is missing at its end")
        raise Unreadable(f"it has {token.text!r} where a value should be")

    def _number(self) -> Node:
        text = self.take().text
        if "." in text and "e" not in text.lower():
            if self.here.is_command("overline", "bar", "dot") or (text.endswith(".") and self.here.is_sign("(")):
                return self._repeating(text)
            if self.here.is_command("ldots"):
                self.take()
                same = re.search(r"(\d)\1{2,}$", text) or re.search(r"(\d{2,6})\1+$", text)
                if same is None:
                    raise Unreadable("its decimal breaks off")
                return repeated(text[: same.start()], same[1])
        if self.here.is_sign("_"):
            return self._based(text)
        hexadecimal = (
            self.here.kind == "word" and not self.here.after_space and re.fullmatch("[A-Fa-f]+", self.here.text)
        )
        if hexadecimal and self.ahead().is_sign("_") and "number" in (self.ahead(2).kind, self.ahead(3).kind):
            return self._based(text + self.take().text)
        if self.here.kind == "word" and self.here.text == "base" and self.ahead().kind == "number":
            return self._based(text)
        node = number(text)
        return self._mixed(node) if text.isdigit() else node

    def _repeating(self, text: str) -> Node:
        self.take()
        bracket = self.tokens[self.position - 1].is_sign("(")
        braced = not bracket and self.accept("{")
        digits = self.take()
        if digits.kind != "number" or not digits.text.isdigit():
            raise Unreadable("what repeats in its decimal is not made of digits")
        if bracket or braced:
            self.expect(")" if bracket else "}")
        return repeated(text, digits.text)

    def _based(self, text: str) -> Node:
        self.take()
        braced = self.accept("{")
        bracket = self.accept("(")
        token = self.take()
        written = _BASES.get(token.text, token.text)
        base = int(written) if re.fullmatch(r"\d\d?", written) else 0
        if bracket:
            self.expect(")")
        if braced:
            self.expect("}")
        try:
            int(text, base if base > 1 else 99)
        except ValueError as error:
            raise Unreadable(f"{text!r} is not written in the base behind it") from error
        return Node("digits", text=text.upper(), value=Fraction(base))

    def _mixed(self, whole: Node) -> Node:
        """A whole number followed by a proper fraction is a mixed number, their sum."""
        start = self.position
        if self.here.is_command("frac"):
            fraction = self._command()
        elif (
            self.here.kind == "number"
            and self.here.after_space
            and self.ahead().is_sign("/")
            and self.ahead(2).kind == "number"
        ):
            over, under = self.take(), self.ahead()
            self.position += 2
            fraction = Node("divide", (number(over.text), number(under.text)))
        else:
            return whole
        over_value, under_value = (part.value for part in fraction.parts)
        if over_value is None or under_value is None or fraction.has("digits"):
            self.position = start
            return whole
        if not 0 < over_value < under_value or over_value.denominator * under_value.denominator > 1:
            raise Unreadable("it is no mixed number, and two numbers stand side by side")
        return Node("add", (whole, fraction))

    def _word(self) -> Node:
        token = self.here
        name = FUNCTION_SPELLINGS.get(token.text, token.text)
        if name in FUNCTIONS:
            self.take()
            return self._function(name)
        if token.text in CONSTANTS:
            self.take()
            return Node("constant", text=CONSTANTS[token.text])
        following = self.ahead()
        if len(token.text) > 1 and following.kind == "word" and len(following.text) > 1 and not is_special(following):
            raise Unreadable("it has words where a formula should be")
        if len(token.text) == 1 or len(token.text) > 4 or token.text in GREEK:
            self.take()
            return self._name(token.text)
        parts = re.fullmatch("(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log)([a-z])", token.text)
        letters = list(parts.groups()) if parts else list(token.text)
        new = [Token("word", text, token.after_space and index == 0) for index, text in enumerate(letters)]
        self.tokens[self.position : self.position + 1] = new
        return self._word()

    def _name(self, text: str) -> Node:
        """A symbol with its index and primes, or an unknown function of the brackets after it."""
        indexed = False
        while True:
            if self.accept("_"):
                text += "_" + self.raw_index()
                indexed = True
            elif self.accept("'"):
                text += "'"
            else:
                break
        if text in ("e", "i"):
            return Node("constant", text=text)
        known = text[0] in _UNKNOWN_FUNCTIONS and text.rstrip("'").partition("_")[0] == text[0]
        if (
            (known or text.endswith("'"))
            and self.here.is_sign("(")
            and not self.here.after_space
            and not (indexed and not known)
        ):
            group = self.bracketed()
            return Node("apply", group.parts if group.kind == "group" else (group,), text)
        return Node("symbol", text=text)

    def _command(self) -> Node:
        name = self.take().text
        if name == "frac":
            return Node("divide", (self._argument(), self._argument()))
        if name == "binom":
            return Node("call", (self._argument(), self._argument()), "binomial")
        if name in FUNCTIONS:
            return self._function(name)
        if name in CONSTANTS:
            return Node("constant", text=CONSTANTS[name])
        if name in GREEK:
            return self._name(name)
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.expect("rfloor" if name == "lfloor" else "rceil")
            return Node("call", (node,), "floor" if name == "lfloor" else "ceil")
        if name == "langle":
            parts = self.elements()
            self.expect("rangle")
            return Node("group", tuple(parts), "()")
        if name == "ldots":
            return Node("dots")
        if name == "emptyset":
            return Node("set")
        if name == "begin":
            return self._table()
        if name in _ALPHABETS or name in _MARKS:
            if not self.here.is_sign("{"):
                raise Unreadable(f"\\{name} has no braces")
            return self._name(f"{'bar' if name == 'overline' else name} {self.raw_index()}")
        if name in _FIGURES:
            found = []
            while self.here.kind in ("word", "number"):
                found.append(self.take().text)
            return self._name(f"{name} {''.join(found)}")
        raise Unreadable(f"\\{name} is not known")

    def _argument(self) -> Node:
        """What \\frac and the like take: braces, or one sign."""
        if self.here.is_sign("{"):
            return self.braces()
        token = self.here
        if token.kind == "number" and len(token.text) > 1:
            if not token.text.isdigit() or len(token.text) > 2:
                raise Unreadable("the braces of its fraction are missing")
            self.tokens[self.position : self.position + 1] = [Token("number", digit) for digit in token.text]
        if self.here.kind == "number":
            return number(self.take().text)
        return self.atom()

    def _function(self, name: str) -> Node:
        if name == "sqrt":
            return self._root()
        base, exponent = None, None
        for _ in range(2):
            if self.here.is_sign("_") and name in ("log", "lg"):
                self.take()
                base = self.braces() if self.here.is_sign("{") else self._argument()
            elif self.here.is_sign("^") and exponent is None:
                self.take()
                exponent = self.exponent()
        if (
            name in ("log", "lg")
            and self.here.kind == "number"
            and self.ahead().is_sign("(")
            and not self.here.after_space
        ):
            base = number(self.take().text)
        arguments = self._arguments()
        if exponent == Node("negate", (number("1"),)) and name in (*TRIGONOMETRIC, *HYPERBOLIC):
            name, exponent = f"arc{name}", None
        if base is not None:
            arguments = (*arguments, base)
        if not arguments or (len(arguments) > 1 + (base is not None) and name not in _MANY_ARGUMENTS):
            raise Unreadable(f"{name} has too many arguments, or none")
        node = Node("call", arguments, "log" if name == "lg" else name)
        return node if exponent is None else Node("power", (node, exponent))

    def _arguments(self) -> tuple[Node, ...]:
        if self.here.is_sign("("):
            group = self.bracketed(keep=True)
            return group.parts
        if self.here.is_sign("{"):
            return (self.braces(),)
        negative = self.accept("-")
        node = self.power()
        while (
            self.starts_factor(node)
            and not (self.here.text in FUNCTIONS and self.here.text != "sqrt")
            and not self.here.is_sign("(", "[")
        ):
            node = times(node, self.power())
        if (
            self.here.is_sign("/")
            and not self.here.after_space
            and node.kind in ("constant", "symbol")
            and self.ahead().kind == "number"
        ):
            self.take()  # \sin\pi/6
            node = Node("divide", (node, self.power()))
        return (Node("negate", (node,)) if negative else node,)

    def _root(self) -> Node:
        degree = number("2")
        if self.accept("["):
            degree = self.sum()
            self.expect("]")
        if self.here.is_sign("("):
            group = self.bracketed(keep=True)
            if len(group.parts) != 1:
                raise Unreadable("its root has more than one argument")
            radicand = group.parts[0]
        else:
            radicand = self.braces() if self.here.is_sign("{") else self.atom()
        return Node("call", (radicand, degree), "root")

    def bracketed(self, keep: bool = False) -> Node:
        """A value in brackets, a tuple, an interval or a set. With `keep`, one value stays a group."""
        opening = self.take().text
        bars, self.bars = self.bars, 0
        if opening in ("\\{", "{"):
            return self._set(bars, "\\}" if opening == "\\{" else "}")
        parts = self.elements()
        closing = self.expect(")", "]")
        self.bars = bars
        if len(parts) == 1 and not keep and opening + closing in ("()", "[]"):
            if self.here.is_sign("_") and parts[0].value is not None and parts[0].kind == "number":
                return self._based(str(parts[0].value))
            return parts[0]
        return Node("group", tuple(parts), opening + closing)

    def _says_such_that(self) -> bool:
        """Whether plain braces begin like {x | ...}, {x : ...} or {x in ...}."""
        return self.ahead().kind == "word" and (self.ahead(2).is_sign("|", ":") or self.ahead(2).text == "in")

    def _set(self, bars: int, closing: str) -> Node:
        """A set by its elements, or (with the text `that`) by one condition on them."""
        outer, self.in_set = self.in_set, True
        self.bars = 1  # a bar inside is `such that`
        parts = [] if self.here.is_sign(closing) else self.elements()
        if self.accept("|", ":"):
            conditions = self.elements()
            if len(parts) != 1 or len(conditions) != 1:
                raise Unreadable("its set has several conditions")
            self.expect(closing)
            self.bars, self.in_set = bars, outer
            return Node("set", (conditions[0],), "that")
        self.expect(closing)
        self.bars, self.in_set = bars, outer
        return Node("set", tuple(parts))

    def _table(self) -> Node:
        """\\begin{pmatrix} and the like."""
        self.accept("{")
        name = self.take().text
        self.accept("*")
        self.expect("}")
        if name == "array" and self.accept("{"):
            self.position -= 1
            self.raw_index()  # how its columns are set
        rows: list[Node] = []
        cells: list[Node] = []
        while not self.here.is_command("end"):
            cells.append(self.sequence())
            if self.accept("&"):
                continue
            rows.append(Node("list", tuple(cells)))
            cells = []
            if not self.accept("\\"):
                break
        self.expect("end")
        self.accept("{")
        self.take()
        self.accept("*")
        self.expect("}")
        if cells or not rows or (len({len(row.parts) for row in rows}) > 1 and name != "cases"):
            raise Unreadable("its rows are of different lengths")
        kind = "matrix" if name in _MATRICES else name
        return Node("table", tuple(rows), kind)
