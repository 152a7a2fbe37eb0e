"""MathML and pictures of readings: what can be made, and what is said where not."""

import numpy as np
import pytest
from latex2mathml.converter import convert

from abm_hf import Recognition, TypesetError, render_latex, to_mathml
from abm_hf.latex.normalization import CROHME_TOKENS


def test_mathml_of_well_formed_latex_only() -> None:
    assert to_mathml(r"\frac{x^{2}}{3}") == convert(r"\frac{x^{2}}{3}")
    assert [to_mathml(latex) for latex in (None, "", r"\frac{1}", "x^{2", "}{")] == [None] * 5


def test_a_picture_of_every_token() -> None:
    """One formula with all tokens that stand alone, and each command that takes groups."""
    alone = CROHME_TOKENS - {"{", "}", "^", "_", r"\frac", r"\sqrt", r"\limits", "'"}
    latex = (
        " ".join(sorted(alone))
        + r" \frac{a}{b} \sqrt{a} \sqrt[3]{a} \sum\limits_{i=1}^{n} \int\limits_{a} x' x^{y}_{z}"
    )
    picture = np.asarray(render_latex(latex))
    assert picture.shape[1] > 20 * picture.shape[0] and picture.shape[2] == 4
    assert picture[..., 3].max() == 255 and picture[0, :, 3].max() == 0, (
        "ink on transparent ground, a margin around it"
    )


def test_the_picture_shows_the_formula() -> None:
    """A fraction is taller than what it is made of, a longer sum wider, and size and colour are as asked for."""
    fraction, line = render_latex(r"\frac{a}{b}"), render_latex("a+b")
    assert fraction.width < line.width and fraction.height > line.height
    assert render_latex("a+b+c").width > line.width
    assert render_latex("a+b", dpi=400).width == pytest.approx(2 * line.width, rel=0.05)
    red = np.asarray(render_latex("a+b", color="red"))
    assert set(np.unique(red[red[..., 3] == 255][:, :3], axis=0).flatten().tolist()) == {0, 255}
    assert render_latex(r"\sum\limits_{i}a").size == render_latex(r"\sum_{i}a").size


@pytest.mark.parametrize("latex", [None, "", " ", "x^{2", r"\frac{1}", r"a\unknowncommand b"])
def test_what_cannot_be_drawn_says_so(latex: str | None) -> None:
    with pytest.raises(TypesetError, match="draw") as caught:
        render_latex(latex)
    assert "\n" not in str(caught.value) and (not latex or repr(latex) in str(caught.value) or not latex.strip())


def test_recognition_gives_them_too() -> None:
    result = Recognition(r"\sqrt{2}", 0.9)
    assert result.mathml == to_mathml(r"\sqrt{2}") and result.render().size == render_latex(r"\sqrt{2}").size
    failed = Recognition(None, 0.0, error="no picture")
    assert failed.mathml is None
    with pytest.raises(TypesetError):
        failed.render()


def test_what_the_grammar_allows_can_be_drawn() -> None:
    """Random formulas of the grammar, as a random model would write them."""
    import torch

    from abm_hf import ABMTokenizer, LatexGrammarLogitsProcessor

    tokenizer = ABMTokenizer()
    rng = torch.Generator().manual_seed(0)
    grammar = LatexGrammarLogitsProcessor.from_tokenizer(tokenizer, max_length=24)
    ids = torch.zeros(40, 1, dtype=torch.long)
    for _ in range(23):
        scores = grammar(ids, torch.zeros(40, len(tokenizer)))
        ids = torch.cat([ids, torch.multinomial(scores.softmax(-1), 1, generator=rng)], dim=1)
    refused = []
    for row in ids[:, 1:].tolist():
        latex = tokenizer.decode(row[: row.index(1)], skip_special_tokens=True)
        if not latex:
            continue
        assert to_mathml(latex), latex
        try:
            render_latex(latex, dpi=40)
        except TypesetError as error:
            refused.append((latex, str(error)))
    assert not refused
