"""From tokens to a tree, by recursive descent. A text is unreadable if the grammar does not consume all of it.

Two spellings have two meanings, and both are returned: `1/2x` is half of x to some and one over 2x to others.
"""

from __future__ import annotations

import re
from typing import Final

from services.contracts.questions.formulas import units
from services.contracts.questions.formulas.atoms import Atoms
from services.contracts.questions.formulas.cursor import DEEPEST
from services.contracts.questions.formulas.names import FUNCTIONS, is_special, number_of_word
from services.contracts.questions.formulas.numerals import number, scaled, times
from services.contracts.questions.formulas.spellings import spellings, word_set
from services.contracts.questions.formulas.tree import Node, Unfinished, Unreadable
from services.contracts.questions.formulas.words import LONGEST_FORMULA, Token, tokens, unwrapped

_RELATIONS: Final = {sign: sign for sign in ("=", "<", ">", "in")} | spellings("<= le | >= ge | != ne | ~ approx sim")
_CLOSERS: Final = (")", "]", "\\}", "}", "|", "&", "\\", "rfloor", "rceil", "rangle", "end", "over", "choose")
_NO_FACTORS: Final = word_set("cup cap setminus pm mp circ ldots to Rightarrow")
_ORDINARY: Final = re.compile(r"[xyz]+|[abcxyz]{2}")
"""Letters alone that are read as a product, which commutes; other letters alone are words."""


def read(text: str) -> tuple[Node, ...]:
    """The readings of a whole text: one, or two if it has a division that two conventions read differently.

    Words, and notation that is not known here, are read as `words`: they equal what is written alike, and nothing else.

    Raises:
        Unreadable: it is empty, too long, or breaks off.
    """
    if len(text) > 2 * LONGEST_FORMULA:
        raise Unreadable(f"it is longer than {LONGEST_FORMULA} characters")
    text = unwrapped(text)
    if not text:
        raise Unreadable("it is empty")
    if (value := number_of_word(text)) is not None:
        return (number(str(value)),)
    if re.fullmatch(r"[A-Za-z]{2,}(?:['-][A-Za-z]+)+|\d+(?:st|nd|rd|th)", text):
        return (_words(text),)
    split = tokens(text)
    if not any(token.kind != "sign" or token.text == "\\{" for token in split):
        raise Unreadable("it says nothing")
    try:
        first = Reader(split, tight=True)
        node = first.whole()
        _refuse_deep(node)
        return (node, Reader(split, tight=False).whole()) if first.ambiguous else (node,)
    except RecursionError as error:
        raise Unreadable("it is nested too deeply") from error
    except Unfinished:
        if not _is_prose(split):
            raise
    except Unreadable:
        pass
    _refuse_open_braces(split)
    return (_words(" ".join(token.text for token in split)),)


def _refuse_deep(node: Node) -> None:
    level = [node]
    for _ in range(2 * DEEPEST):
        level = [part for one in level for part in one.parts]
        if not level:
            return
    raise RecursionError


def _words(text: str) -> Node:
    return Node("words", text=" ".join(re.sub(r"\.(?!\d)", "", text.lower()).split()))


def _joined(relations: list[Node], joints: list[str]) -> Node:
    """Relations as a list whose text is the word between them; `and` binds before `or`, a comma before neither."""
    words = {joint for joint in joints if joint}
    if len(words) == 1:
        return Node("list", tuple(relations), words.pop())
    groups = [[relations[0]]]
    for joint, relation in zip(joints, relations[1:], strict=True):
        if joint == "and":
            groups[-1].append(relation)
        else:
            groups.append([relation])
    parts = (group[0] if len(group) == 1 else Node("list", tuple(group), "and") for group in groups)
    return Node("list", tuple(parts), "or")


def _is_prose(split: list[Token]) -> bool:
    return any(
        token.kind == "text" or (token.kind == "word" and len(token.text) > 2 and token.text not in FUNCTIONS)
        for token in split
    )


def _refuse_open_braces(split: list[Token]) -> None:
    depth = 0
    for token in split:
        depth += token.is_sign("{") - token.is_sign("}")
        if depth < 0:
            break
    if depth:
        raise Unreadable("its braces do not match")


class Reader(Atoms):
    """Reads one list of tokens once."""

    def whole(self) -> Node:
        node = self.over()
        if self.here.kind != "end":
            raise Unreadable(f"{self.here.text!r} is left over")
        return node

    def sequence(self) -> Node:
        """Elements between commas, semicolons, `and`, `or`. One element stands for itself."""
        elements = self.elements()
        if len(elements) == 1:
            return elements[0]
        if any(element.kind != "relations" for element in elements) or not any(self.joints):
            return Node("list", tuple(elements))
        return _joined(elements, self.joints)

    def elements(self) -> list[Node]:
        self.deeper()
        found, joints = [self.element()], []
        while (joint := self._separator()) is not None:
            joints.append(joint)
            found.append(self.element())
        self.depth -= 1
        self.joints = joints
        return found

    def _separator(self) -> str | None:
        """Goes over what separates two elements: `and`, `or`, or nothing for a comma; None where nothing does."""
        start, joint = self.position, ""
        self.accept(",", ";")
        while self._is_joint(self.here):
            joint = self.take().text.lower().strip(" ,")
            self.accept(",")
        return joint if self.position > start else None

    def _is_joint(self, token: Token) -> bool:
        return token.kind in ("word", "text", "command") and token.text.lower().strip(" ,") in ("and", "or")

    def ends_element(self, token: Token) -> bool:
        return (
            token.kind == "end"
            or token.is_sign(",", ";", *_CLOSERS)
            or token.is_command(*_CLOSERS)
            or (self.in_set and token.is_sign(":"))
            or self._is_joint(token)
            or self._relation(token) is not None
        )

    def _relation(self, token: Token) -> str | None:
        return _RELATIONS.get(token.text) if token.kind in ("sign", "command") else None

    def element(self) -> Node:
        """A value, or a chain of relations such as 0 < x <= 1 or x = 2y = 4."""
        members, signs = [self.member()], []
        while (sign := self._relation(self.here)) is not None:
            self.position += 1
            signs.append(sign)
            members.append(self.member())
        return Node("relations", tuple(members), " ".join(signs)) if signs else members[0]

    def member(self) -> Node:
        words = self._only_words()
        if words is not None:
            return words
        node = self.set_expression()
        if self.here.is_sign(":") and not self.in_set:
            node = self._ratio(node)
        if not self.ends_element(self.here):
            node = self._with_unit(node)
        return node

    def _only_words(self) -> Node | None:
        """Letters that are no formula: words, names of points, choices. They do not commute."""
        end = self.position
        while self.tokens[end].kind in ("word", "text") and not self._is_joint(self.tokens[end]):
            end += 1
        found = self.tokens[self.position : end]
        if not found or not self.ends_element(self.tokens[end]) or any(map(is_special, found)):
            return None
        if all(token.kind == "word" and (len(token.text) == 1 or _ORDINARY.fullmatch(token.text)) for token in found):
            return None
        if (
            len(found) == 1
            and self.tokens[end].is_sign(")", "]", "}")
            and self.tokens[self.position - 1].is_sign("(", "[", "{")
        ):
            return None  # alone in brackets that belong to a formula
        if found[0].kind == "text" and not re.search(r"[A-Za-z]{2}|^[A-Za-z]$", found[0].text):
            return None
        self.position = end
        if len(found) == 1 and (value := number_of_word(found[0].text)) is not None:
            return number(str(value))
        return _words(" ".join(token.text for token in found))

    def _ratio(self, first: Node) -> Node:
        parts, start = [first], self.position - 1
        while self.accept(":"):
            parts.append(self.sum())
        written = "".join(token.text for token in self.tokens[start : self.position])
        if any(part.has("relations", "list", "words") for part in parts):
            raise Unreadable("its colon is not that of a ratio")
        return Node("ratio", tuple(parts), written)

    def _with_unit(self, node: Node) -> Node:
        """`node` with the words behind it, which must be a unit."""
        start, depth = self.position, 0
        while not self.ends_element(self.here) or (depth > 0 and self.here.is_sign(")", "}")):
            depth += self.here.is_sign("(", "{") - self.here.is_sign(")", "}")
            self.take()
        rest = self.tokens[start : self.position]
        if node.symbols() or node.has("list", "relations", "words", "group", "set", "table", "dots"):
            raise Unreadable(f"{rest[0].text!r} is left over")
        factor = units.multiplier(rest[0].text)
        if factor is not None:
            node = scaled(node, factor)
            rest = rest[1:]
        if not rest:
            return node
        own = node.text if node.kind == "quantity" else ""
        text = " ".join("^" if token.text == "^" else token.text for token in rest if not token.is_sign("{", "}"))
        found = units.unit(text.replace("^ ", "^"))
        if found is None or (own and found and own != found and "/" not in text and "per" not in text):
            raise Unreadable(f"{text!r} is left over")
        if own and found != own:
            found = units.unit(f"{own.partition('^')[0]} {text}")
        return Node("quantity", node.parts if own else (node,), found or own)

    def set_expression(self) -> Node:
        node = self.sum()
        while self.here.is_command("cup", "cap", "setminus"):
            kind = {"cup": "union", "cap": "intersection", "setminus": "difference"}[self.take().text]
            node = Node(kind, (node, self.sum()))
        return node

    def sum(self) -> Node:
        terms = [self.product()]
        while self.here.is_sign("+", "-") or self.here.is_command("pm", "mp"):
            sign = self.take().text
            term = self.product()
            if sign == "-" and term.kind == "set" and len(terms) == 1:
                terms = [Node("difference", (terms[0], term))]
                continue
            if sign != "+":
                term = Node("negate", (term,)) if sign == "-" else Node("plusminus", (term,), sign)
            terms.append(term)
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.accept("*"):
                node = times(node, self.signed())
            elif self.here.is_sign("/") and not (self.is_unit(1) and not node.symbols()):
                self.take()
                node = Node("divide", (node, self._denominator()))
            elif self.starts_factor(node):
                node = times(node, self.power())
            else:
                return node

    def _denominator(self) -> Node:
        node = self.signed()
        while self.starts_factor(node) and not self.here.after_space:
            self.ambiguous = True
            if not self.tight:
                break
            node = times(node, self.power())
        return node

    def starts_factor(self, left: Node) -> bool:
        """Whether the next token is implicitly multiplied with what is on its left."""
        token = self.here
        if token.kind == "number" or self.ends_element(token) or left.kind == "quantity":
            return False
        if token.kind == "word":
            return bool(left.symbols()) or (not self.is_unit() and token.text != "base")
        if token.kind == "text":
            return token.text in FUNCTIONS or bool(left.symbols())
        if token.kind == "command":
            return token.text not in _NO_FACTORS and (token.text != "Omega" or bool(left.symbols()))
        return token.is_sign("(", "[", "{", "\\{") or (token.is_sign("|") and not self.bars)

    def is_unit(self, by: int = 0) -> bool:
        """Whether the word `by` tokens ahead, behind a number, is a unit, a multiplier or prose: no product."""
        token = self.ahead(by)
        if token.kind == "word" and token.text in ("min", "sec") and self.ends_element(self.ahead(by + 1)):
            return True
        if token.kind != "word" or is_special(token):
            return False
        if units.multiplier(token.text) is not None or units.is_known(token.text, token.after_space):
            return True
        return len(token.text) > 2 and not _ORDINARY.fullmatch(token.text)

    def signed(self) -> Node:
        if self.accept("-"):
            return Node("negate", (self.signed(),))
        if self.accept("+"):
            return self.signed()
        if self.here.is_command("pm", "mp"):
            sign = self.take().text
            return Node("plusminus", (self.signed(),), sign)
        if units.is_currency(self.here.text) and self.ahead().kind in ("number", "sign"):
            name = units.unit(self.take().text)
            self.accept(".")  # Rs. 50
            inner = self.signed()
            if inner.symbols() or inner.kind == "quantity":
                raise Unreadable("its currency sign stands before no number")
            return Node("quantity", (inner,), name or "")
        return self.power()

    def power(self) -> Node:
        """An atom with what is raised or put behind it: powers, factorials, percent, degrees."""
        self.deeper()
        node = self.atom()
        while True:
            if self.accept("!"):
                node = Node("call", (node,), "factorial")
            elif self.accept("%"):
                node = Node("quantity", (node,), f"{units.PERCENT}^1")
            elif self.here.is_sign("^") and self._degree():
                node = Node("quantity", (node,), f"{self._scale()}^1")
            elif self.accept("^"):
                node = Node("power", (node, self.exponent()))
            elif (
                self.here.kind == "sign"
                and self.here.text in units.CURRENCIES
                and not node.symbols()
                and self.here.text != "$"
            ):
                node = Node("quantity", (node,), units.unit(self.take().text) or "")
            else:
                self.depth -= 1
                return node

    def _degree(self) -> bool:
        if self.ahead().is_command("circ"):
            self.position += 2
            return True
        if self.ahead().is_sign("{") and self.ahead(2).is_command("circ") and self.ahead(3).is_sign("}"):
            self.position += 4
            return True
        return False

    def _scale(self) -> str:
        if self.here.kind in ("word", "text") and self.here.text.lower() in ("c", "f", "celsius", "fahrenheit"):
            return {"c": "celsius", "f": "fahrenheit"}[self.take().text.lower()[0]]
        return units.DEGREE

    def exponent(self) -> Node:
        if self.here.is_sign("{"):
            return self.braces()
        if self.here.is_sign("+", "-", "*") and self.ends_element(self.ahead()):
            raise Unreadable("its exponent is a sign")  # as in R^+
        if self.accept("-"):
            return Node("negate", (self.exponent(),))
        self.accept("+")
        node = self.atom()
        while self.accept("!"):
            node = Node("call", (node,), "factorial")
        if self.here.is_sign("^") and not self.ahead().is_command("circ"):
            self.position += 1
            return Node("power", (node, self.exponent()))
        return node
