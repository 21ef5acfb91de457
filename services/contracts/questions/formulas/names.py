"""Names with a meaning of their own: functions and constants."""

from __future__ import annotations

from typing import Final

from services.contracts.questions.formulas.spellings import spellings, word_set
from services.contracts.questions.formulas.words import Token

TRIGONOMETRIC: Final = ("sin", "cos", "tan", "cot", "sec", "csc")
HYPERBOLIC: Final = tuple(f"{name}h" for name in TRIGONOMETRIC)
FUNCTIONS: Final = (
    frozenset((*TRIGONOMETRIC, *HYPERBOLIC))
    | frozenset(f"arc{name}" for name in (*TRIGONOMETRIC, *HYPERBOLIC))
    | word_set("exp ln log lg abs floor ceil gcd lcm max min sqrt cbrt factorial sgn")
)
FUNCTION_SPELLINGS: Final = spellings("""
    arcsin asin | arccos acos | arctan atan | arcsinh arsinh asinh | arccosh arcosh acosh | arctanh artanh atanh
    ceil ceiling | csc cosec | sgn sign
""")
CONSTANTS: Final = spellings("inf infty infinity Infinity oo | pi Pi PI") | {"pi": "pi", "inf": "inf"}
GREEK: Final = word_set("""
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega
    Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar
""")

_NUMBERS: Final = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""
_SMALL: Final = _NUMBERS.split()[:20]
_TENS: Final = _NUMBERS.split()[20:]


def number_of_word(word: str) -> int | None:
    """The number that `seven` or `twenty-one` says; None for other words."""
    tens, hyphen, ones = word.lower().partition("-")
    if tens in _SMALL and not hyphen:
        return _SMALL.index(tens)
    if tens in _TENS and (not hyphen or ones in _SMALL[1:10]):
        return 20 + 10 * _TENS.index(tens) + (_SMALL.index(ones) if hyphen else 0)
    return None


def is_special(token: Token) -> bool:
    """Whether a word is the name of a function, a constant or a Greek letter."""
    text = token.text
    return text in FUNCTIONS or text in FUNCTION_SPELLINGS or text in CONSTANTS or text in GREEK
