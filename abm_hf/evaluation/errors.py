"""What goes wrong: which tokens are taken for others, left out or invented, and in which expressions."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rapidfuzz.distance import Levenshtein

from ..latex.normalization import LatexError, parse_latex

Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class TokenErrors:
    """How often each token error was made.

    Attributes:
        confused (`Counter[tuple[str, str]]`): (token of the label, token of the prediction in its place).
        missing (`Counter[str]`): tokens of labels that nothing stands for.
        invented (`Counter[str]`): tokens of predictions that stand for nothing.
    """

    confused: Counter[tuple[str, str]] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    invented: Counter[str] = field(default_factory=Counter)


def align_tokens(reference: Sequence[str], prediction: Sequence[str]) -> list[Pair]:
    """Pairs (token of the label, token of the prediction) of a shortest edit, in order; `None` where one has none.

    As many pairs are unequal as the Levenshtein distance says.
    """
    pairs: list[Pair] = []
    for code in Levenshtein.opcodes(reference, prediction):
        wanted: list[str | None] = list(reference[code.src_start : code.src_end])
        got: list[str | None] = list(prediction[code.dest_start : code.dest_end])
        longest = max(len(wanted), len(got))
        wanted += [None] * (longest - len(wanted))
        got += [None] * (longest - len(got))
        pairs += zip(wanted, got, strict=True)
    return pairs


def count_token_errors(alignments: Iterable[Sequence[Pair]]) -> TokenErrors:
    """Counts the unequal pairs of [`align_tokens`]."""
    errors = TokenErrors()
    for pairs in alignments:
        for wanted, got in pairs:
            if wanted is None and got is not None:
                errors.invented[got] += 1
            elif got is None and wanted is not None:
                errors.missing[wanted] += 1
            elif wanted is not None and got is not None and wanted != got:
                errors.confused[wanted, got] += 1
    return errors


def structure_depth(tokens: Sequence[str]) -> int | None:
    """Levels of nesting: 0 for symbols in a row, 1 for `x ^ { 2 }`; `None` where the tokens are no expression."""
    try:
        return parse_latex(list(tokens)).depth
    except LatexError:
        return None


def wilson_interval(hits: int, count: int, deviations: float = 1.96) -> tuple[float, float]:
    """Interval of a share from `hits` among `count`, both ends in [0, 1]: at 95 % by default.

    Wilson's score interval: it has a width at 0 and at 1 as well, where the bootstrap has none.
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"a share needs 0 <= hits <= count and count >= 1, not {hits} of {count}")
    share, spread = hits / count, deviations**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = deviations * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
