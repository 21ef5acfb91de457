"""What may follow a number: units, and words that count (`18 dollars`, `3.5 km`, `5 million`)."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from services.contracts.questions.formulas.spellings import spellings, word_set

MULTIPLIERS: Final = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9} | {
    "trillion": 10**12
}
CURRENCIES: Final = spellings("dollar $ | euro € | pound £ | yen ¥ | rupee ₹ | ruble ₽ | won ₩ | dong ₫")
PERCENT: Final = "percent"
DEGREE: Final = "degree"

_LONG: Final = spellings("""
    nanometer nm | millimeter mm millimetre | centimeter cm centimetre | decimeter dm | meter m metre
    kilometer km kilometre | inch in inches | foot ft feet | yard yd | mile mi | hectare ha hectares
    milligram mg | gram g | kilogram kg | pound lb lbs gbp GBP | ounce oz | mole mol moles
    milliliter ml mL millilitre | liter l L litre | millisecond ms | second s sec secs | minute min mins
    hour h hr hrs | year yr yrs | am am | pm pm | mile/hour mph | kilometer/hour kph kmh
    dollar usd USD bucks | euro eur EUR | cent cents | penny pennies | rupee rs Rs | percent percentage pct
    degree deg | radian rad | newton N | joule J | kilojoule kJ | watt W | kilowatt kW | volt V | ampere A
    kelvin K | hertz Hz | kilohertz kHz | megahertz MHz | pascal Pa | kilopascal kPa | coulomb C
    electronvolt eV | ohm Omega | person people persons | man men | woman women | child children | half halves
    square sq | cubic cu
""")
_KNOWN: Final = frozenset(_LONG) | frozenset(_LONG.values())
_NO_UNITS: Final = word_set("""
    and or not no nor but plus minus times over divided by squared cubed to through until than more less most least
    if when where is are was were be equals equal approximately about except without maybe perhaps probably half third
    thirds quarter quarters fifth fifths sixth sixths eighth eighths tenth tenths hundredth hundredths thousandth
    thousandths point root factorial modulo mod base because since then so answer either neither both hundreds
    thousands millions dozens for all instead actually wait one two three four five six seven eight nine ten eleven
    twelve twenty thirty forty fifty
""")
_SILENT: Final = word_set("* ( ) ^ of the each unit units total")
_MOST_WORDS: Final = 5


def is_known(word: str, after_space: bool) -> bool:
    """Whether `word` after a number is a unit, not a product of variables. One letter needs a space before it."""
    if len(word) == 1:
        return after_space and word in _KNOWN
    return word in _KNOWN or word.lower() in _KNOWN or _singular(word.lower()) in _KNOWN


def unit(text: str) -> str | None:
    """A unit in one spelling, factors sorted; an empty text for units without meaning; None if it is not a unit."""
    text = re.sub(r"\b([AaPp])\s?\.\s?([Mm])\b\.?", r"\1\2", text).replace("{", "").replace("}", "")
    words = re.findall(r"[A-Za-z]+|\^|-?\d+|[/*()$€£¥%]", text)
    if not words or re.sub(r"[\sA-Za-z^\d/*()$€£¥%-]", "", text) or sum(word.isalpha() for word in words) > _MOST_WORDS:
        return None
    powers: dict[str, int] = {}
    sign, pending, last = 1, 1, ""
    for position, word in enumerate(words):
        if word.lower() in ("square", "sq", "cubic", "cu"):
            pending = 2 if word.lower() in ("square", "sq") else 3
        elif word == "/" or (word.lower() in ("per", "a", "an") and last and word != "A"):
            sign = -1
        elif word.lower() in _SILENT:
            continue
        elif last and word.lower() in ("squared", "cubed"):
            powers[last] += (1 if word.lower() == "squared" else 2) * (1 if powers[last] > 0 else -1)
        elif word.lstrip("-").isdigit():
            if position == 0 or words[position - 1] != "^" or abs(int(word)) > 9:
                return None
            if not last:  # `units^2`
                continue
            powers[last] += (int(word) - 1) * (1 if powers[last] > 0 else -1)
        else:
            last = _name(word)
            if last in _NO_UNITS or word.lower() in _NO_UNITS:
                return None
            for part in last.split("/"):
                powers[part] = powers.get(part, 0) + sign * pending
                last, pending, sign = part, 1, -1 if "/" in _name(word) else sign
    return " ".join(f"{name}^{power}" for name, power in sorted(powers.items()) if power)


def is_currency(text: str) -> bool:
    """Whether a sign or a capital word before a number is a currency."""
    return text in CURRENCIES or text in ("USD", "EUR", "GBP", "Rs")


def multiplier(word: str) -> Fraction | None:
    """What `million` and the like multiply by; None for other words."""
    found = MULTIPLIERS.get(word.lower())
    return None if found is None else Fraction(found)


def agree(reference: str, answer: str) -> bool:
    """Whether two units do not contradict each other: a unit that one side leaves out does not."""
    if not reference or not answer or reference == answer:
        return True
    first, second = set(reference.split()), set(answer.split())
    extra = first ^ second
    return (first < second or second < first) and not any(name.partition("^")[0] in _KNOWN for name in extra)


def _name(word: str) -> str:
    if word in CURRENCIES:
        return CURRENCIES[word]
    if word == "%":
        return PERCENT
    name = word if len(word) == 1 else word.lower()
    return _LONG.get(word, _LONG.get(name, _LONG.get(_singular(name), _singular(name))))


def _singular(name: str) -> str:
    if name in _LONG or len(name) < 4:
        return name
    if name.endswith(("ches", "shes", "xes", "sses")):
        return name[:-2]
    if name.endswith("ies") and len(name) > 4:
        return name[:-3] + "y"
    return name[:-1] if name.endswith("s") and not name.endswith(("ss", "us", "is")) else name
