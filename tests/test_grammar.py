"""Constrained decoding: the automaton against the parser, and what `generate` writes under it.

`ABM_HF_GRAMMAR_SEQUENCES=10000` generates the full number of sequences.
"""

import itertools
import os
import random
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pylatexenc.latexwalker import LatexWalker
from transformers import LogitsProcessor

from abm_hf import grammar_abm
from abm_hf.configuration_abm import ABMConfig
from abm_hf.grammar_abm import NEVER, GrammarState, GrammarTables, compile_grammar
from abm_hf.inference.generation import LatexGrammarLogitsProcessor
from abm_hf.latex import normalization as latex
from abm_hf.latex.normalization import is_well_formed, parse_latex
from abm_hf.modeling_abm import ABMForConditionalGeneration
from abm_hf.tokenization_abm import ABMTokenizer

DIRECTIONS = ("l2r", "r2l")
TOKENIZER = ABMTokenizer()
SEQUENCES = int(os.environ.get("ABM_HF_GRAMMAR_SEQUENCES", "600"))


def tables_for(alphabet: list[str], direction: str) -> GrammarTables:
    """The grammar over an alphabet, with the end behind it."""
    return compile_grammar((*alphabet, None), len(alphabet), direction)


def in_order(tokens: list[str], direction: str) -> list[str]:
    """What was read, from left to right."""
    return tokens if direction == "l2r" else tokens[::-1]


def can_be_written(tokens: Sequence[str]) -> bool:
    """Well-formed, and none of what TeX takes amiss nevertheless: see `abm_hf/grammar_abm.py`."""
    if not is_well_formed(tokens):
        return False
    for node in parse_latex(tokens).walk():
        if isinstance(node, latex.Row) and any(_two_superscripts(*pair) for pair in _pairs(node)):
            return False
        index = getattr(node, "index", None)
        if index is not None and any(_begins_index(item) for item in index.items):
            return False
    return True


def _lead(item: latex.Node | None) -> latex.Node | None:
    return item.base if isinstance(item, latex.Scripts) else item


def _pairs(row: latex.Row) -> Iterator[tuple[Any, Any]]:
    return itertools.pairwise([*row.items, None])


def _two_superscripts(item: latex.Node, following: latex.Node | None) -> bool:
    """A prime with a subscript, and a prime or a superscript behind that."""
    prime = latex.Symbol("'")
    if not isinstance(item, latex.Scripts) or item.base != prime or item.sub is None:
        return False
    return (item.sup is not None and item.sub_first) or _lead(following) == prime


def _begins_index(item: latex.Node) -> bool:
    return _lead(item) == latex.Symbol("[") or getattr(_lead(item), "index", None) is not None


def language(alphabet: list[str], direction: str, length: int) -> set[tuple[str, ...]]:
    """All sequences up to a length that constrained decoding can write, from left to right."""
    state, end = GrammarState(tables_for(alphabet, direction), 1), len(alphabet)
    prefixes: list[list[str]] = [[]]
    found: set[tuple[str, ...]] = set()
    for read in range(length + 1):
        possible = ~state.forbidden(length + 1 - read)
        found |= {
            tuple(in_order(prefix, direction)) for prefix, row in zip(prefixes, possible, strict=True) if row[end]
        }
        rows, tokens = np.nonzero(possible[:, :end])
        prefixes = [[*prefixes[row], alphabet[token]] for row, token in zip(rows, tokens, strict=True)]
        state.select(rows)
        state.read(tokens)
    assert not prefixes, "a prefix of the full length is not complete: there was not enough room"
    return found


def accepted(sequences: list[list[str]], alphabet: list[str], direction: str) -> list[bool]:
    """Whether constrained decoding can write each of the sequences."""
    tables, ids = tables_for(alphabet, direction), {token: index for index, token in enumerate(alphabet)}
    # With the end as padding: after the end only the end is possible.
    longest = max(map(len, sequences)) + 1
    read = np.full((len(sequences), longest), len(alphabet))
    for row, tokens in zip(read, sequences, strict=True):
        row[: len(tokens)] = [ids[token] for token in in_order(tokens, direction)]
    state, alive = GrammarState(tables, len(read)), np.ones(len(read), bool)
    for column in read.T:
        alive &= ~state.forbidden(NEVER)[np.arange(len(read)), column]
        state.read(column)
    return alive.tolist()


# ----------------------------------------------------------------------------------------- the automaton, all strings

ALPHABETS = [
    (["{", "}", "^", "x"], 6),
    (["{", "}", "^", "_", "'"], 6),
    (["{", "}", "\\frac"], 7),
    (["{", "}", "\\frac", "^", "x"], 6),
    (["{", "}", "\\sqrt", "[", "]"], 6),
    (["{", "}", "_", "\\sum", "\\limits", "'"], 5),
    (["\\mathop", "{", "}", "\\limits", "_"], 6),
    (["\\begin{matrix}", "\\end{matrix}", "&", "\\\\", "{", "}"], 5),
    (["\\begin{matrix}", "\\end{matrix}", "\\begin{cases}", "\\end{cases}", "&", "^", "{", "}"], 4),
    (["\\xrightarrow", "[", "]", "{", "}", "\\binom"], 5),
    (["$", "\\left", "\\begin{matrix}", "{", "}", "x"], 4),
]


@pytest.mark.parametrize(
    ("alphabet", "length"), ALPHABETS, ids=lambda value: "".join(value) if value is list else None
)
def test_the_language_is_that_of_the_parser(alphabet: list[str], length: int) -> None:
    expected = {
        tokens
        for count in range(length + 1)
        for tokens in itertools.product(alphabet, repeat=count)
        if can_be_written(tokens)
    }
    for direction in DIRECTIONS:
        assert language(alphabet, direction, length) == expected


@pytest.mark.parametrize(
    ("alphabet", "length"),
    [(["{", "}", "\\sqrt", "[", "]"], 8), (["{", "}", "\\frac"], 12), (["{", "}", "_", "'"], 8)],
)
def test_both_directions_agree_on_longer_sequences(alphabet: list[str], length: int) -> None:
    forward, backward = (language(alphabet, direction, length) for direction in DIRECTIONS)
    assert forward == backward
    assert all(can_be_written(tokens) for tokens in forward)


@pytest.mark.parametrize("split", ["train", "2014"])
def test_the_published_labels_can_be_written(crohme_offline: Path, split: str) -> None:
    with zipfile.ZipFile(crohme_offline) as archive:
        captions = archive.read(f"data/{split}/caption.txt").decode()
    labels = [line.split("\t")[1].split() for line in captions.splitlines()]
    labels = [tokens for tokens in labels if is_well_formed(tokens)]
    assert len(labels) > 900
    alphabet = sorted(latex.CROHME_TOKENS)
    for direction in DIRECTIONS:
        found = accepted(labels, alphabet, direction)
        assert found == [can_be_written(tokens) for tokens in labels]
        assert sum(found) >= len(labels) - 1


def test_random_changes_are_judged_as_the_parser_does() -> None:
    alphabet = sorted({*latex.CROHME_TOKENS, "&", "\\\\", "\\begin{cases}", "\\end{cases}", "\\overline", "\\mathop"})
    syntax = [token for token in alphabet if len(token) > 1 or not token.isalnum()]
    generator = random.Random(0)
    sequences = []
    for _ in range(1500):
        tokens = _random_expression(generator)
        for _ in range(generator.randrange(3)):
            place = generator.randrange(len(tokens) + 1)
            new = [generator.choice(syntax)] if generator.random() < 0.6 else []
            tokens[place : place + generator.randrange(2)] = new
        sequences.append(tokens)
    expected = [can_be_written(tokens) for tokens in sequences]
    assert 0.2 < np.mean(expected) < 0.8, "the changes leave too few sequences of one kind to mean anything"
    for direction in DIRECTIONS:
        found = accepted(sequences, alphabet, direction)
        wrong = [tokens for tokens, a, b in zip(sequences, found, expected, strict=True) if a != b]
        assert not wrong, (direction, wrong[0])


def _random_expression(generator: random.Random, level: int = 0) -> list[str]:
    def inner() -> list[str]:
        return _random_expression(generator, level + 1)

    tokens: list[str] = []
    for _ in range(generator.randrange(1, 4)):
        kind = generator.randrange(9 if level < 3 else 2)
        if kind < 3:
            tokens += [generator.choice("abx1+]['")]
        elif kind == 3:
            tokens += ["\\frac", "{", *inner(), "}", "{", *inner(), "}"]
        elif kind == 4:
            tokens += ["\\sqrt", "[", *(token for token in inner() if token != "]"), "]", "{", *inner(), "}"]
        elif kind == 5:
            tokens += ["\\sum", "\\limits", "_", "{", *inner(), "}", "^", "{", *inner(), "}"]
        elif kind == 6:
            tokens += ["x", "^", "{", *inner(), "}"]
        elif kind == 7:
            tokens += ["{", *inner(), "}", "]", "{", "}"]
        else:
            tokens += ["\\begin{cases}", *inner(), "&", *inner(), "\\end{cases}"]
    return tokens


def test_the_grammar_knows_what_the_parser_knows() -> None:
    assert dict(latex.ARGUMENT_COUNTS) == grammar_abm.ARGUMENT_COUNTS
    assert latex.INDEXED_COMMANDS == grammar_abm.INDEXED_COMMANDS
    assert latex.LARGE_OPERATORS == grammar_abm.LARGE_OPERATORS
    # Determinising from right to left relies on these two.
    assert max(grammar_abm.ARGUMENT_COUNTS.values()) == 2
    assert all(grammar_abm.ARGUMENT_COUNTS[command] == 1 for command in grammar_abm.INDEXED_COMMANDS)


# ------------------------------------------------------------------------------------------------------- the processor


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.convert_tokens_to_ids(text.split())
    return ids


def possible(text: str, *, direction: str = "l2r", max_length: int | None = None) -> set[str]:
    """Tokens that the processor lets follow on what has been written (in the order of writing)."""
    processor = LatexGrammarLogitsProcessor.from_tokenizer(TOKENIZER, direction=direction, max_length=max_length)
    start = TOKENIZER.bos_token_id if direction == "l2r" else TOKENIZER.eos_token_id
    scores = processor(torch.tensor([[start, *ids_of(text)]]), torch.zeros(1, len(TOKENIZER)))
    return {TOKENIZER.convert_ids_to_tokens(index) for index in scores[0].isfinite().nonzero().flatten().tolist()}


def test_what_may_follow_from_left_to_right() -> None:
    assert possible(r"\frac") == {"{"}
    assert possible(r"\frac { x }") == {"{"}
    assert possible(r"\sqrt") == {"{", "["}
    assert possible("x ^") == {"{"}
    assert "^" not in possible("x ^ { 2 }") and "_" in possible("x ^ { 2 }")
    assert "'" not in possible("x ^ { 2 }")
    assert {"'", "^", "_"} <= possible("x '") and not {"'", "^", "_"} & possible("x ' _ { 2 }")
    assert "<eos>" not in possible("x ^ { 2") and "}" in possible("x ^ { 2")
    assert "}" not in possible("x")
    assert possible(r"\sqrt [ \sqrt") == {"{"} and "[" not in possible(r"\sqrt [")
    assert "[" in possible(r"\sqrt [ {") and "]" in possible(r"\sqrt [ {")
    assert r"\limits" in possible(r"\sum") and r"\limits" not in possible("x")
    assert not {"<sos>", "<pad>", "<unk>", "<eol>"} & possible("x")
    assert "<eos>" in possible("")


def test_what_may_follow_from_right_to_left() -> None:
    assert "{" not in possible("2", direction="r2l")
    assert "<sos>" not in possible("} 2", direction="r2l") and "{" in possible("} 2", direction="r2l")
    assert {"^", "_", r"\sqrt", "<sos>", "}"} <= possible("} 2 {", direction="r2l")
    assert r"\frac" not in possible("} 2 {", direction="r2l")
    assert r"\frac" in possible("} 2 { } 1 {", direction="r2l")
    assert not {"^", "_", r"\sqrt", r"\frac", "{"} & possible("x", direction="r2l")
    assert possible(r"\limits", direction="r2l") == {r"\sum", r"\int", r"\lim"}
    assert "^" not in possible("} 2 { ^ } 1 {", direction="r2l") and "_" in possible("} 2 { ^ } 1 {", direction="r2l")
    assert r"\sqrt" in possible("} 2 { ] 3 [", direction="r2l")
    assert r"\sqrt" not in possible("x ] 3 [", direction="r2l")
    assert r"\sqrt" not in possible("} 2 { ] [ 3 [", direction="r2l")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("max_length", [2, 3, 5, 8])
def test_everything_fits_before_the_longest_length(direction: str, max_length: int) -> None:
    """Whatever is chosen, as far as possible the most demanding token, the end comes in time."""
    processor = LatexGrammarLogitsProcessor.from_tokenizer(TOKENIZER, direction=direction, max_length=max_length)
    start, end = (0, 1) if direction == "l2r" else (1, 0)
    greedy_for_trouble = {"\\frac": 5, "\\sqrt": 4, "[": 3, "{" if direction == "l2r" else "}": 2, "^": 1}
    wish = torch.zeros(1, len(TOKENIZER))
    for token, value in greedy_for_trouble.items():
        wish[0, TOKENIZER.convert_tokens_to_ids(token)] = value
    wish[0, end] = -5
    ids = torch.tensor([[start]])
    while ids[0, -1] != end or ids.shape[1] == 1:
        assert ids.shape[1] < max_length
        ids = torch.cat([ids, processor(ids, wish).argmax(-1, keepdim=True)], dim=1)
    tokens = TOKENIZER.convert_ids_to_tokens(ids[0, 1:-1].tolist())
    assert is_well_formed(in_order(tokens, direction))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_row_is_never_left_without_a_token(direction: str) -> None:
    class Nothing(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, float("-inf"))

    end = 1 if direction == "l2r" else 0
    for text in ("} } _ ^", "x { {", "", r"\limits \limits", "<eos> x", "<pad>", "] ] [ \\sqrt"):
        ids = torch.tensor([[1 - end, *ids_of(text)]])
        for max_length in (None, 1, 2, 100):
            processor = LatexGrammarLogitsProcessor.from_tokenizer(
                TOKENIZER, direction=direction, max_length=max_length
            )
            scores = processor(ids, torch.zeros(1, len(TOKENIZER)))
            assert scores.isfinite().any()
            banned = processor(ids, Nothing()(ids, scores))
            assert torch.equal(banned.isfinite(), scores.isfinite())
    assert possible("} } _ ^") == {"<eos>"}  # a prompt that cannot be completed ends at once


def test_the_state_follows_the_ids_in_whatever_order_they_come() -> None:
    """Beams are reordered, dropped and replaced between two calls, and a processor may be used again."""
    generator = torch.Generator().manual_seed(0)
    for direction in DIRECTIONS:
        used = LatexGrammarLogitsProcessor.from_tokenizer(TOKENIZER, direction=direction, max_length=14)
        scores = torch.zeros(8, len(TOKENIZER))
        for _ in range(3):
            ids = torch.full((8, 1), 0 if direction == "l2r" else 1)
            for _ in range(13):
                fresh = LatexGrammarLogitsProcessor.from_tokenizer(TOKENIZER, direction=direction, max_length=14)
                found = used(ids, scores)
                assert torch.equal(found, fresh(ids, scores))
                tokens = torch.multinomial(found.softmax(-1), 1, generator=generator)
                ids = torch.cat([ids, tokens], dim=1)[torch.randint(8, (8,), generator=generator)]


def test_nesting_deeper_than_the_first_stack() -> None:
    text = "{ " * 100
    assert possible(text, max_length=202) == {"}"}
    assert len(possible(text, max_length=210)) > 5
    assert possible("} " * 100, direction="r2l", max_length=202) == {"{"}


def test_unsuitable_vocabularies_and_directions_are_refused() -> None:
    processor = LatexGrammarLogitsProcessor.from_tokenizer(TOKENIZER)
    with pytest.raises(ValueError, match="belongs to the model"):
        processor(torch.tensor([[0]]), torch.zeros(1, 7))
    with pytest.raises(ValueError, match="direction"):
        LatexGrammarLogitsProcessor.from_tokenizer(TOKENIZER, direction="up")


def test_what_cannot_be_completed_is_never_begun() -> None:
    """Without a closing brace in the vocabulary nothing that needs one may be written."""
    for direction in DIRECTIONS:
        after = tables_for(["{", "\\frac", "^", "\\begin{cases}", "x"], direction).after[0]
        assert [cost < NEVER for cost in after] == [False, False, False, False, True, True]


# ----------------------------------------------------------------------------------------------- what generate writes


@pytest.fixture(scope="module")
def model() -> ABMForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"stem_channels": 4, "block_layers": (1, 1), "growth_rates": (4, 4), "coverage_kernels": (3,)}
    model = ABMForConditionalGeneration(ABMConfig(**sizes, hidden_size=8, embedding_size=8, attention_size=4)).eval()
    # Weights as large as these make random choices, and brackets are wanted more than anything.
    with torch.no_grad():
        for branch in model.branches.values():
            branch.classifier.weight.normal_(std=3.0)
            for token in ("{", "}", "[", "]", "^", "_", "\\frac", "\\sqrt", "\\limits", "\\sum", "'"):
                branch.classifier.bias[TOKENIZER.convert_tokens_to_ids(token)] += 3.0
            branch.classifier.bias[:2] = -1.0
    return model


MODES = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 5},
    "sampling": {"do_sample": True, "top_k": 0},
    "nucleus": {"do_sample": True, "top_p": 0.9},
    "beam sampling": {"do_sample": True, "num_beams": 4},
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_generated_sequences_are_well_formed(model: ABMForConditionalGeneration, mode: str, direction: str) -> None:
    torch.manual_seed(1)
    wanted = SEQUENCES // (len(MODES) * len(DIRECTIONS))
    lengths = itertools.cycle((30, 12, 60, 5))
    checked = 0
    while checked < wanted:
        max_length = next(lengths)
        processor = LatexGrammarLogitsProcessor.from_tokenizer(TOKENIZER, direction=direction, max_length=max_length)
        ids = model.generate(
            pixel_values=torch.rand(min(64, wanted - checked), 1, 16, 24) * 3,
            max_length=max_length,
            decoder_direction=direction,
            logits_processor=[processor],
            **MODES[mode],
        )
        end = 1 if direction == "l2r" else 0
        for row in ids.tolist():
            assert end in row[1:], "not ended"
            tokens = in_order(TOKENIZER.convert_ids_to_tokens(row[1 : row.index(end, 1)]), direction)
            assert is_well_formed(tokens), tokens
            _parse_with_pylatexenc(TOKENIZER.to_compact(tokens))
        checked += len(ids)


def _parse_with_pylatexenc(text: str) -> None:
    # With blanks, or an empty formula would read as the start of a displayed one.
    nodes, _, length = LatexWalker(f"$ {text} $", tolerant_parsing=False).get_latex_nodes()
    assert len(nodes) == 1 and length == len(text) + 4, text


def test_hypotheses_of_beam_search_are_well_formed_as_far_as_they_exist(model: ABMForConditionalGeneration) -> None:
    processor = LatexGrammarLogitsProcessor.from_tokenizer(TOKENIZER, max_length=20)
    output = model.generate(
        pixel_values=torch.rand(4, 1, 16, 24),
        num_beams=20,
        num_return_sequences=20,
        max_length=20,
        logits_processor=[processor],
        return_dict_in_generate=True,
        output_scores=True,
    )
    exists = output.sequences_scores > -1e8
    assert exists.sum() > 40
    for row in output.sequences[exists].tolist():
        assert is_well_formed(TOKENIZER.convert_ids_to_tokens(row[1 : row.index(1)]))
