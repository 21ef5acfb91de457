"""Names with a meaning of their own: functions and constants."""

from __future__ import annotations

from typing import Final

from services.contracts.formulas.spellings import spellings, word_set
from services.contracts.formulas.words import Token

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


def is_special(token: Token) -> bool:
    """Whether a word is the name of a function, a constant or a Greek letter."""
    text = token.text
    return text in FUNCTIONS or text in FUNCTION_SPELLINGS or text in CONSTANTS or text in GREEK
