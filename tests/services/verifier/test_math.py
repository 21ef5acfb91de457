"""Mathematics: what counts as equal, which part of a reply is its answer, and that no text costs more than it may."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.errors import QuestionError
from services.contracts.judgement import Judgement
from services.contracts.questions.forms import check_question
from services.verifier.rewards import registry
from services.verifier.rewards.mathematics.values import MOST_BITS, Budget
from tests.services.verifier.builders import question

JUDGE = registry.built_in()["math"].function


def judge(answer: str, reply: str, truncated: bool = False) -> Judgement:
    return registry.checked(JUDGE(question("math", answer), reply, truncated))


EQUAL = {
    "sets of real numbers": [
        (r"(\sqrt2, 3)", r"x > \sqrt2 and x < 3"),
        ("[1/3, 2)", r"x < 2, x \ge \frac13"),
        ("x > 2", "x > 1 and x > 2"),
        ("x > 2", "x > 5 or x > 2"),
        ("(0, 2)", r"(0, 1) \cup [1, 2)"),
        (r"(-\infty, \infty)", "x > 0 or x < 1"),
        (r"(-\infty, 1) \cup (2, \infty)", r"(-\infty, 1) \text{ and } (2, \infty)"),
        (r"x > 1, x \ne 2", r"(1, 2) \cup (2, \infty)"),
        (r"x \ne 1, 2", r"\mathbb{R} \setminus \{1, 2\}"),
        (r"x \ne 1, 2", r"x \ne 2 \text{ and } x \ne 1"),
        ("x < 1 or x = 2", r"(-\infty, 1) \cup \{2\}"),
        ("x > 1 and x < 2 or x > 3", r"(1, 2) \cup (3, \infty)"),
        (r"\{x : x > 3\}", r"\{t \mid t > 3\}"),
        ("(0, 1)", "0 < t < 1"),
        ("[0, 1)", "[0, 1["),
        (r"(-\infty, 1) \cup (2, \infty)", r"]-\infty; 1[ \cup ]2; +\infty["),
    ],
    "vectors, and other spellings of the same": [
        ("(3, -4)", r"\begin{pmatrix} 3 \\ -4 \end{pmatrix}"),
        (r"\begin{bmatrix} 3 & -4 \end{bmatrix}", "(3, -4)"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "[[1, 2], [3, 4]]"),
        ("3/4", r"{1 + 2 \over 4}"),
        ("120", r"{10 \choose 3}"),
        ("3/11", "0.2727..."),
        ("7", r"\large 7"),
        ("1 159/280", "439/280"),
        ("10 000/3", "10000/3"),
        ("(7, -2.5)", r"(\mathbf{7}, \text{-2.5})"),
        ("9:30", "9{:}30"),
        ("1, 2, 3", r"1\text{, }2\text{ and }3"),
        ("9.8 m/s^2", "9.8 meters per second squared"),
        ("9 cm^3", "9 cm cubed"),
    ],
    "tiny and huge numbers": [
        (r"9.11 \times 10^{-31}", r"9.11\cdot 10^{-31}"),
        (r"9.11 \times 10^{-31}", "9.11e-31"),
        (r"9.11 \times 10^{-31}", "9.11 x 10^-31"),
        (r"9.11 \times 10^{-31}", "0.911 × 10⁻³⁰"),
        ("0.0000012", r"1.2 \times 10^{-6}"),
        ("1/2^{63}", "2^{-63}"),
        ("1/2^{63}", r"\left(\frac12\right)^{63}"),
        (r"\frac{1}{30!}", r"\frac{1}{30 \cdot 29!}"),
        (r"\frac{1}{900!}", "1/900!"),
        ("10^{400}", "10^{399} * 10"),
        ("2^{100}", "1267650600228229401496703205376"),
        ("-1.6e-19", r"-1.6 \times 10^{-19}"),
        ("7.0", "7"),
        ("0.50", "1/2"),
        ("5", "5.000"),
        ("0", "-0"),
        (r"\sqrt{2} \cdot 10^{-20}", r"\frac{2}{\sqrt 2} \cdot 10^{-20}"),
    ],
    "e-notation": [
        (r"6.02 \times 10^{23}", "6.02e23"),
        (r"6.02 \times 10^{23}", "6.02E+23"),
        ("1e-3", "0.001"),
        ("1e-3", "10^{-3}"),
        ("1e-05", "0.00001"),
        ("1e+22", "10^{22}"),
        ("2.5e3", "2500"),
        ("1.5E3", r"1{,}500"),
        ("-4e2", "-400"),
    ],
    "plain formulas, LaTeX, Unicode": [
        (r"\frac{\pi}{6}", "pi/6"),
        (r"\frac{\pi}{6}", "π/6"),
        (r"\pi", "PI"),
        (r"2\pi", "2*pi"),
        (r"2\pi r", "2πr"),
        (r"\ln 2", "ln(2)"),
        (r"\ln 2", "ln 2"),
        (r"\ln 2", "ln2"),
        (r"\log_2 3", "log_2(3)"),
        (r"\log_2 3", "log2(3)"),
        (r"\log_{2}{8}", "3"),
        (r"\frac{\ln 3}{\ln 2}", r"\log_2 3"),
        (r"\sin x", "sin(x)"),
        (r"\sin x", "sin x"),
        (r"\sin^2 x", "sin(x)^2"),
        (r"\sin^2 x", "(sin x)**2"),
        (r"\sin 2x", r"2\sin x\cos x"),
        (r"\sin^2 x", r"1 - \cos^2 x"),
        (r"\tan^{-1} 2", "arctan(2)"),
        (r"\arctan 2", "atan(2)"),
        (r"\frac{1}{2}\sin(2x)", "sin(2x)/2"),
        (r"\sin 30^\circ", "1/2"),
        (r"\cos\frac{\pi}{3}", "0.5"),
        ("x^2+1", "x**2 + 1"),
        ("x^2+1", "x²+1"),
        ("x^{10}", "x¹⁰"),
        ("x^{-1}", "x⁻¹"),
        ("x^{-1}", "1/x"),
        (r"\frac{1}{x}", "x^-1"),
        ("x_1 + x_2", "x₂ + x₁"),
        (r"e^{4}+3", "exp(4) + 3"),
        ("e^{-x}", "exp(-x)"),
        ("e^{-x}", r"\frac{1}{e^x}"),
        (r"\infty", "∞"),
        (r"\infty", "infinity"),
        (r"-\infty", "-∞"),
        (r"-\infty", "-inf"),
        (r"2\sqrt{3}", "2√3"),
        (r"2\sqrt{3}", "2sqrt(3)"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"2\sqrt{3}", r"\frac{6}{\sqrt 3}"),
        (r"2\sqrt{3}", "12^{1/2}"),
        (r"\sqrt[3]{5}", "∛5"),
        (r"\sqrt[3]{5}", "cbrt(5)"),
        (r"\sqrt[3]{5}", "5^(1/3)"),
        (r"\sqrt[3]{-8}", "-2"),
        (r"\sqrt{x^2}", "|x|"),
        (r"\frac{1+\sqrt5}{2}", "(1 + sqrt(5))/2"),
        (r"\frac{1+\sqrt5}{2}", "(1+√5)/2"),
        (r"\frac{1+\sqrt{5}}{2}", "0.5 + sqrt(5)/2"),
        (r"\sqrt{5+2\sqrt6}", r"\sqrt2+\sqrt3"),
        (r"\sqrt{2}+\sqrt{3}-\sqrt{5+2\sqrt{6}}", "0"),
        ("3 * 4", "12"),
        ("3 × 4", "12"),
        ("3 ÷ 4", r"\frac{3}{4}"),
        (r"3 \div 4", "0.75"),
        ("-3", "−3"),
        ("-3", "–3"),
        ("3 - 5", "3 − 5"),
        (r"\alpha + \beta", "β + α"),
        (r"\theta", "theta"),
        ("(x+1)^2", "x^2+2x+1"),
        ("(x-1)(x+1)", "x^2 - 1"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\frac{a}{b}+\frac{c}{d}", r"\frac{ad+bc}{bd}"),
        ("x^2 + C", "C + x**2"),
        (r"\ln|x| + C", "C + ln(|x|)"),
        (r"2\ln x", r"\ln x^2"),
        (r"\binom{5}{2}", "10"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        ("5!", "120"),
        ("(n+1)!", "(n+1) n!"),
        (r"\lfloor 2.5 \rfloor", "2"),
        (r"\lceil 2.5 \rceil", "3"),
        (r"\left|-3\right|", "3"),
        ("3+4i", "4i + 3"),
        ("(1+i)^2", "2i"),
        (r"e^{i\pi}", "-1"),
        (r"\frac12", "1/2"),
        (r"\dfrac{3}{4}", "3/4"),
        (r"\tfrac{3}{4}", "0.75"),
        (r"\frac{-3}{4}", r"-\frac{3}{4}"),
        (r"\left(\frac{1}{2}\right)^3", "1/8"),
        ("f(x) = 2x+1", "f(x) = 1 + 2x"),
        (r"\displaystyle \frac{1}{2}", r"\dfrac{1}{2}"),
        (r"\gcd(12, 18)", "6"),
        ("2x + 1", "2X + 1"),
        ("1/2 x", "x/2"),
        (r"\frac{1}{2x}", "1/(2x)"),
        ("1/2x", "1/2x"),
        (r"\boldsymbol{x}", "x"),
    ],
    "mixed numbers": [
        ("3.5", "3 1/2"),
        ("3 1/2", "3.5"),
        ("3 1/2", r"\frac{7}{2}"),
        (r"3\frac{1}{2}", "3 1/2"),
        (r"3 \frac{1}{2}", "7/2"),
        ("-1.5", "-1 1/2"),
        (r"\frac{3}{2}", "1½"),
        (r"\frac{3}{4}", "¾"),
        (r"2\frac{2}{3}", "8/3"),
        ("2 3/4 cups", "2.75 cups"),
    ],
    "repeating decimals": [
        (r"\frac{1}{3}", r"0.\overline{3}"),
        (r"\frac{1}{3}", r"0.\bar{3}"),
        (r"\frac{1}{3}", r"0.\dot{3}"),
        (r"\frac{1}{3}", "0.333..."),
        (r"\frac{1}{3}", "0.(3)"),
        (r"\frac{1}{3}", "0.3\u0305"),
        (r"\frac{1}{6}", r"0.1\overline{6}"),
        (r"\frac{4}{33}", r"0.\overline{12}"),
        (r"0.\overline{9}", "1"),
        (r"2.\overline{3}", "7/3"),
    ],
    "grouped digits": [
        ("1234", "1,234"),
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        (r"1\,234", "1234"),
        (r"10\,000", "10,000"),
        ("10 000", "10000"),
        ("12,345,678", "12345678"),
        ("12345678", r"12{,}345{,}678"),
        ("12345678.5", "12,345,678.5"),
        ("-1,234", "-1234"),
        (r"1\!,\!234", "1234"),
    ],
    "money": [
        (r"\$18.90", "18.90"),
        (r"\$18.90", "$18.90"),
        (r"\$18.90", r"\$18.9"),
        (r"\text{\$18.90}", "18.90"),
        ("$18", "18"),
        ("18", "$18"),
        ("$18", "$18$"),
        ("$18", r"$\$18$"),
        ("18", "18 dollars"),
        ("$18", "18 dollars"),
        ("18 dollars", r"\$18.00"),
        ("70000", "$70,000"),
        ("$70,000", "70,000 USD"),
        ("€5", "5 euros"),
        ("5", "5€"),
        ("-5", "-$5"),
        ("$5 million", "5,000,000"),
        ("$5 per hour", "$5/hour"),
    ],
    "units and words": [
        ("18", "18 apples"),
        ("18 apples", "18"),
        ("100", "100 mL"),
        ("100 mL", "100 ml"),
        ("3.5", "3.5 km"),
        ("3.5 km", "3.5 kilometers"),
        ("5 cm", "5cm"),
        ("5 cm", r"5\text{ cm}"),
        ("5 cm", r"5~\mathrm{cm}"),
        ("5 cm", "5 centimeters"),
        ("9.8", r"9.8 \text{ m/s}^2"),
        ("9.8 m/s^2", "9.8 m/s²"),
        ("9.8 m/s^2", r"9.8\ \mathrm{m/s^2}"),
        ("60 km/h", "60 km/h"),
        ("60 mph", "60 miles per hour"),
        ("12 cm^2", "12 square centimeters"),
        ("12 cm^2", r"12\text{ cm}^2"),
        ("12", "12 square units"),
        ("12", "12 cm³"),
        (r"2\sqrt{3}", r"2\sqrt{3} \text{ cm}"),
        (r"25\pi", r"25\pi \text{ square inches}"),
        ("6 ft", "6 feet"),
        ("3 hours", "3 hrs"),
        ("1 person", "1 people"),
        ("5000000", "5 million"),
        ("24", "2 dozen"),
        ("90^\\circ", "90"),
        ("90", "90°"),
        ("90^{\\circ}", "90 degrees"),
        ("45 degrees", "45^\\circ"),
        (r"25^\circ\text{C}", "25°C"),
        (r"\frac{\pi}{2}", r"\frac{\pi}{2}\text{ radians}"),
        ("18", r"18\text{ (apples)}"),
        ("12", "approximately 12"),
        ("12", r"\approx 12"),
        ("12", "The answer is 12"),
        ("12", "Answer: 12"),
        ("12", "12."),
    ],
    "percent": [
        (r"35\%", "35%"),
        (r"35\%", "35"),
        (r"35\%", "0.35"),
        ("35", r"35\%"),
        ("0.35", "35%"),
        ("35%", "35 percent"),
        (r"\frac{1}{4}", "25%"),
        ("12.5%", "1/8"),
    ],
    "wrappers": [
        ("58", "**58**"),
        ("58", "*58*"),
        ("58", "$58$"),
        ("58", "$$58$$"),
        ("58", r"\(58\)"),
        ("58", r"\[58\]"),
        ("58", "`58`"),
        ("58", r"\textbf{58}"),
        ("58", r"\mathbf{58}"),
        ("58", r"\text{58}"),
        ("58", r"\boxed{58}"),
        ("58", r"$\boxed{58}$"),
        ("58", r"**$58$**"),
        ("58", "<b>58</b>"),
        ("58", "\n58\n"),
        ("58", "(58)"),
        (r"\text{even}", "even"),
        ("even", r"\textbf{even}"),
        ("even", "**Even**."),
    ],
    "words, letters, choices": [
        ("Tuesday", "tuesday"),
        ("Tuesday", r"\text{Tuesday}"),
        ("no solution", r"\text{no solution}"),
        ("no solution", "No  solution."),
        ("yes", "Yes"),
        ("C", "C"),
        ("C", "(C)"),
        ("C", r"\text{C}"),
        ("C", r"\textbf{(C)}"),
        (r"\text{(C)}", "C"),
        ("ABC", "ABC"),
        ("ABC", r"\text{ABC}"),
        ("xy", "yx"),
        ("xyz", "zyx"),
        ("2ab", "2ba"),
        ("north-west", "North-West"),
        (r"\triangle ABC", "△ABC"),
        ("Alice and Bob", "Bob and Alice"),
    ],
    "bases": [
        ("1011_2", "1011_2"),
        ("1011_2", "1011_{2}"),
        ("1011_2", "(1011)_2"),
        ("1011_2", r"1011_{\text{two}}"),
        ("1011_2", "1011"),
        ("1011_2", "1011 base 2"),
        ("1A_{16}", "1a_{16}"),
        ("11", "1011_2"),
    ],
    "sequences": [
        (r"2, 4, \ldots, 2n", "2, 4, ..., 2n"),
        (r"2, 4, \ldots, 2n", "2,4,…,2n"),
        (r"2, 4, \ldots, 2n", r"2, 4, \dots, 2 n"),
        (r"\{1, 2, \ldots, n\}", "{1, 2, ..., n}"),
        (r"1, 3, 5, \ldots", r"1, 3, 5, \cdots"),
    ],
    "lists, sets, tuples, intervals": [
        ("1, 2, 3", "3, 1, 2"),
        ("1, 2", "1 and 2"),
        ("1, 2", "2 or 1"),
        ("1, 2", r"\{1, 2\}"),
        (r"\{1, 2, 3\}", "{3,1,2}"),
        (r"\{1, 2\}", r"\left\{2, 1\right\}"),
        (r"\{\frac12, \sqrt8\}", r"\{2\sqrt2, 0.5\}"),
        ("(1, 2)", r"\left(1, 2\right)"),
        ("(1,2)", "(1, 2)"),
        ("(1,234)", "(1, 234)"),
        ("(1, 2, 3)", r"\langle 1, 2, 3 \rangle"),
        ("[0, 1)", "[0,1)"),
        ("[0, 1)", r"0 \le x < 1"),
        (r"0 \le x < 1", "[0, 1)"),
        (r"0 \le x < 1", r"x \in [0, 1)"),
        (r"0 \le x < 1", "1 > x >= 0"),
        (r"(3, \infty)", "x > 3"),
        ("x > 3", r"(3, \infty)"),
        ("x > 3", "3 < x"),
        ("x > 3", r"\{x \mid x > 3\}"),
        (r"(-\infty, 1) \cup (2, \infty)", "x < 1 or x > 2"),
        (r"(-\infty, 1) \cup (2, \infty)", r"(2, ∞) ∪ (-∞, 1)"),
        (r"\mathbb{R} \setminus \{2\}", r"x \ne 2"),
        (r"x \in \{1, 2\}", "1, 2"),
        (r"\emptyset", "∅"),
        (r"\emptyset", r"\{\}"),
        ("[1/2, 0.75]", "[0.5, 3/4]"),
        (r"\pm 35", "35, -35"),
        (r"\pm 35", r"x = \pm 35"),
        (r"1 \pm \sqrt2", r"1 + \sqrt{2}, 1 - \sqrt{2}"),
        (r"\frac{1 \pm \sqrt5}{2}", r"\frac{1+\sqrt5}{2} \text{ and } \frac{1-\sqrt5}{2}"),
        (r"x=1, y=2", "y = 2, x = 1"),
        (r"x=1, y=2", "1, 2"),
        ("x = 2 or x = 3", "3, 2"),
    ],
    "matrices": [
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
        (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\begin{pmatrix} 0.5 \\ 3 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\left( \begin{matrix} 1 & 2 \end{matrix} \right)"),
    ],
    "equations": [
        ("x = 5", "5"),
        ("5", "x = 5"),
        ("x=5", "x = 5"),
        ("5", "x = 2 + 3 = 5"),
        ("7", "3 + 4 = 7"),
        (r"\frac13", r"x = \frac{1}{3} \approx 0.33"),
        ("y = 2x + 1", "2x + 1"),
        ("y = 2x + 1", "y - 2x = 1"),
        ("y = 2x + 1", "2x - y + 1 = 0"),
        ("5x - 2y + 9 = 0", "10x - 4y = -18"),
        (r"\frac{x^2}{9} + \frac{y^2}{5} = 1", "5x^2 + 9y^2 = 45"),
        ("x < 3", "3 > x"),
        ("2x < 6y", "x < 3y"),
        ("a_n = 2n", "2n"),
        ("Area = 5", "5"),
        ("7", "m + n = 7"),
        ("25", "a^2 + b^2 = 25"),
        ("3 + 4 = 7", "7"),
        ("(x, y) = (3, 4)", "x = 3, y = 4"),
        ("(3, 4)", "y = 4, x = 3"),
        ("|AB| = 5", "5"),
        (r"\angle ABC = 30^\circ", "30"),
    ],
    "ratios and times": [
        ("3:4", "3:4"),
        ("3:4", "6:8"),
        ("3:4", "3/4"),
        ("1:2:3", "2:4:6"),
        ("9:30", "9:30"),
    ],
    "rounding": [
        (r"\frac{1}{3}", "0.333333"),
        (r"\pi", "3.14159265"),
        (r"\sqrt 2", "1.41421356"),
        ("0.333333", "1/3"),
        ("2.718281828", "2.718282"),
        (r"10^{-20}\sqrt{2}", "1.41421356e-20"),
    ],
    "as written": [
        (r"\int_0^1 f(x)\,dx", r"\int_0^1 f(x) dx"),
        ("June 5", "June 5"),
        ("2 hours 30 minutes", "2 hours 30 minutes"),
        (r"9^{9^{9^{9}}}", "9^{9^{9^{9}}}"),
    ],
    "wording, notation and wrappers": [
        ("18", "The total is 18 dollars."),
        ("18", "It is 18."),
        ("18", "Total cost: $18"),
        ("18", "Total = 18"),
        ("18", r"The total cost is \$18"),
        ("5", "x is 5"),
        ("1/2", "The probability is 1/2"),
        ("1/2", r"The probability that A wins is \frac{1}{2}"),
        ("18", "= 18"),
        ("18", "Final answer: 18"),
        ("18", "$18$ dollars"),
        ("18", "eighteen"),
        ("5", "five"),
        ("21", "twenty-one"),
        ("0", "zero"),
        ("two", "2"),
        ("1/3", r".\overline{3}"),
        ("1/3", r"0.\bar3"),
        ("1/3", r"0.\overline{33}"),
        ("-1/3", r"-0.\overline{3}"),
        ("1/3", r"33\frac{1}{3}\%"),
        ("1/3", r"33.\overline{3}\%"),
        ("1/3", "0.333…"),
        ("1000000", "10^6"),
        ("1500", "1.5*10^3"),
        ("1500", "1.5·10³"),
        ("1500", "1.5x10^3"),
        ("1500", "1.5 X 10^3"),
        ("1500000", "1.5 million"),
        ("5", "+5"),
        ("-5", "-(5)"),
        ("1234.5", "1 234.5"),
        (r"\frac{\sqrt2}{2}", "sqrt(2)/2"),
        (r"\frac{\sqrt2}{2}", "sqrt2/2"),
        (r"\frac{\sqrt2}{2}", "√2/2"),
        (r"\frac{\sqrt2}{2}", "1/sqrt(2)"),
        ("e^{-x}", "e^(-x)"),
        (r"\sqrt{x}", "x^(1/2)"),
        ("x^2-1", "(x+1)(x-1)"),
        ("x^2+x", "x*(x+1)"),
        ("2x^3-5x", "2*x**3 - 5*x"),
        ("|x-2|", "abs(x-2)"),
        (r"\sin x\cos x", "sin(x)*cos(x)"),
        (r"\frac{\pi}{6}", "arcsin(1/2)"),
        (r"\frac{\pi}{6}", "asin(0.5)"),
        (r"\pi r^2", "pi*r**2"),
        (r"\pi r^2", "pi r^2"),
        (r"\pi r^2", "πr²"),
        (r"\frac{2\pi}{3}", "2pi/3"),
        (r"\frac{\pi}{2}+k\pi", "pi/2 + k*pi"),
        (r"x \ge 3", "x >= 3"),
        (r"x\ne 2", "x != 2"),
        (r"(-\infty, 3)", "(-oo, 3)"),
        (r"(-\infty, 3]", "(-inf, 3]"),
        (r"(-\infty,3)", "(−∞, 3)"),
        ("(0,1)", "x > 0 and x < 1"),
        ("(0,1)", "{x | 0 < x < 1}"),
        (r"(3,\infty)", "{x : x > 3}"),
        (r"(3,\infty)", r"\{x \in \mathbb{R} : x > 3\}"),
        ("5", "5 = x"),
        ("x = 5", "5 = x"),
        ("y=2x+1", "2x+1=y"),
        ("5", r"\therefore x = 5"),
        ("5", r"\text{The answer is } 5"),
        ("5", r"\text{Area} = 5"),
        ("5", r"\text{Total: } 5"),
        (r"\$18.90", r"18.90\$"),
        (r"\$18.90", "18.90$"),
        (r"\$18.90", "USD 18.90"),
        (r"\$18.90", "$ 18.90"),
        (r"\$18.90", r"\text{\$}18.90"),
        ("50", "Rs. 50"),
        (r"\$1{,}200", "$1,200"),
        (r"\$1{,}200", "1200 dollars"),
        ("B", "B)"),
        ("B", "(B)."),
        ("B", "**B**"),
        ("B", "Option B"),
        ("B", "Choice (B)"),
        ("1011_2", "1011₂"),
        (r"1+2+\cdots+n", "1 + 2 + ... + n"),
        (r"\sqrt{3}i", "sqrt(3)i"),
        (r"\sqrt{3}i", "i√3"),
        (r"60^\circ", "60 deg"),
        ("12", "12 units"),
        ("12", r"12 \text{ units}^2"),
        (r"12\pi", "12π cm²"),
        ("3", r"3 \text{ hours}"),
        ("3", "3hrs"),
        ("3", "3 h"),
        ("50", "50mph"),
        ("2/3", "2/3 cup"),
        ("2/3", r"\frac23 \text{ of the pie}"),
        ("7", "7"),
        ("72", "72 beats per minute"),
        ("120", "120 miles/hour"),
        ("25", "25 students"),
        ("25", "25 people in total"),
        ("14", "14 years old"),
        ("8", "8 inches long"),
        ("1/3", r"\frac{1}{3} \approx 0.333"),
        ("1/3", "1/3 ≈ 0.33"),
        (r"\sqrt2", "√2 ≈ 1.414"),
        (r"\frac{3}{4}", r"\frac{3}{4}\quad"),
        ("7", r"\color{red}{7}"),
        ("7", "{7}"),
        ("7", r"\left(7\right)"),
        ("7", r"\mathbf{x = 7}"),
        ("7", r"\textbf{Answer: }7"),
        ("7", r"\underline{7}"),
        ("7", r"\mathbf{\frac{14}{2}}"),
        ("7", "### 7"),
        ('7', '7\\\\'),
        ("7", r"\ 7"),
        ("7", "~7"),
        ("7", '"7"'),
        ("7", "'7'"),
        ("7", "_7_"),
        ("7", "<strong>7</strong>"),
        ("7", "[7]"),
        ("7", r"\{7\}"),
        ("7", r"7\,"),
        ("7", r"\, 7 \,"),
        ("7", "answer = 7"),
        ("7", "n = 7"),
        ("7", "n=7."),
        ("7", "$n=7$"),
        ("7", r"\(n=7\)"),
        ("7", r"$$\boxed{7}$$"),
        ("1/2", r"50\%"),
        (r"50\%", "1/2"),
        ("50%", "50"),
        ("x=3,y=4", "(3,4)"),
        ("(3,4)", "x=3, y=4"),
        ("(3,4)", "(x,y)=(3,4)"),
        ("1", r"\log_{10} 10"),
        ("3", r"\lg 1000"),
    ],
}  # fmt: skip
DIFFERENT = {
    "sets of real numbers": [
        ("(0, 1)", "x > 0 or x < 1"),
        ("(0, 1)", "x > 0 and y < 1"),
        ("x > 3", "y > 3"),
        ("0 < x < 2", "0 < y < 2"),
        (r"x \ne 2", r"y \ne 2"),
        ("x < 1 or x > 2", "y < 1 or y > 2"),
        (r"x \ne 1, x \ne 2", r"x \ne 3, x \ne 4"),
        (r"x \ne 1, 2", r"x \ne 1"),
        ("(0, 2)", r"(0, 1) \cup (1, 2)"),
        ("x < 1 or x > 2", r"(a, 1) \cup (2, b)"),
        ("[0, 1)", "]0, 1["),
        ("(1, 2), (3, 4)", r"(1, 2) \cup (3, 4)"),
        (r"\{x : x > 3\}", r"\{x : x < 3\}"),
    ],
    "vectors, and other spellings": [
        ("(3, -4)", r"\begin{pmatrix} -4 \\ 3 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "[[1, 3], [2, 4]]"),
        (r"\begin{pmatrix} 3 \\ -4 \end{pmatrix}", "[3, -4]"),
        ("4/3", r"{3 \over 4}"),
        ("81", "9 squared"),
        ("9 cm^2", "9 cm cubed"),
        ("3/11", "0.27..."),
    ],
    "tiny and huge numbers": [
        (r"9.11 \times 10^{-31}", r"1.67 \times 10^{-27}"),
        (r"9.11 \times 10^{-31}", r"9.12 \times 10^{-31}"),
        (r"-1.6 \times 10^{-19}", r"1.6 \times 10^{-19}"),
        (r"1.6 \times 10^{-19}", "0"),
        ("0", "1e-30"),
        ("0.0000012", "0.0000009"),
        ("0.0000012", "0.0000014"),
        ("0.0000012", "-0.0000012"),
        ("1/2^{63}", "1/2^{64}"),
        ("2^{63}", "2^{63}-1"),
        (r"\frac{1}{30!}", r"\frac{1}{31!}"),
        (r"\frac{1}{900!}", r"\frac{1}{903!}"),
        ("10^{400}", "10^{401}"),
        ("10^{400}", "10^{400}+1"),
        ("1234567.8", "1234567.9"),
        (r"\sqrt{2} \cdot 10^{-20}", r"\sqrt{3} \cdot 10^{-20}"),
        (r"1 + 10^{-50}", "1"),
        (r"\sqrt{2} + 10^{-60}", r"\sqrt{2}"),
        (r"10^{-31} x", r"2\cdot10^{-31} x"),
        (r"10^{10^{10}}", r"10^{10^{9}}"),
        ("100000000!", "100000001!"),
    ],
    "e-notation": [
        ("1e-3", "1e-4"),
        ("1e-3", "e-3"),
        ("1.6", "1.6e-5"),
        ("6.02e23", "6.02e22"),
        ("6.02e23", "6.02"),
        (r"2e^{3}", "2e3"),
        ("5e-05", "5e-5x"),
    ],
    "half-read answers": [
        ("1", "1 1/2"),
        ("1", "x**2 + 1"),
        ("2", "2√3"),
        ("2", "2x"),
        ("2", "2 3"),
        ("1", "1)"),
        ("1", "1 = 2"),
        ("5", "5 + "),
        ("3", "3 \\"),
        ("12", "1 2"),
        ("5", "5 plus 3"),
        ("5", "5 million"),
        ("5", "5 thousand dollars"),
        ("5", "5 squared"),
        ("5", "5 (or 6)"),
        ("5", "5?6"),
        ("5", "not 5"),
        ("5", "5 is wrong"),
        ("0.3", r"0.\overline{3}"),
        ("0", "0.333..."),
        ("3.14159", "3.14159..."),
        ("1.2", "1.2.3"),
        ("x", "x^2"),
        ("x^2", "x^2 +"),
        (r"\frac{1}{2}", r"\frac{1}{2"),
        (r"\sqrt{3}", r"\sqrt{3}5"),
        ("2", r"2\foo"),
        ("10", "10 % of 5"),
        ("1", "1_000"),
        ("1000", "1_000"),
        ("x/2", "1/2x"),
    ],
    "two guesses": [
        ("7", "6 and 7"),
        ("7", "6 or 7"),
        ("7", "7, 8"),
        ("7", "7; 8"),
        ("7", "7 or 8"),
        ("7", r"\{6, 7\}"),
        ("7", r"\pm 7"),
        ("7", "5 = 7"),
        ("7", "x = 5 = 7"),
        ("7", "x = 7 or x = 8"),
        ("7", "7/8"),
        ("125, 216", "216"),
        ("125, 216", "125, 216, 343"),
        (r"\pm 5", "5"),
    ],
    "letters and words": [
        ("BCA", "ABC"),
        ("ABC", "CAB"),
        (r"\text{ABC}", r"\text{CAB}"),
        ("ABC", "A"),
        ("listen", "silent"),
        ("Paris", "Pairs"),
        ("city = Paris", "city = Pairs"),
        ("city = Paris", "town = Paris"),
        ("north", "thorn"),
        ("odd", "dod"),
        ("no", "on"),
        ("pi", "ip"),
        ("pi", "p i"),
        ("inconsistent", "consistent"),
        ("C", "B"),
        ("C", "BC"),
        ("C", "A, C"),
        ("even", "odd"),
        ("no solution", "solution"),
        ("Tuesday", "Tuesday or Thursday"),
        (r"\triangle ABC", r"\triangle ACB"),
        (r"\overline{AB}", r"\overline{AC}"),
        ("x", "y"),
        ("x + y", "x + z"),
        ("x_1", "x_2"),
        ("f(x)", "g(x)"),
        ("f(x) = 2x + 1", "f(x) = 2x - 1"),
        ("aA", "a^2"),
    ],
    "bases": [
        ("1011_2", "1011_3"),
        ("1011_2", "1010_2"),
        ("1011_2", "11"),
        ("12_5", "12_7"),
        ("1011", "1011_2"),
        ("12_5", "12_{10}"),
        ("12_5", "19_5"),
    ],
    "sequences with dots": [
        (r"2, 4, \ldots, 2n", r"2, 6, \ldots, 2n"),
        (r"2, 4, \ldots, 2n", r"2, 4, \ldots, 3n"),
        (r"2, 4, \ldots, 2n", "2, 4, 2n"),
        (r"2, 4, \ldots, 2n", r"4, 2, \ldots, 2n"),
        (r"1, 3, 5, \ldots", r"1, 3, 6, \ldots"),
        (r"1, 3, 5, \ldots", "1, 3, 5"),
    ],
    "money, units, percent": [
        (r"\$18.90", "18.09"),
        ("$18", "18 euros"),
        ("$18", "18%"),
        ("5 cm", "5 m"),
        ("5 cm", "5 cm^2"),
        ("5 m", "5 m/s"),
        ("5 kg", "5 g"),
        ("18 apples", "18 pears"),
        ("18 apples", "17 apples"),
        ("5", "5 x"),
        ("5", "5m"),
        ("35%", "36%"),
        ("35%", "3.5"),
        ("0.35", "0.35%"),
        ("90^\\circ", "60^\\circ"),
        ("90^\\circ", r"90\text{ radians}"),
        ("25°C", "25°F"),
    ],
    "grouped digits": [
        ("10,000", "10"),
        ("10,000", "1,000"),
        ("1,2,3,4", "1234"),
        ("1234", "1,2,3,4"),
        ("1,234", "1, 234"),
        ("(1,234)", "1234"),
        ("1234", "12,34"),
        ("0.5", "0,5"),
    ],
    "lists, sets, tuples, intervals, matrices": [
        ("(1, 2)", "(2, 1)"),
        ("(0, 1)", "[0, 1]"),
        ("[0, 1)", "(0, 1]"),
        ("[0, 1)", r"0 \le x \le 1"),
        ("x > 3", r"x \ge 3"),
        ("x > 3", "x < 3"),
        ("x > 3", "y < 3"),
        ("x > 3", "3"),
        ("S = (2, 6)", "S = (2, 6.5)"),
        (r"\{1, 2\}", r"\{1, 2, 3\}"),
        (r"\{1, 2\}", "(1, 2)"),
        (r"(0,1) \cup (2,3)", "(0,1)"),
        (r"(0,1) \cup (2,3)", r"(0,1) \cap (2,3)"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        (r"\emptyset", "0"),
        ("x=1, y=2", "x=2, y=1"),
        ("x=1, y=2", "2, 1"),
    ],
    "formulas and equations": [
        ("x = 5", "y = 5"),
        ("5 = 6", "7 = 8"),
        ("1", r"\frac{x^2}{9} + \frac{y^2}{5} = 1"),
        ("0", "2x - y + 1 = 0"),
        ("10", "2x = 10"),
        ("(3, 4)", "y = 3, x = 4"),
        ("x = 5", "x = 6"),
        ("x^2 + y^2 = 1", "1"),
        ("5*x-2*y+9=0", "5x + 3y + 8=0"),
        (r"\frac{x^2}{9} + \frac{y^2}{5} = 1", r"\frac{x^2}{36} + \frac{y^2}{20} = 1"),
        ("x^2 + C", "x^2"),
        ("x^2", "x^2 + C"),
        (r"\sqrt{x^2}", "x"),
        (r"\ln 2", r"\log 2"),
        (r"\infty", r"-\infty"),
        (r"\sin x", r"\sin^2 x"),
        (r"\sin x", r"\cos x"),
        (r"\lfloor x \rfloor", "x"),
        ("(-1)^n", "1"),
        ("x^3", "3x"),
        (r"\frac{x}{y}", r"\frac{y}{x}"),
        ("i", "-i"),
        ("3+4i", "3-4i"),
        ("9:30", "3:10"),
        ("9:30", "9:35"),
        ("3:4", "4:3"),
        (r"\int_0^1 f(x)\,dx", r"\int_0^2 f(x)\,dx"),
        ("June 5", "June 6"),
        ("June 5", "5"),
    ],
    "rounding": [
        (r"\frac{1}{3}", "0.33"),
        (r"\frac{1}{3}", "0.33333"),
        (r"\frac{1}{3}", "0.333334"),
        (r"\frac{2}{3}", "0.666666"),
        (r"\pi", "3.14"),
        (r"\pi", "22/7"),
        (r"\pi", "3.1415927x"),
        ("2", "1.999999"),
        ("1", "1.000001"),
        ("123456.7", "123457"),
    ],
    "wording, notation and wrappers": [
        ("5", "5 ≈ 7"),
        ("5", "7 ≈ 5"),
        ("5", "It is not 5"),
        ("5", "The answer is not 5"),
        ("5", "x is not 5"),
        ("5", "The answer is 4 or 5"),
        ("5", "It is 5 or 6"),
        ("5", "= 5 = 6"),
        ("5", '5\n7'),
        ("5", "5 | 7"),
        ("5", "5 vs 7"),
        ("5", "5 5 7"),
        ("5", "5, 7"),
        ("5", "either 5"),
        ("5", "five or six"),
        ("5", "fifty"),
        ("B", "C)"),
        ("B", "Option C"),
        ("B", "Options B and C"),
        ("B", "A or B"),
        ("18", "USD 19"),
        ("(0,1)", "x > 0 or x > 1"),
        ("(0,1)", "x>1 and x<0"),
        ("1/3", r"33\%"),
        ("5", "-5"),
        ("5", "5i"),
        ("5", "5e"),
        ("5", r"5\pi"),
        ("5", "5^2"),
        ("5", "5_2"),
        ("5", "5%5"),
        ("5", "6%"),
        ("x=3,y=4", "(4,3)"),
        ("(3,4)", "x=4, y=3"),
        ("7", "7 = 8"),
        ("7", r"\color{red}{8}"),
        ("25", "25 or so students"),
        ("0.1", "1e-2"),
        ("x", "x = 5"),
        ("5", "x = y = 5 or 6"),
    ],
}  # fmt: skip


def cases(table: dict[str, list[tuple[str, str]]]) -> list[object]:
    return [pytest.param(pairs, id=kind) for kind, pairs in table.items()]


@pytest.mark.parametrize("pairs", cases(EQUAL))
def test_what_counts_as_equal(pairs: list[tuple[str, str]]) -> None:
    for reference, answer in pairs:
        for reply in (f"<answer>{answer}</answer>", f"So we get \\boxed{{{answer}}}."):
            found = judge(reference, reply)
            assert (found.reward, found.correct, found.feedback) == (1.0, True, ""), (reference, reply)


@pytest.mark.parametrize("pairs", cases(DIFFERENT))
def test_what_does_not_count_as_equal(pairs: list[tuple[str, str]]) -> None:
    for reference, answer in pairs:
        for reply in (f"<answer>{answer}</answer>", f"So we get \\boxed{{{answer}}}."):
            found = judge(reference, reply)
            assert (found.reward, found.correct) == (0.0, False), (reference, reply)
            assert found.feedback, (reference, reply)


REPLIES: list[tuple[str, list[str], list[str]]] = [
    # a reply, references that it is right for, and references that it is wrong for
    ("It is $0.5$.", ["1/2"], []),
    ("The share is 35%.", ["35%"], []),
    ("It is 1.6e-5.", ["0.000016"], ["1.6", "5"]),
    ("The final answer is $5$. I hope it is correct.", ["5"], []),
    (r"The final answer is $5$. I hope it is correct. \boxed{7}", ["7"], ["5"]),
    (r"First \boxed{5}. On reflection the answer is \boxed{", [], ["5"]),
    (r"First \boxed{5}. On reflection \boxed{\frac{7}{2}", [], ["5", "7", "7/2", "2"]),
    (r"\boxed{5} and \boxed{7}", ["5, 7"], ["5", "7"]),
    (r"$\boxed{5}$, $\boxed{7}$, and $\boxed{9}$", ["5, 7, 9"], ["5", "7", "9"]),
    (r"\boxed{5}. No: \boxed{7}", ["7"], ["5", "5, 7"]),
    ("Hence \\boxed{612}., as said.\n\n**Final Answer**\n\\boxed{612}", ["612"], []),
    (r"\boxed{\boxed{5}}", ["5"], []),
    (r"\boxed{x = \boxed{5}}", ["5"], []),
    (r"\fbox{5}", ["5"], []),
    (r"\boxed 5", ["5"], []),
    (r"\boxed{}", [], ["5"]),
    ("<answer>5</answer> <answer>7</answer>", ["7"], ["5"]),
    ("<answer>5</answer> <answer>7", [], ["5", "7"]),
    ("<answer>5", [], ["5"]),
    ("5</answer>", [], ["5"]),
    (r"<answer>The answer is \boxed{18}.</answer>", ["18"], []),
    (r"<answer>so \boxed{18</answer>", [], ["18"]),
    (r"\boxed{7} <answer>5</answer> or \boxed{9}", ["5"], ["7", "9"]),
    ("It is 5 or 7.", ["5, 7"], ["5", "7"]),
    ("So 3 + 4 = 7.", ["7"], ["3", "4"]),
    ("There are 5 apples and 3 pears, so 8 fruits.", ["8"], ["5", "3"]),
    ("#### 18", ["18"], []),
    ("She pays $18.90.", ["$18.90"], ["18"]),
    ("She pays $5 and gets $7 back", ["7"], ["5"]),
    ("The answer is 5, not 7.", ["5"], ["7"]),
    ("The answer is 1 1/2.", ["3/2"], ["1", "2"]),
    ("It equals 2√3.", [r"2\sqrt3"], ["2", "3"]),
    ("It equals 2 million.", ["2000000"], ["2"]),
    ("It is 3 squared.", [], ["3"]),
    ("Answer: **A**", ["A"], ["B"]),
    ("**Final Answer:** $x = 5$", ["5"], []),
    ("The answer is Tuesday.", ["Tuesday"], []),
    ("The answer is not Tuesday.", [], ["Tuesday"]),
    *(
        (f"{words} {number}.", ["41"] if number.endswith("41") else [], ["42"])
        for words in ("The answer is", "So the total is", "It", "It can")
        for number in (
            *("not 42", "at most $42$", "no more than 42", "less than 42", "isn't equal to 42", "never 42", "above 42"),
            "not 42 but 41",
        )
    ),
    ("The answer is over here: 42", ["42"], []),
    ("The final answer is\n\\[ \\frac{1}{2} \\]", ["0.5"], []),
    ("Thus $x = 2$ or $x = 3$.", ["2, 3"], ["2", "3"]),
    ("We get 1,234.", ["1234"], ["1", "234"]),
    ("The answer to the question is 12.", ["12"], []),
    ("step 1. do this\nstep 2. do that\nResult 17", ["17"], ["1", "2"]),
    ("The interval is [0, 1).", ["[0,1)"], ["0", "1"]),
    ("**18 apples**", ["18"], []),
    ("**Answer: 5**", ["5"], []),
    ("So\n\n**x = 5**.", ["5"], []),
    (r"Therefore, 5\text{ cm}", ["5"], []),
    ("It is x**2 + 1", ["x^2+1"], ["2", "1"]),
    ("no idea", [], ["42"]),
    ("", [], ["42"]),
]


def test_the_part_of_a_reply_that_is_its_answer() -> None:
    for reply, right, wrong in REPLIES:
        for reference in (*right, *wrong):
            assert judge(reference, reply).correct == (reference in right), (reply, reference)


@pytest.mark.parametrize(
    "text", ["", "  ", "$$", "?", "2 +", "5 =", "x^", r"\frac{1}{", r"\sqrt{", "(1, 2", r"\boxed{}"]
)
def test_an_incomplete_reference_is_rejected(text: str) -> None:
    for check in (check_question, lambda asked: JUDGE(asked, f"<answer>{text}</answer>", False)):
        with pytest.raises(QuestionError, match=r"missing or empty|cannot be read as a formula") as caught:
            check(question("math", text))
        assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        r"\int_0^1 x\,dx",
        r"\sum_{k=1}^n k",
        r"\mathbb{R}^+",
        r"x \equiv 3 \pmod 7",
        "no solution",
        r"P(A|B) = \frac12",
        "3rd",
    ],
)
def test_a_reference_in_words_or_other_notation_equals_the_same_text(text: str) -> None:
    check_question(question("math", text))
    assert judge(text, f"<answer>{text}</answer>").correct
    assert not judge(text, "<answer>1</answer>").correct


COSTLY = [
    *(
        "9^{9^{9^{9}}}",
        "10**10**10",
        "2^{1000000000}",
        "100000000!",
        "9999!",
        "(x!)!",
        r"\sqrt[999]{3^{80000}}",
        "1e99999",
    ),
    *("2^{130000}*3^{80000}", r"\frac{1}{9999!}+\sqrt{2}", "e^{e^{e^{e^{e}}}}", r"\sin(10^{100000})", "x^{x^{x^{x}}}"),
    *(
        "(" * 900 + "1" + ")" * 900,
        r"\sqrt{" * 300 + "2" + "}" * 300,
        "-" * 1990 + "1",
        "1/" * 900 + "2",
        "1+" * 990 + "1",
    ),
    *(
        "5" + "!" * 500,
        "2" + "^{2" * 300 + "}" * 300,
        r"\pm 1 " * 100,
        "½" * 500,
        "1" * 1999,
        "0." + "1" * 990,
        "|x" * 300,
    ),
    *(r"\{" + ",".join(map(str, range(500))) + r"\}", "=".join("x" * 400), r"\binom{10000}{5000}", "(x+1)^{100000}"),
    *("1/0", "0^0", r"\infty - \infty", r"\ln 0", r"\log_1 2", r"\arcsin 2", "x/0", "\x00", "\ud800"),
]


def test_costly_values_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by count, not by time: no comparison computes more bits than its budget."""
    least = [0]
    spend = Budget.spend

    def counted(self: Budget, bits: int) -> None:
        assert bits <= MOST_BITS * 8
        spend(self, bits)
        least[0] = min(least[0], self.left)

    monkeypatch.setattr(Budget, "spend", counted)
    for text in COSTLY:
        for reference in ("5", r"x + \sqrt{2}", r"\{1, 2\}"):
            assert not judge(reference, f"<answer>{text}</answer>").correct, text
        assert judge("5", f"<answer>{text}</answer> <answer>5</answer>").correct
    assert least[0] == 0


ALPHABET = r"""
    \frac { } ( ) [ ] \{ \} , ; : | + - * / ^ _ ! % = < > \le \in \cup \pm \sqrt \sin \ln \pi \infty \ldots \text{ & \\
    \begin{pmatrix} \end{pmatrix} $ \$ x y e i f 0 1 2 10 0.5 1e9 cm apples and or ² √ ½ … \overline \left \right . '
    \boxed{ <answer> </answer>
"""
SIGNS = st.sampled_from(ALPHABET.split())


@given(left=st.lists(SIGNS, max_size=12), right=st.lists(SIGNS, max_size=12), space=st.sampled_from(["", " "]))
def test_no_text_raises_and_every_answer_equals_itself(left: list[str], right: list[str], space: str) -> None:
    reference, reply = space.join(left), space.join(right)
    try:
        check_question(question("math", reference))
    except QuestionError:
        with pytest.raises(QuestionError):
            judge(reference, reply)
        return
    found = judge(reference, reply)
    assert found.correct == (found.reward == 1.0)
    if not any(sign in reference for sign in (r"\boxed{", "<answer>", "</answer>")):
        assert judge(reference, f"<answer>{reference}</answer>").correct


def ways_to_write(value: Fraction) -> list[str]:
    """Spellings of a rational number that can stand alone, in a list, in a tuple and as the end of an interval."""
    over, under = value.numerator, value.denominator
    sign, size = "-" if value < 0 else "", abs(over)
    ways = [
        *(
            f"{over}/{under}",
            f"{3 * over}/{3 * under}",
            rf"\frac{{{over}}}{{{under}}}",
            rf"{sign}\dfrac{{{size}}}{{{under}}}",
        ),
        *(rf"\frac{{{-over}}}{{{-under}}}", rf"{{{over} \over {under}}}", rf"\left({over}/{under}\right)"),
        *(rf"{over} \div {under}", rf"{over} \cdot \frac{{1}}{{{under}}}", f"{'−' if sign else ''}{size}/{under}"),
    ]
    if under == 1:
        ways += [
            f"{over}",
            f"{over}.00",
            rf"\text{{{over}}}",
            rf"{over - 9}+9",
            rf"{sign}\sqrt{{{over * over}}}",
            f"{over}e0",
        ]
    elif value > 1:
        ways += [f"{over // under} {over % under}/{under}", rf"{over // under}\frac{{{over % under}}}{{{under}}}"]
    if 1000 % under == 0:
        ways.append(f"{sign}{float(abs(value)):.3f}")
    return ways


NUMBERS = st.builds(Fraction, st.integers(-9999, 9999), st.sampled_from([1, 1, 2, 3, 7, 8, 40, 97]))
STEPS = st.sampled_from([Fraction(1), Fraction(-1), Fraction(1, 7), Fraction(1, 1000), Fraction(5000)])


def both_ways(one: str, other: str) -> set[bool]:
    """The verdicts on two texts, each in turn the reference."""
    return {judge(one, rf"\boxed{{{other}}}").correct, judge(other, f"<answer>{one}</answer>").correct}


@settings(deadline=None, max_examples=40)
@given(value=NUMBERS, step=STEPS, data=st.data())
def test_a_number_is_itself_however_it_is_written_and_no_other(
    value: Fraction, step: Fraction, data: st.DataObject
) -> None:
    one, other = (data.draw(st.sampled_from(ways_to_write(value))) for _ in range(2))
    assert both_ways(one, other) == {True}
    assert both_ways(one, data.draw(st.sampled_from(ways_to_write(value + step)))) == {False}


@settings(deadline=None, max_examples=40)
@given(values=st.lists(NUMBERS, min_size=2, max_size=4, unique=True), step=STEPS, data=st.data())
def test_order_counts_in_tuples_and_not_in_lists(values: list[Fraction], step: Fraction, data: st.DataObject) -> None:
    def written(numbers: list[Fraction]) -> str:
        return ", ".join(data.draw(st.sampled_from(ways_to_write(number))) for number in numbers)

    turned = values[::-1]
    assert both_ways(written(values), written(turned)) == {True}
    assert both_ways(written(values), rf"\{{{written(turned)}\}}") == {True}
    assert both_ways(f"({written(values)})", f"({written(values)})") == {True}
    assert both_ways(f"({written(values)})", f"({written(turned)})") == {False}
    assert both_ways(written(values), written([*values, max(values) + 1])) == {False}
    assert both_ways(f"({written(values)})", f"({written([*values[:-1], values[-1] + step])})") == {False}


def ways_to_bound(low: str, low_sign: str, high: str, high_sign: str) -> list[str]:
    opening, closing = "[" if low_sign == r"\le" else "(", "]" if high_sign == r"\le" else ")"
    interval = f"{opening}{low}, {high}{closing}"
    return [
        *(interval, rf"x \in {interval}", f"{low} {low_sign} x {high_sign} {high}"),
        *(f"x {high_sign} {high} and {low} {low_sign} x", rf"\{{x : {low} {low_sign} x {high_sign} {high}\}}"),
    ]


@settings(deadline=None, max_examples=40)
@given(low=NUMBERS, width=STEPS.map(abs), data=st.data())
def test_an_interval_is_itself_however_it_is_written_and_its_ends_count(
    low: Fraction, width: Fraction, data: st.DataObject
) -> None:
    def written(end: Fraction) -> str:
        return data.draw(st.sampled_from(ways_to_write(end)))

    signs = st.sampled_from(["<", r"\le"])
    one, other = data.draw(signs), data.draw(signs)
    ends = [(written(low), written(low + width)) for _ in range(4)]
    ways = [ways_to_bound(first, one, second, other) for first, second in ends[:2]]
    reference, answer = (data.draw(st.sampled_from(way)) for way in ways)
    assert both_ways(reference, answer) == {True}
    closed = "<" if one == r"\le" else r"\le"
    assert both_ways(reference, data.draw(st.sampled_from(ways_to_bound(ends[2][0], closed, ends[2][1], other)))) == {
        False
    }
    wider = ways_to_bound(written(low - 1), one, ends[3][1], other)
    assert both_ways(reference, data.draw(st.sampled_from(wider))) == {False}
