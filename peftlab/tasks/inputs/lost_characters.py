"""Characters that a tokenizer cannot write: they become `<unk>`, or vanish, as `{` and line breaks do for T5."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN_IN_TARGET = "target with characters that the tokenizer cannot write"
UNKNOWN_IN_INPUT = "input with characters that the tokenizer does not know"


class LostCharacters:
    """Tells which characters of a text a tokenizer loses; each character is tried once.

    Upper case and accents that a tokenizer removes are no loss here, nor is the amount of white space in a line.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._is_lost: dict[str, bool] = {}
        self._special = re.compile("|".join(map(re.escape, tokenizer.get_added_vocab())) or "$")

    def any_in(self, text: str) -> bool:
        """Whether a text has characters that are lost; special tokens and white space around it do not count."""
        characters = set(self._special.sub("", text).strip())
        self._try(characters - self._is_lost.keys())
        return any(self._is_lost[character] for character in characters)

    def _try(self, characters: Iterable[str]) -> None:
        tried = sorted(characters)
        if not tried:
            return
        for text in ("a{}a", "a {} a"):  # a word piece may be known only inside a word, or only alone
            encoded = self._tokenizer([text.format(character) for character in tried], add_special_tokens=False)
            for character, token_ids in zip(tried, encoded["input_ids"], strict=True):
                written = str(self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))
                is_lost = self._unknown in token_ids or not _contains(written, character)
                self._is_lost[character] = is_lost and self._is_lost.get(character, True)

    @cached_property
    def _unknown(self) -> int | None:
        """The id of the unknown token, unless it is also the end of texts, as GPT-2's is."""
        tokenizer = self._tokenizer
        return None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id


def _contains(written: str, character: str) -> bool:
    if character == "\n":
        return "\n" in written
    expected = _folded(character).strip()
    return not expected or expected in _folded(written)


def _folded(text: str) -> str:
    """A text without accents, and in one form of its letters; control characters are left out."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if unicodedata.category(letter) not in ("Mn", "Cc", "Cf"))
