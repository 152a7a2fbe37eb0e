"""LaTeX word-level tokenizer: one id for each LaTeX symbol, in the numbering of the released ABM.

Reads `x^{2}` and `x ^ { 2 }` alike and writes either: the compact form that a person pastes into a document, or the
field's *token form*, LaTeX tokens separated by one space, which data sets and metrics use.
"""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from .detokenization_abm import join_tokens

# The 113 classes of the released ABM by id, then the two that only this tokenizer has: a batch needs padding and a
# user's text may hold anything. The model's output layer ends before them, so neither can be generated.
_LISTING = r"""
<sos> <eos> \geq \sqrt \leq / \infty ( , 0 \cdot 8 \sigma < \pm \log \pi H L P \limits T X d h \} l p t \tan x |
\gamma \{ ' + \theta \forall 3 7 \int \sin \prime C G \ldots S [ _ c z \cdots g k o s w \cos { \Delta \neq \in
\alpha \times \lim . 2 6 \lambda 4 B F \exists N R V ^ b f j n r v > \frac \rightarrow \div ! \phi ) - 1 5 9 = A E
\beta I M Y ] \mu a e i \sum m q u y } <eol> <pad> <unk>
"""
ABM_VOCABULARY: tuple[str, ...] = tuple(_LISTING.split())

# A control word (`\alpha`), a control symbol (`\{`) or any single character; white space only separates.
_LATEX_PIECE = r"\\[A-Za-z]+|\\[^A-Za-z\s]|\S"


class ABMTokenizer(TokenizersBackend):
    r"""
    LaTeX tokenizer of ABM.

    `tokenizer(latex)["input_ids"]` are the model's labels: `y1 … yn eos`, without a start token, since the model
    shifts and reverses them itself; `add_special_tokens=False` leaves `eos` out.

    Args:
        vocab (`dict[str, int]` or `list[str]`, *optional*):
            LaTeX tokens by id, which must be 0, 1, 2, … without a gap, and hold the special tokens. Defaults to the
            vocabulary of the released ABM (113 classes) with `<pad>` and `<unk>` behind it.
        bos_token, eos_token, pad_token, unk_token (`str`):
            Special tokens. Right-to-left decoding starts with `eos` and ends with `bos`.
        compact (`bool`, defaults to `True`):
            The form that decoding writes when it is not told: `True` for `\frac{x}{2}`, `False` for the token form
            `\frac { x } { 2 }`.

    Raises:
        ValueError: if the vocabulary has gaps, repeats, white space or lacks a special token.

    Example:

    ```python
    >>> tokenizer = ABMTokenizer()
    >>> ids = tokenizer(r"\alpha x^{2}").input_ids
    >>> tokenizer.decode(ids, skip_special_tokens=True)
    '\\alpha x^{2}'
    >>> tokenizer.decode(ids, skip_special_tokens=True, compact=False)
    '\\alpha x ^ { 2 }'
    ```
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (transformers reads it as a plain list)
    model = WordLevel

    def __init__(
        self,
        vocab: Mapping[str, int] | Sequence[str] | None = None,
        bos_token: str = "<sos>",
        eos_token: str = "<eos>",
        pad_token: str = "<pad>",
        unk_token: str = "<unk>",
        compact: bool = True,
        **kwargs: Any,
    ) -> None:
        token_ids = _checked_vocabulary(ABM_VOCABULARY if vocab is None else vocab)
        special_tokens = [str(token) for token in (bos_token, eos_token, pad_token, unk_token)]
        if missing := [token for token in special_tokens if token not in token_ids]:
            raise ValueError(f"The vocabulary lacks the special tokens {missing}: add them, each with its id.")
        # `<eol>` ends a line of the released ABM's label files: no LaTeX, so decoding can skip it with the others.
        kwargs.setdefault("extra_special_tokens", ["<eol>"] if "<eol>" in token_ids else [])
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        self._tokenizer = Tokenizer(WordLevel(token_ids, unk_token=str(unk_token)))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Split(
            Regex(_piece_pattern(token_ids, {*special_tokens, *map(str, kwargs["extra_special_tokens"])})),
            behavior="removed",
            invert=True,
        )
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            unk_token=unk_token,
            add_eos_token=True,
            compact=compact,
            **kwargs,
        )
        self.compact = compact
        # With a `tokenizer_file` the parent has read a vocabulary of its own in place of the one checked above.
        _checked_vocabulary(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def lex(self, latex: str) -> list[str]:
        r"""Split LaTeX into tokens, known or not: `x^{2}` gives `["x", "^", "{", "2", "}"]`."""
        return [piece for piece, _ in self.backend_tokenizer.pre_tokenizer.pre_tokenize_str(latex)]

    def to_token_string(self, latex: str) -> str:
        r"""LaTeX in any spacing to the field's token form: `x^{2}` gives `x ^ { 2 }`."""
        return " ".join(self.lex(latex))

    def to_compact(self, latex: str | Iterable[str]) -> str:
        r"""LaTeX in any spacing, or its tokens, to the compact form: `x ^ { 2 }` gives `x^{2}`."""
        return self._join(self.lex(latex) if isinstance(latex, str) else latex, special=frozenset())

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens in the tokenizer's own form (see `compact`)."""
        special = frozenset(self.all_special_tokens)
        return self._join(tokens, special) if self.compact else " ".join(tokens)

    def _join(self, tokens: Iterable[str], special: frozenset[str]) -> str:
        return join_tokens(tokens, special, look_alikes=tuple(self.all_special_tokens))

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        compact: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """
        Ids of one sequence to LaTeX: reached from `decode`, `batch_decode`, streamers and the processor.

        The label padding −100 is skipped, so that labels decode as they are. `compact` overrides the tokenizer's own
        setting. There is nothing for `clean_up_tokenization_spaces` to do.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids if index != -100]
        size = len(self)
        if outside := sorted({index for index in ids if not 0 <= index < size}):
            raise ValueError(f"Ids {outside} are outside the vocabulary, 0 to {size - 1}: is this its tokenizer?")
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)
        if self.compact if compact is None else compact:
            return self._join(tokens, frozenset(self.all_special_tokens))
        return " ".join(tokens)

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Encode as the parent does; warn with the names of the symbols that became `<unk>`."""
        encoded = super()._encode_plus(text, text_pair, *args, **kwargs)
        if any(self.unk_token_id in encoding.ids for encoding in encoded.encodings or ()):
            self._warn_of_unknown(_texts_in((text, text_pair)))
        return encoded

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        """Id of one token; warns if that is `<unk>`."""
        if self.backend_tokenizer.token_to_id(token) is None:
            self._warn_of_unknown([token])
        return super()._convert_token_to_id_with_added_voc(token)

    def _warn_of_unknown(self, texts: Iterable[str]) -> None:
        vocabulary = self.get_vocab()
        # Special tokens written out in a text are read as such before it is lexed.
        written_out = "|".join(map(re.escape, self.all_special_tokens))
        pieces = [piece for text in texts for piece in self.lex(re.sub(written_out, " ", text))]
        unknown = list(dict.fromkeys(piece for piece in pieces if piece not in vocabulary))
        if unknown:
            warnings.warn(f"Symbols outside the vocabulary became {self.unk_token}: {' '.join(unknown)}", stacklevel=2)


def _checked_vocabulary(vocab: Mapping[str, int] | Sequence[str]) -> dict[str, int]:
    """Token → id in order of id, after checking what would otherwise corrupt a saved tokenizer silently."""
    if isinstance(vocab, Mapping):
        token_ids = dict(sorted(vocab.items(), key=lambda item: item[1]))
    else:
        token_ids = {token: index for index, token in enumerate(vocab)}
        if len(token_ids) < len(vocab):
            repeated = sorted({token for token in vocab if list(vocab).count(token) > 1})
            raise ValueError(f"The vocabulary holds {repeated} more than once: keep each token once.")
    # Loading numbers the tokens by their order, so a gap would shift every id behind it.
    if list(token_ids.values()) != list(range(len(token_ids))):
        raise ValueError("The ids of the vocabulary must be 0, 1, 2, … without gap or repeat: renumber them.")
    if unusable := [token for token in token_ids if not token or re.search(r"\s", token)]:
        raise ValueError(f"Tokens {unusable} are empty or hold white space, which separates tokens: rename them.")
    return token_ids


def _piece_pattern(vocab: Iterable[str], special_tokens: set[str]) -> str:
    r"""The lexer's pattern; tokens that it would cut (`\begin{matrix}` in some vocabularies) are tried first."""
    whole = [token for token in vocab if token not in special_tokens and not re.fullmatch(_LATEX_PIECE, token)]
    return "|".join([*map(re.escape, sorted(whole, key=len, reverse=True)), _LATEX_PIECE])


def _texts_in(value: Any) -> list[str]:
    """All strings within nested lists and tuples."""
    if isinstance(value, str):
        return [value]
    return [text for item in value or () for text in _texts_in(item)]


__all__ = ["ABM_VOCABULARY", "ABMTokenizer"]
