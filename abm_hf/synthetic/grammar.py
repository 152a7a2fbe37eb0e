"""A probabilistic grammar of school and university mathematics over the 110 tokens of CROHME.

Expressions come in the field's token form and are well-formed. The weights were tuned by hand until lengths, tokens
and structures were distributed much as in the CROHME training labels; rare tokens are more frequent here than there,
so that a model sees enough of each. No label is copied: what is drawn are formulas of the same *kinds* (polynomials,
identities, limits, arithmetic, sequences, quantified statements, lone symbols).
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np

#: Target length of an expression at given quantiles, in tokens (between them linear).
LENGTH_QUANTILES = (0.0, 0.05, 0.09, 0.14, 0.18, 0.235, 0.28, 0.364, 0.5, 0.62, 0.75, 0.90, 0.95, 0.99, 1.0)
LENGTHS = (1.0, 2.2, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0, 13.5, 18.5, 24.0, 34.0, 40.0, 57.0, 80.0)

Tokens = list[str]


class Table:
    """Items with weights, to be drawn by one uniform number."""

    def __init__(self, weights: Mapping[str, float]):
        self.items = tuple(weights)
        self.cumulative = tuple(accumulate(weights.values()))

    def draw(self, uniform: float) -> str:
        return self.items[bisect_left(self.cumulative, uniform * self.cumulative[-1])]


def _weights(text: str) -> dict[str, float]:
    """`"x:5 a:2.5"` -> weights; an item without a colon weighs 1."""
    pairs = (item.rpartition(":") if ":" in item else (item, ":", "1") for item in text.split())
    return {name: float(weight) for name, _, weight in pairs}


_LATIN = _weights(
    "x:50 a:22 n:19 y:18 b:15 z:11 c:9 t:7 k:6 p:5.5 r:5 m:5 i:4 u:3.5 q:3.5 v:3.2 j:2.4 d:3 e:3 f:3 g:3 h:3 s:2.7 "
    "w:2 l:1.8 o:1.6 X:3 A:3 B:2.8 C:3 R:2 F:2 E:1.8 L:1.7 N:1.7 S:1.6 Y:1.5 P:1.5 V:1.5 H:1.4 M:1.4 T:1.4 G:1.3 I:1.2"
)
_GREEK = _weights(r"\theta:10 \pi:8 \alpha:8 \beta:6 \gamma:2.5 \phi:2.5 \sigma:2 \mu:1.6 \lambda:1.4 \Delta:1.5")
LETTER = Table({**_LATIN, **{token: weight * 0.45 for token, weight in _GREEK.items()}})
ANGLE = Table(_weights(r"x:6 \theta:7 \alpha:4 \beta:3 y:2 A:2 B:1 C:1 \phi:2 a:1 b:1 t:1.5 z:1 \gamma:1 u:.7"))
DIGIT = Table(_weights("1:24 2:24 3:12 4:9 5:6.5 6:5.5 7:5 8:5 9:5 0:8"))
SMALL = Table(_weights("2:40 3:11 n:7 4:5 1:4 5:3 x:2.5 6:2 k:1 i:1 t:1 m:1 8:.7 7:.7 0:.5 9:.5"))
ROOT_INDEX = Table(_weights("3:10 n:5 x:2 4:2 5:2 k:1 m:1 6:.7 7:.4 8:.4 9:.4"))
RELATION = Table(_weights(r"=:62 \leq:6 \geq:4.5 <:4 >:3 \neq:4 \rightarrow:2.5 \in:.6"))
PLUS = Table(_weights(r"+:52 -:38 \pm:1.6 \times:2.6 \div:.9 \cdot:1.6 /:1.0"))
NUMERIC = Table(_weights(r"+:30 -:24 \times:22 \div:10 /:9 \cdot:2 \pm:2"))
FUNCTION = Table(_weights(r"\sin:30 \cos:24 \tan:11 \log:13"))
INDEX = Table(_weights("1:20 2:14 n:16 i:14 0:8 k:8 j:7 3:6 m:3 x:2 y:2 z:2 t:1.5 a:2 b:2 p:1.5 4:2 r:1 e:1 q:1 g:.7"))
COUNTER = Table(_weights("n:5 i:6 k:5 j:2 m:1.5"))
SET = Table(_weights("X:3 E:3 A:3 R:4 G:2 V:2 S:2 N:3 I:2 M:1 H:1 C:1 B:1"))
NAME = Table(_weights(r"f:10 g:5 F:2.5 h:1.5 P:1.5 u:1.5 y:1 G:1 H:1 \phi:1 p:1.2 a:.6 \sigma:.4 v:.6 S:.6 L:.5"))
FENCE = Table({"( )": 28, "[ ]": 5, "| |": 4, "\\{ \\}": 3})
LONE = Table(
    {**{k: v * 0.2 + 1.2 for k, v in _LATIN.items()}, **dict.fromkeys(_GREEK, 1.6)}
    | dict.fromkeys("0123456789", 2.0)
    | _weights(
        r"\infty \int \sum + = - \pm \div \times \rightarrow \leq \geq \neq \in:.8 \forall:1.5 \exists:1.5 ( ) [ ] | /"
    )
    | _weights(r"< > \sin \cos \tan \log \lim \{ \} \ldots:.6 \cdots:.6 !")
)


class ExpressionGrammar:
    """Draws expressions.

    Args:
        rng (`np.random.Generator`): The only source of randomness.
    """

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._pool: list[float] = []
        self._cast: list[str] = []

    def expression(self, min_tokens: int = 1, max_tokens: int = 80) -> Tokens:
        """One expression of `min_tokens` to `max_tokens` tokens, most often near a length drawn as in CROHME.

        Raises:
            ValueError: `min_tokens` is under 1 or above `max_tokens`.
        """
        if not 1 <= min_tokens <= max_tokens:
            raise ValueError(f"1 <= min_tokens <= max_tokens is needed, got {min_tokens} and {max_tokens}")
        low, high = np.interp([min_tokens, max_tokens + 0.99], LENGTHS, LENGTH_QUANTILES)
        while True:
            target = float(np.interp(low + (high - low) * self.uniform(), LENGTH_QUANTILES, LENGTHS))
            length = min(max(int(target), min_tokens), max_tokens)
            self._cast = [self.draw(LETTER) for _ in range(2 + self.below(3))]
            tokens = self._statement(length)
            if min_tokens <= len(tokens) <= max_tokens:
                return tokens

    # -- dice

    def uniform(self) -> float:
        if not self._pool:
            self._pool = self._rng.random(256).tolist()
        return self._pool.pop()

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def letter(self) -> str:
        """A letter; mostly one of the few that this expression is about, as real formulas repeat their variables."""
        return self._cast[self.below(len(self._cast))] if self.chance(0.6) else self.draw(LETTER)

    def below(self, count: int) -> int:
        return int(self.uniform() * count)

    def draw(self, table: Table) -> str:
        return table.draw(self.uniform())

    def _one_of(self, options: Sequence[tuple[float, int, Callable[[int], Tokens]]], size: int) -> Tokens:
        """Calls one of the options (weight, least size, maker) that fit into `size` tokens."""
        fitting = [(weight, maker) for weight, least, maker in options if size >= least]
        cumulative = list(accumulate(weight for weight, _ in fitting))
        return fitting[bisect_left(cumulative, self.uniform() * cumulative[-1])][1](size)

    # -- statements: what stands on a line

    def _statement(self, size: int) -> Tokens:
        if size == 1:
            return [self.draw(LONE)]
        return self._one_of(
            [
                (32 if size < 9 else 14, 2, self.sum),
                (34, 3, self._relation),
                (5, 5, self._arithmetic),
                (2.2, 7, self._sequence),
                (1.6, 4, self._quantified),
                (3, 9, self._limit_equation),
                (1.5, 9, self._chain),
                (2.2 if size < 9 else 0.8, 2, self._fragment),
                (1, 9, self._definition),
                (5, 8, self._polynomial),
            ],
            size,
        )

    def _relation(self, size: int) -> Tokens:
        left = max(1, int((size - 1) * (0.08 + 0.6 * self.uniform() ** 1.4)))
        relation = self.draw(RELATION)
        if relation == "\\in":
            return [*self.sum(max(1, size - 2)), relation, self.draw(SET)]
        first = self.sum(left)
        rest = size - len(first) - 1
        if rest < 1:
            return first
        if rest <= 2 and self.chance(0.5):
            return [*first, relation, *self.number(rest)]
        return [*first, relation, *self.sum(rest)]

    def _chain(self, size: int) -> Tokens:
        third = max(1, (size - 2) // 3)
        sign = self.draw(RELATION) if self.chance(0.4) else "="
        sign = "=" if sign == "\\in" else sign
        first, second = self.sum(third), self.sum(third)
        return [*first, sign, *second, sign, *self.sum(max(1, size - 2 - len(first) - len(second)))]

    def _definition(self, size: int) -> Tokens:
        head = [self.draw(NAME), *(["^", "{", self._prime(), "}"] if self.chance(0.3) else [])]
        head += ["(", self.letter(), *([",", self.letter()] if self.chance(0.35) else []), ")", "="]
        return head + self.sum(max(1, size - len(head)))

    def _arithmetic(self, size: int) -> Tokens:
        tokens = self._numeric(size - 4 if size > 8 else size)
        rest = size - len(tokens) - 1
        if rest >= 1 and self.chance(0.85):
            tokens += [self.draw(RELATION).replace("\\in", "="), *self.number(min(rest, 1 + self.below(4)))]
        return tokens

    def _numeric(self, size: int) -> Tokens:
        tokens: Tokens = []
        while True:
            rest = size - len(tokens)
            if rest >= 7 and self.chance(0.35):
                inner = self._numeric(min(rest - 2, 3 + self.below(6)))
                tokens += ["(", *inner, ")"]
            else:
                tokens += self.number(min(rest, 1 + self.below(3)))
            if size - len(tokens) < 2:
                return tokens
            tokens.append(self.draw(NUMERIC))

    def _sequence(self, size: int) -> Tokens:
        letter, last = self.letter(), "n" if self.chance(0.7) else self.draw(INDEX)
        subscripted = size >= 20 or (size >= 15 and self.chance(0.7))
        dots, sign = ("\\ldots", ",") if self.chance(0.6) else ("\\cdots" if self.chance(0.7) else "\\ldots", "+")

        def element(index: str) -> Tokens:
            return [letter, "_", "{", index, "}"] if subscripted else [index]

        count = 2 if size >= 26 or (not subscripted and size >= 9) else 1
        first = 0 if self.chance(0.2) else 1
        tokens: Tokens = []
        for number in range(first, first + count):
            tokens += [*element(str(number)), sign]
        tokens += [dots, sign, *element(last)]
        if len(tokens) + 2 <= size and self.chance(0.4):
            tokens = ["(", *tokens, ")"]
        rest = size - len(tokens) - 1
        return [*tokens, "=", *self.sum(rest)] if sign == "+" and rest >= 1 else tokens

    def _quantified(self, size: int) -> Tokens:
        variable = self.letter()
        tokens = ["\\forall" if self.chance(0.6) else "\\exists", variable]
        if size >= 4 and self.chance(0.85):
            tokens += ["\\in", self.draw(SET)]
        if size >= 12 and self.chance(0.4):
            tokens += ["\\exists", self.letter(), "\\in", self.draw(SET)]
        rest = size - len(tokens) - 1
        return [*tokens, ",", *self._relation(rest)] if rest >= 3 else tokens

    def _limit_equation(self, size: int) -> Tokens:
        tokens = self._limit(size if self.chance(0.4) else size - 2)
        rest = size - len(tokens) - 1
        if rest >= 1:
            tokens += ["=", *(["\\infty"] if self.chance(0.2) else self.sum(min(rest, 1 + self.below(6))))]
        return tokens

    def _polynomial(self, size: int) -> Tokens:
        """Powers of one letter with coefficients, or the same power of several letters."""
        tail = ["=", "0" if self.chance(0.6) else self.draw(DIGIT)] if self.chance(0.4) else []
        room = size - len(tail)
        letters = [self.letter()] if self.chance(0.65) else [self.draw(LETTER) for _ in range(3)]
        degree = min(9, max(2, (room + 3) // 8 + self.below(2)))
        tokens: Tokens = []
        for place in range(9):
            power = degree - place if len(letters) == 1 else 2
            term = [letters[place % len(letters)], "^", "{", str(power), "}"]
            term = term[:1] if power == 1 else ([] if power < 1 else term)
            if not term or self.chance(0.4):
                term = [*([self.letter()] if self.chance(0.5) else self.number(1 + self.below(2))), *term]
            joint = [] if not tokens else ["+" if self.chance(0.6) else "-"]
            if len(tokens) + len(joint) + len(term) > room or power < 0:
                break
            tokens += joint + term
        return tokens + tail if tokens else self.sum(size)

    def _fragment(self, size: int) -> Tokens:
        """Half-sentences as pen-based corpora have them: an operator with nothing before it, three dots, a sign."""
        head = [self.draw(PLUS) if self.chance(0.5) else ("\\cdots" if self.chance(0.5) else "\\ldots")]
        if size >= 3 and self.chance(0.4):
            head.append(self.draw(PLUS))
        return head + self.sum(max(1, size - len(head)))

    # -- sums, products, factors

    def sum(self, size: int) -> Tokens:
        """Terms joined by signs, about `size` tokens and never more."""
        tokens = ["-"] if size >= 3 and self.chance(0.06) else []
        while True:
            rest = size - len(tokens)
            # Terms of a few tokens, but sometimes one structure takes the whole budget.
            want = rest if rest <= 2 or self.chance(0.42) else min(rest, 1 + int(-17 * np.log(1 - self.uniform())))
            tokens += self._term(want)
            rest = size - len(tokens)
            if rest < 2:
                return tokens
            if rest >= 5 and self.chance(0.03):
                tokens += ["+", "\\ldots" if self.chance(0.5) else "\\cdots"]
                rest -= 2
            tokens.append(self.draw(PLUS))

    def _term(self, size: int) -> Tokens:
        if self.chance(0.27 if size < 4 else 0.08):
            tokens = self.number(min(size, 1 + self.below(3)))
            if size - len(tokens) < 1 or self.chance(0.6):
                return tokens
        else:
            tokens = []
        while True:
            tokens += self._factor(size - len(tokens))
            if size - len(tokens) < 1 or not self.chance(0.5):
                return tokens

    def _factor(self, size: int) -> Tokens:
        return self._one_of(
            [
                (30 if size < 5 else 10, 1, lambda n: [self.letter()]),
                (0.5, 1, lambda n: ["\\infty"]),
                (25, 5, self._power),
                (21, 5, self._subscripted),
                (5.5, 9, self._both_scripts),
                (0.5, 2, lambda n: [self.letter(), "!"] if self.chance(0.7) else [self.draw(DIGIT), "!"]),
                (0.25, 2, lambda n: [self.letter(), self._prime()]),
                (31 if size < 14 else 48, 7, self._fraction),
                (13, 4, self._root),
                (18, 5, self._fenced),
                (7, 4, self._applied),
                (4, 2, self._function),
                (1.2 if size < 9 else 4, 2, self._sum_operator),
                (1.8 if size < 9 else 6.5, 3, self._integral),
                (1.6, 9, self._limit),
            ],
            size,
        )

    def number(self, size: int) -> Tokens:
        """Digits, sometimes with a decimal point."""
        digits = [self.draw(DIGIT) for _ in range(max(1, size))]
        if len(digits) > 1 and digits[0] == "0":
            digits[0] = "1" if len(digits) < 3 else "0"
        if len(digits) >= 3 and (digits[0] == "0" or self.chance(0.25)):
            digits[1 if digits[0] == "0" else len(digits) - 2] = "."
        return digits

    def _script(self, size: int, table: Table) -> Tokens:
        """The inside of a script of at most `size` tokens, mostly one."""
        if size < 2 or self.chance(0.66):
            return [self.draw(table)]
        if self.chance(0.35) and size >= 3:
            return [self.draw(table), "+" if self.chance(0.5) else "-", "1" if self.chance(0.7) else self.draw(SMALL)]
        if self.chance(0.3):
            return ["-", self.draw(table)]
        if table is INDEX and size >= 3 and self.chance(0.6):
            return [self.draw(table), ",", self.draw(table)]
        return self.sum(min(size, 2 + self.below(6)))

    def _base(self) -> str:
        return self.letter() if self.chance(0.86) else self.draw(DIGIT)

    def _power(self, size: int) -> Tokens:
        return [self._base(), "^", "{", *self._script(size - 4, SMALL), "}"]

    def _subscripted(self, size: int) -> Tokens:
        return [self.letter(), "_", "{", *self._script(size - 4, INDEX), "}"]

    def _both_scripts(self, size: int) -> Tokens:
        low = self._script(size - 8, INDEX)
        return [self.letter(), "_", "{", *low, "}", "^", "{", *self._script(size - 7 - len(low), SMALL), "}"]

    def _fraction(self, size: int) -> Tokens:
        inside = size - 5
        if inside > 14 and self.chance(0.4):
            inside = 3 + self.below(12)
        top = max(1, int(inside * (0.2 + 0.6 * self.uniform())))
        numerator = self.number(1) if self.chance(0.25) else self.sum(top)
        denominator = self.sum(max(1, inside - len(numerator)))
        if self.chance(0.2):
            denominator = self.number(1 if inside - len(numerator) < 2 or self.chance(0.8) else 2)
        return ["\\frac", "{", *numerator, "}", "{", *denominator, "}"]

    def _root(self, size: int) -> Tokens:
        index: Tokens = []
        if size >= 7 and self.chance(0.11):
            index = ["[", self.draw(ROOT_INDEX), "]"]
        inside = size - 3 - len(index)
        inside = min(inside, 1 + self.below(12)) if self.chance(0.7) else inside
        return ["\\sqrt", *index, "{", *self.sum(max(1, inside)), "}"]

    def _fenced(self, size: int) -> Tokens:
        opening, closing = self.draw(FENCE).split()
        inside = size - 2
        power: Tokens = []
        if size >= 9 and self.chance(0.3):
            power = ["^", "{", *self._script(min(size - 8, 4), SMALL), "}"]
            inside -= len(power)
        inside = min(inside, 3 + self.below(9)) if self.chance(0.75) else inside
        return [opening, *self.sum(max(1, inside)), closing, *power]

    def _applied(self, size: int) -> Tokens:
        head = [self.draw(NAME)]
        if size >= 8 and self.chance(0.12):
            head += ["^", "{", self._prime(), "}"]
        elif size >= 8 and self.chance(0.12):
            head += ["_", "{", self.draw(INDEX), "}"]
        rest = size - len(head) - 2
        if rest >= 3 and self.chance(0.3):
            return [*head, "(", self.letter(), ",", self.letter(), ")"]
        return [
            *head,
            "(",
            *([self.letter()] if self.chance(0.6) else self.sum(min(rest, 1 + self.below(6)))),
            ")",
        ]

    def _prime(self) -> str:
        return "\\prime" if self.chance(0.6) else "'"

    def _function(self, size: int) -> Tokens:
        name = self.draw(FUNCTION)
        head = [name]
        if size >= 7 and self.chance(0.16):
            head += ["_", "{", self.draw(SMALL), "}"] if name == "\\log" else ["^", "{", self.draw(SMALL), "}"]
        rest = size - len(head)
        if rest >= 5 and self.chance(0.3):
            return [*head, "(", *self.sum(min(rest - 2, 3 + self.below(5))), ")"]
        if rest >= 7 and self.chance(0.12):
            return head + self._fraction(min(rest, 12))
        argument = [self.draw(ANGLE)]
        return [*head, *(self.number(1) + argument if rest >= 2 and self.chance(0.25) else argument)]

    def _sum_operator(self, size: int) -> Tokens:
        head = ["\\sum"]
        counter = self.draw(COUNTER)
        if size >= 13 and self.chance(0.8):
            upper = ["\\infty"] if self.chance(0.4) else self._script(min(3, size - 12), COUNTER)
            lower = [counter, "=", "0" if self.chance(0.35) else "1"]
            head += ["_", "{", *lower, "}", "^", "{", *upper, "}"]
        elif size >= 5 and self.chance(0.6):
            low = [counter] if size < 7 or self.chance(0.5) else [counter, self.draw(RELATION), self.draw(INDEX)]
            head += ["_", "{", *low, "}"]
        return head + self._term(max(1, min(size - len(head), 2 + self.below(9))))

    def _integral(self, size: int) -> Tokens:
        head = ["\\int"]
        if size >= 13 and self.chance(0.72):
            head += ["\\limits"] if self.chance(0.45) else []
            low = ["0"] if self.chance(0.45) else (["-", "\\infty"] if self.chance(0.12) else [self.draw(INDEX)])
            high = ["\\infty"] if self.chance(0.2) else self._script(1, INDEX)
            high = ["+", "\\infty"] if high == ["\\infty"] and self.chance(0.3) else high
            head += ["_", "{", *low, "}", "^", "{", *high, "}"]
        variable = "x" if self.chance(0.55) else self.draw(ANGLE)
        inside = size - len(head) - 2
        body = self.sum(min(inside, 1 + self.below(10))) if inside >= 1 and self.chance(0.93) else []
        return [*head, *body, "d", variable]

    def _limit(self, size: int) -> Tokens:
        variable = self.draw(Table({"x": 5, "n": 5, "h": 1, "t": 1, "y": 1}))
        end = [["0"], ["\\infty"], ["+", "\\infty"], ["1"], [self.draw(INDEX)], ["-", "1"]][self.below(6)]
        head = ["\\lim", "_", "{", variable, "\\rightarrow", *end, "}"]
        return head + self._term(max(1, size - len(head)))
