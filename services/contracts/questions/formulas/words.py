"""A text as tokens: wrappers taken off, Unicode and LaTeX spellings of the same sign made one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from services.contracts.questions.formulas.spellings import spellings, word_set
from services.contracts.questions.formulas.tree import Unreadable

LONGEST_FORMULA: Final = 2000
"""Characters. Longer answers are not read."""

_SIGNS: Final = {
    **dict.fromkeys("“”\u200b\u2060\ufeff\u00ad", ""),
    **dict.fromkeys("\u00a0\u2002\u2003\u2005\u2007\u2009\u200a\u202f\u3000", " "),
    "\uff5c": "|",
    "∣": "|",
    "ı": "i",
    "∛": r"\sqrt[3] ",
    "∜": r"\sqrt[4] ",
    "″": "''",
    "℃": r"^\circ C",
    "℉": r"^\circ F",
    **dict.fromkeys("°º", r"^\circ "),
    **spellings("""
        - − – — ‒ ﹣ － | * × ✕ ⨯ ∙ · ⋅ ∗ ＊ • | / ÷ ∕ ⁄ ／ | + ＋ | = ＝ | ( （ | ) ） | < ＜ | > ＞ | , ， 、
        : ： ∶ | ; ； | % ％ ﹪ | ' ’ ʹ ′ | e ℯ | i ⅈ
    """),
    **{
        sign: f"{command} "
        for sign, command in spellings(r"""
            \sqrt √ | \pi π | \infty ∞ | \le ≤ ⩽ | \ge ≥ ⩾ | \ne ≠ | \approx ≈ ≃ ≅ | \pm ± | \mp ∓ | \cup ∪ | \cap ∩
            \in ∈ | \setminus ∖ | \emptyset ∅ ⌀ | \mathbb{R} ℝ | \mathbb{Z} ℤ | \mathbb{N} ℕ | \mathbb{Q} ℚ
            \mathbb{C} ℂ | \ldots … ⋯ | \lfloor ⌊ | \rfloor ⌋ | \lceil ⌈ | \rceil ⌉ | \langle ⟨ | \rangle ⟩
            \angle ∠ | \triangle △ | \to → | \Rightarrow ⇒ | \land ∧ | \lor ∨ | \neg ¬ | \ell ℓ
            \alpha α | \beta β | \gamma γ | \delta δ | \epsilon ε | \zeta ζ | \eta η | \theta θ | \iota ι | \kappa κ
            \lambda λ | \mu μ µ | \nu ν | \xi ξ | \rho ρ | \sigma σ | \tau τ | \upsilon υ | \phi φ ϕ | \chi χ | \psi ψ
            \omega ω | \Gamma Γ
            \Delta Δ | \Theta Θ | \Lambda Λ | \Xi Ξ | \Pi Π | \Sigma Σ | \Phi Φ | \Psi Ψ | \Omega Ω
        """).items()
    },
}
_FRACTIONS: Final = spellings("""
    12 ½ | 13 ⅓ | 23 ⅔ | 14 ¼ | 34 ¾ | 15 ⅕ | 25 ⅖ | 35 ⅗ | 45 ⅘ | 16 ⅙ | 56 ⅚ | 17 ⅐ | 18 ⅛ | 38 ⅜ | 58 ⅝ | 78 ⅞ | 19 ⅑
""")
_RAISED: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣ", "0123456789+-()nx")
_LOWERED: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ", "0123456789+-()nx")
_WIDE: Final = str.maketrans("０１２３４５６７８９．", "0123456789.")
_COMMANDS: Final = spellings(r"""
    frac dfrac tfrac cfrac | binom dbinom tbinom | le leq leqslant | ge geq geqslant | ne neq
    approx simeq cong thickapprox
    < lt | > gt | * cdot times ast | / div | ldots dots cdots dotsc dotsb | emptyset varnothing | circ degree | : colon
    \{ lbrace { | \} rbrace } | [ lbrack | ] rbrack | ( lparen | ) rparen | | ' prime | i imath | % percent
    setminus smallsetminus backslash | tan tg | cot ctg | epsilon varepsilon | theta vartheta | phi varphi | infty infin
    arcsin asin | arccos acos | arctan atan | and land wedge | or lor vee
""") | dict.fromkeys(("vert", "lvert", "rvert", "mid"), "|")
_PLAIN_SIGNS: Final = spellings("^ ** | le <= | ge >= | ne != <> | = == | approx ~= | ldots ...")
_DROPPED: Final = word_set("""
    boxed fbox left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle displaystyle textstyle
    limits nolimits rm bf it mathstrut strut therefore checkmark blacksquare
    tiny small normalsize large Large LARGE huge Huge
""")
_SPACES: Final = word_set(", ; : ! > quad qquad enspace thinspace space hspace") | {" "}
_TEXTS: Final = word_set("""
    text textbf textit textrm textsf texttt textnormal mbox mathrm mathbf mathit mathsf operatorname boldsymbol bm emph
    hbox pmb underline
""")
_TOKEN: Final = re.compile(
    r"(?P<number>(?:\d+(?:\.\d+|\.(?=\s*\\(?:overline|bar|dot)(?![a-z])|\(\d+\)))?|\.\d+|\.(?=\\(?:overline|bar|dot)(?![a-z]))))(?P<power_of_ten>[eE][+-]?\d+(?![\d.]*[A-Za-z_^(]))?"
    r"|\\(?P<command>[A-Za-z]+|.)|(?P<word>[A-Za-z]+)|(?P<sign>\*\*|<=|>=|!=|==|<>|~=|\.\.\.|\S)",
    re.DOTALL,
)
_NUMERAL: Final = re.compile(r"\d+(?:\.\d+)?")
_GROUPED: Final = re.compile(
    r"(?<![\d.,])\d{1,3}(?:(?P<gap>,|\{,\}|\\[,!;: ]|\\thinspace|~| )\d{3})(?:(?P=gap)\d{3})*(?![\d,]*\d)"
)
_BRACKETED_GROUPS: Final = re.compile(r"(?:[(\[]|\\\{)\s*-?\d{1,3}(?:,-?\d+)+\s*[)\]\\]")


@dataclass(frozen=True, slots=True)
class Token:
    """One sign, number, word, command or text.

    `kind` is `number` (text: decimal digits), `word` (letters), `command` (a name without its backslash), `text` (what
    stood in \\text{...} and the like) or `sign`.
    """

    kind: str
    text: str
    after_space: bool = False

    def is_sign(self, *signs: str) -> bool:
        return self.kind == "sign" and self.text in signs

    def is_command(self, *names: str) -> bool:
        return self.kind == "command" and self.text in names


def unwrapped(text: str) -> str:
    """`text` without what only highlights it: dollar signs, bold, code marks, boxes, a full stop."""
    while True:
        before = text = text.strip()
        for pattern in _WRAPPERS:
            if match := pattern.fullmatch(text):
                text = match["inner"].strip()
        for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                inner = text[len(opening) : -len(closing)]
                if (
                    opening not in inner.replace(r"\$", "")
                    and closing not in inner.replace(r"\$", "")
                    and not inner.endswith("\\")
                ):
                    text = inner
        for command in (*_TEXTS, "boxed", "fbox"):
            if text.startswith(f"\\{command}{{") and closing_brace(text, len(command) + 1) == len(text) - 1:
                text = text[len(command) + 2 : -1]
        text = text.removesuffix("\\\\")
        if text.endswith((".", ",", ";", ":")) and not text.endswith(("..", r"\,", r"\;", r"\:")):
            text = text[:-1]
        if text == before:
            return text


_WRAPPERS: Final = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\*\*(?P<inner>[^*]+)\*\*",
        r"\*(?P<inner>[^*]+)\*",
        r"__(?P<inner>[^_]+)__",
        r"_(?P<inner>[^_]+)_",
        r"'(?P<inner>[^']+)'",
        r"#+\s+(?P<inner>.+)",
        r"(?P<inner>[A-Za-z])\)",
        r"(?i:option|choice)\s+(?P<inner>\(?[A-Za-z]\)?)",
        r"`+(?P<inner>[^`]+)`+",
        r"\"(?P<inner>[^\"]+)\"",
        r"“(?P<inner>[^”]+)”",
        r"\((?P<inner>[A-Za-z]+)\)",
        r"<(?P<tag>b|i|strong|em|code)>(?P<inner>[^<]+)</(?P=tag)>",
        r"(?i:(?:so |thus |hence |therefore )?,? ?(?:(?:the |my )?(?:final |correct |right )?"
        r"(?:answer|result|value|solution)(?: is| equals)?(?::| =)?|it is|we (?:get|have|find|obtain)))"
        r"(?P<inner>[\s:$\\(*].+)",
        r"(?i:approximately|approx\.?|about|roughly|exactly|precisely)(?P<inner>\s.+)",
        r"(?:\\approx|≈|~|\\sim|=|:)(?P<inner>.+)",
    )
)


def closing_brace(text: str, opening: int) -> int:
    """Position of the brace that closes the one at `opening`; -1 for none."""
    depth, position = 0, opening
    while position < len(text):
        sign = text[position]
        if sign == "\\":
            position += 1
        elif sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return -1


def tokens(text: str) -> list[Token]:
    """The tokens of a text that was unwrapped.

    Raises:
        Unreadable: it is too long, or a \\text{ stays open.
    """
    if len(text) > LONGEST_FORMULA:
        raise Unreadable(f"it is longer than {LONGEST_FORMULA} characters")
    text = _one_spelling(text)
    found: list[Token] = []
    position, space = 0, False
    while position < len(text):
        if text[position].isspace() or (text[position] == "~" and not text.startswith("~=", position)):
            position, space = position + 1, True
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"{text[position : position + 10]!r} is not known")
        position = match.end()
        command = match["command"]
        if command in _TEXTS:
            end = closing_brace(text, start := _after_spaces(text, position))
            if not text.startswith("{", start) or end < 0:
                raise Unreadable(f"\\{command} has no braces that close")
            inner = text[start + 1 : end].strip()
            if inner[:1] in "+-" and _NUMERAL.fullmatch(inner[1:]):
                position = start  # \text{-5} is {-5}
                continue
            found.append(_text_token(command, inner, space))
            position = end + 1
        elif command in _SPACES:
            space = True
            continue
        elif command in ("color", "textcolor") and text.startswith("{", position):
            position = closing_brace(text, position) + 1 or len(text)
            continue
        elif command in _DROPPED:
            position += text.startswith(".", position)  # \left. and \right.
            continue
        else:
            found.append(_token(match, space))
        space = False
    return found


def _text_token(command: str, inner: str, space: bool) -> Token:
    if inner in (",", ";"):
        return Token("sign", inner, space)
    if _NUMERAL.fullmatch(inner):
        return Token("number", inner, space)
    inner = re.sub(r"\\[,;:! ]|~", " ", unwrapped(inner)).replace(r"\cdot", "*").replace(r"\$", "$")
    inner = " ".join(inner.split())
    single = len(inner) == 1 and inner.isalpha() and command not in ("text", "textrm", "mbox")
    return Token("word" if single else "text", inner, space)


def _token(match: re.Match[str], space: bool) -> Token:
    if match["number"]:
        return Token("number", match["number"] + (match["power_of_ten"] or ""), space)
    if match["word"]:
        return Token("word", match["word"], space)
    text = match["command"] or match["sign"]
    # \{ stays apart from the { that groups
    text = (_COMMANDS if match["command"] else _PLAIN_SIGNS).get(text, text)
    return Token("command" if text.isalpha() and len(text) > 1 else "sign", text, space)


def _after_spaces(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _one_spelling(text: str) -> str:
    """Unicode as LaTeX, numbers without the signs that group their digits, no dollar signs but those of money."""
    text = text.replace(r"\!", "")
    dollars = re.findall(r"(?<!\\)\$(?=(\s?\d)?)", text)
    if len(dollars) % 2 == 0 and not all(dollars):
        text = re.sub(r"(?<!\\)\$", " ", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣ]+", lambda found: "^{" + found[0].translate(_RAISED) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ]+", lambda found: "_{" + found[0].translate(_LOWERED) + "}", text)
    text = text.translate(_WIDE)
    text = re.sub("[" + "".join(_FRACTIONS) + "]", lambda found: _fraction(_FRACTIONS[found[0]]), text)
    text = re.sub(r"(\d)([\u0304\u0305])", r"\\overline{\1}", text)
    text = re.sub(r"\\overline\{(\d+)\}\\overline\{(\d+)\}", r"\\overline{\1\2}", text)
    text = "".join(_SIGNS.get(sign, sign) for sign in text)
    text = re.sub(r"(\d)\s*[xX]\s*10\s*(?=\^|\*\*)", r"\1*10", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3})", "", text).replace("{:}", ":")
    if re.search(r"\[\s*(?:\Z|\\cup|[,;])|(?:\A|\\cup|[=,;])\s*\]", text):
        text = re.sub(r"[\[\]]([^\[\]]+[,;][^\[\]]+)[\[\]]", _with_round_brackets, text)
    if not _BRACKETED_GROUPS.search(text):
        text = _GROUPED.sub(_without_gaps, text)
    return text


def _with_round_brackets(found: re.Match[str]) -> str:
    """An interval such as ]0, 1[ with round brackets for open ends."""
    whole, inner = found[0], found[1]
    return f"{'[' if whole[0] == '[' else '('}{inner}{']' if whole[-1] == ']' else ')'}"


def _without_gaps(found: re.Match[str]) -> str:
    """A number whose digits are in groups; but `1 159/280` is a mixed number."""
    under = re.match(r"\s*/\s*(\d+)", found.string[found.end() :])
    if found["gap"] == " " and under and 0 < int(found[0][-3:]) < int(under[1][:9]):
        return found[0]
    return re.sub(r"\D|\\thinspace", "", found[0])


def _fraction(digits: str) -> str:
    return f"\\frac{{{digits[0]}}}{{{digits[1]}}}"
