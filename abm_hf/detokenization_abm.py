"""LaTeX tokens to the compact form that a person pastes into a document."""

import re
from collections.abc import Iterable


def join_tokens(tokens: Iterable[str], special: frozenset[str], look_alikes: tuple[str, ...]) -> str:
    """
    Join tokens so that encoding gives the same tokens again.

    A blank goes where two tokens would run into one: after a control word before a letter (`\\alpha x`), and within
    what would read as a special token, though it is none (`<eos >`). Each token only adds to the text of those before
    it, which is what lets a streamer print while the model generates.

    Args:
        tokens: LaTeX tokens.
        special: those among them that are special tokens, and written as they are.
        look_alikes: all special tokens of the vocabulary, which no other tokens may form together.
    """
    text = ""
    letters_open = False  # text ends with a control word, which a letter would prolong
    safe_from = 0  # where a look-alike of a special token may begin at the earliest
    for token in tokens:
        if token in special:
            text += token
            letters_open, safe_from = False, len(text)
            continue
        runs_on = letters_open and token[0].isascii() and token[0].isalpha()
        if runs_on or (text[safe_from:] + token).endswith(look_alikes):
            text += " "
        text += token
        letters_open = re.search(r"\\[A-Za-z]+\Z", token) is not None
    return text


__all__ = ["join_tokens"]
