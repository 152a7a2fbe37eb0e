"""ABMTokenizer: the released numbering, both spellings of LaTeX, and decoding that encodes back to the same ids."""

import json
import re
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abm_hf.tokenization_abm import ABM_VOCABULARY, ABMTokenizer

TOKENIZER = ABMTokenizer()
LATEX_IDS = [i for i in range(TOKENIZER.vocab_size) if i not in TOKENIZER.all_special_ids]
SPECIAL_IDS = [i for i in TOKENIZER.all_special_ids if i != TOKENIZER.unk_token_id]


def test_ids_are_those_of_the_released_dictionary() -> None:
    assert TOKENIZER.vocab_size == len(TOKENIZER) == 115
    assert TOKENIZER.convert_tokens_to_ids(["<sos>", "<eos>", r"\geq", "x", "}", "<eol>"]) == [0, 1, 2, 30, 111, 112]
    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1)
    assert (TOKENIZER.pad_token_id, TOKENIZER.unk_token_id) == (113, 114)


@pytest.mark.parametrize(
    "latex", [r"\alpha x^{2}", r"\alpha x ^ { 2 }", "  \\alpha\tx^{2}\n", r"\alpha   x ^{2 }"], ids=repr
)
def test_spacing_of_the_input_does_not_matter(latex: str) -> None:
    assert TOKENIZER(latex).input_ids == TOKENIZER.convert_tokens_to_ids([r"\alpha", "x", "^", "{", "2", "}", "<eos>"])


def test_labels_end_with_eos_unless_told_otherwise() -> None:
    assert TOKENIZER("x").input_ids == [30, 1]
    assert TOKENIZER("x", add_special_tokens=False).input_ids == [30]
    batch = TOKENIZER(["x", "x+y"], padding=True, return_tensors="pt")
    assert batch.input_ids.tolist() == [[30, 1, 113, 113], [30, 35, 110, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("tokens", "compact"),
    [
        (r"\alpha x", r"\alpha x"),
        (r"\alpha _ { 1 }", r"\alpha_{1}"),
        (r"\alpha 1", r"\alpha1"),
        (r"\{ x \}", r"\{x\}"),
        (r"\frac { x ^ { 2 } } { 3 }", r"\frac{x^{2}}{3}"),
        (r"\sin \theta + \cos x", r"\sin\theta+\cos x"),
        ("< e o s >", "<eos >"),
        ("", ""),
    ],
)
def test_two_forms(tokens: str, compact: str) -> None:
    ids = TOKENIZER(tokens).input_ids
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == compact
    assert TOKENIZER.decode(ids, skip_special_tokens=True, compact=False) == tokens
    assert TOKENIZER.to_compact(tokens) == TOKENIZER.to_compact(tokens.split()) == compact
    assert TOKENIZER.to_token_string(compact) == tokens
    assert TOKENIZER.lex(compact) == tokens.split()


@given(st.lists(st.sampled_from(LATEX_IDS)), st.booleans())
def test_round_trip_of_latex(ids: list[int], compact: bool) -> None:
    latex = TOKENIZER.decode(ids, compact=compact)
    assert TOKENIZER(latex).input_ids == [*ids, TOKENIZER.eos_token_id]


@given(st.lists(st.sampled_from(LATEX_IDS + 5 * SPECIAL_IDS)), st.booleans())
def test_round_trip_with_special_tokens(ids: list[int], compact: bool) -> None:
    written = TOKENIZER.decode(ids, compact=compact)
    assert TOKENIZER(written, add_special_tokens=False).input_ids == ids


@given(st.text(alphabet=st.sampled_from("".join(ABM_VOCABULARY) + "<eos>")))
def test_look_alikes_of_special_tokens_round_trip(text: str) -> None:
    ids = TOKENIZER.convert_tokens_to_ids([character for character in text if character in ABM_VOCABULARY])
    assert TOKENIZER(TOKENIZER.decode(ids), add_special_tokens=False).input_ids == ids


@given(st.lists(st.sampled_from(LATEX_IDS + SPECIAL_IDS), min_size=1))
def test_decoding_a_prefix_gives_a_prefix(ids: list[int]) -> None:
    """A streamer prints while the model generates, so text once printed must stand."""
    assert TOKENIZER.decode(ids).startswith(TOKENIZER.decode(ids[:-1]))


def test_decoding_takes_batches_and_label_padding() -> None:
    sequences = [[0, 30, 76, 58, 66, 111, 1], [30, 35, 110, 1, -100, -100, -100]]
    assert TOKENIZER.batch_decode(sequences, skip_special_tokens=True) == ["x^{2}", "x+y"]
    assert TOKENIZER.batch_decode(sequences, skip_special_tokens=True, compact=False) == ["x ^ { 2 }", "x + y"]
    assert TOKENIZER.decode(sequences[0]) == "<sos>x^{2}<eos>"
    assert TOKENIZER.decode(30) == "x"


@pytest.mark.parametrize("index", [115, -1])
def test_ids_outside_the_vocabulary_are_refused(index: int) -> None:
    with pytest.raises(ValueError, match=rf"Ids \[{index}\] are outside the vocabulary, 0 to 114"):
        TOKENIZER.decode([30, index])


def test_unknown_symbols_are_named() -> None:
    with pytest.warns(UserWarning, match=re.escape(r"became <unk>: \foo Z") + "$"):
        assert TOKENIZER(["x", r"\foo x Z \foo"]).input_ids == [[30, 1], [114, 30, 114, 114, 1]]
    with pytest.warns(UserWarning, match="Z$"):
        assert TOKENIZER.convert_tokens_to_ids("Z") == 114
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TOKENIZER(r"\{x\}<unk>").input_ids == [33, 30, 25, 114, 1]


def test_save_and_load(tmp_path: Path) -> None:
    ABMTokenizer(compact=False).save_pretrained(tmp_path)
    loaded = ABMTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded.all_special_ids == TOKENIZER.all_special_ids
    assert loaded(r"\alpha x").input_ids == TOKENIZER(r"\alpha x").input_ids
    assert loaded.decode([62, 30, 1], skip_special_tokens=True) == r"\alpha x"
    assert loaded.decode([76, 58, 1], skip_special_tokens=True) == "^ {"
    assert loaded.convert_tokens_to_string(["^", "{"]) == "^ {"


def test_file_alone_is_read_too(tmp_path: Path) -> None:
    """Code loaded from the Hub is given `tokenizer.json` instead of a vocabulary."""
    TOKENIZER.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    assert ABMTokenizer(tokenizer_file=str(path))("x^{2}").input_ids == TOKENIZER("x^{2}").input_ids
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["model"]["vocab"]["}"] = 200
    path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ValueError, match="without gap"):
        ABMTokenizer(tokenizer_file=str(path))


def test_another_vocabulary(tmp_path: Path) -> None:
    vocabulary = ["<sos>", "<eos>", "a", "{", "}", r"\begin{matrix}", r"\begin", r"\%", "<pad>", "<unk>"]
    ABMTokenizer(vocabulary).save_pretrained(tmp_path)
    for tokenizer in (ABMTokenizer(vocabulary), ABMTokenizer.from_pretrained(tmp_path)):
        assert tokenizer(r"\begin{matrix}a\%a\begin{a}").input_ids == [5, 2, 7, 2, 6, 3, 2, 4, 1]
        assert tokenizer.decode([5, 2, 7, 2, 6, 2]) == r"\begin{matrix}a\%a\begin a"


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"<sos>": 0, "<eos>": 1, "<pad>": 2, "<unk>": 4}, "without gap"),
        (["<sos>", "<eos>", "<pad>", "<unk>", "a", "a"], r"holds \['a'\] more than once"),
        (["<sos>", "<eos>", "<pad>", "<unk>", "a b"], "white space"),
        (["<sos>", "<eos>", "<pad>"], r"lacks the special tokens \['<unk>'\]"),
    ],
)
def test_unusable_vocabularies_are_refused(vocabulary: list[str] | dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ABMTokenizer(vocabulary)


def test_crohme_captions_round_trip(crohme_offline: Path) -> None:
    with zipfile.ZipFile(crohme_offline) as archive:
        names = [name for name in archive.namelist() if name.endswith("caption.txt")]
        lines = [line for name in names for line in archive.read(name).decode().splitlines()]
    captions = [" ".join(line.split()[1:]) for line in lines]
    assert len(captions) > 9000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = TOKENIZER(captions).input_ids
    assert TOKENIZER.batch_decode(ids, skip_special_tokens=True, compact=False) == captions
    assert TOKENIZER(TOKENIZER.batch_decode(ids, skip_special_tokens=True)).input_ids == ids
