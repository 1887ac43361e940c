import random
from itertools import pairwise

import pytest

from peftlab.tasks.inputs.words import join_tokens, split_words


def words(text):
    return [text[start:end] for start, end in split_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ada wrote, then left.", "Ada|wrote|,|then|left|."),
        ("Ada's co-op don't", "Ada|'|s|co|-|op|don|'|t"),
        ("3.14 1,000 10% $5 x² 2nd", "3|.|14|1|,|000|10|%|$|5|x²|2nd"),
        ("a_b me@x.org #tag", "a_b|me|@|x|.|org|#|tag"),
        ("—“quote”…", "—|“|quote|”|…"),
        ("Größe naïve e\u0301te\u0301", "Größe|naïve|e\u0301te\u0301"),
        ("Ёлка, Київ!", "Ёлка|,|Київ|!"),
        ("한국어 서울", "한국어|서울"),
        ("القاهرة، مصر؟", "القاهرة|،|مصر|؟"),
        ("شُكْرًا", "شُكْرًا"),
        ("שָׁלוֹם עולם", "שָׁלוֹם|עולם"),
        ("भारत की राजधानी दिल्ली है।", "भारत|की|राजधानी|दिल्ली|है|।"),
        ("தமிழ் நாடு", "தமிழ்|நாடு"),
    ],
)
def test_split_words_by_character_category(text, expected):
    assert words(text) == expected.split("|")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我爱北京。", "我|爱|北|京|。"),
        ("在2024年", "在|2024|年"),
        ("日本NEC株式", "日|本|NEC|株|式"),
        ("GPUを使う", "GPU|を|使|う"),
        ("人々は", "人|々|は"),
        ("カード", "カ|ー|ド"),
        ("サーバー2台", "サ|ー|バ|ー|2|台"),
        ("か\u3099くせい", "か\u3099|く|せ|い"),
        ("葛\U000e0100城", "葛\U000e0100|城"),
        ("𠮷野家", "𠮷|野|家"),
    ],
    ids=["han", "digits", "latin", "kana", "repeat", "long-vowel", "long-vowel-digit", "nfd", "variant", "astral"],
)
def test_chinese_and_japanese_split_by_character(text, expected):
    assert words(text) == expected.split("|")


@pytest.mark.parametrize(
    "emoji",
    [
        "😀",
        "👋🏽",
        "👩‍👩‍👧‍👦",
        "🧑🏾‍🚀",
        "🏳️‍🌈",
        "❤️",
        "🇫🇷",
        "1️⃣",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    ],
)
def test_emoji_is_one_word(emoji):
    assert words(emoji) == [emoji]
    assert words(f"({emoji})") == ["(", emoji, ")"]
    assert words(f"{emoji} {emoji}") == [emoji, emoji]
    assert words(f"中{emoji}中") == ["中", emoji, "中"]


def test_consecutive_flags_are_separate_words():
    assert words("🇫🇷🇩🇪ok👍") == ["🇫🇷", "🇩🇪", "ok", "👍"]


@pytest.mark.parametrize(
    "text",
    ["", " ", "\t\n\r\n", "\u00a0\u3000\u2028", "\u200b", "\ufeff", "\x00\x07\x7f\x85", "\u200e\u202e", "\ud800"],
)
def test_whitespace_and_control_characters_are_ignored(text):
    assert words(text) == []
    assert words(f"a{text} {text}b") == ["a", "b"]


@pytest.mark.parametrize("word", ["می\u200cخواهم", "ක්\u200dෂ", "क्\u200dष", "co\u00adop"])
def test_joiner_is_part_of_word(word):
    assert words(f"x {word} y") == ["x", word, "y"]


@pytest.mark.parametrize("seed", range(100))
def test_spans_are_ordered_and_include_all_text(seed):
    rng = random.Random(seed)
    pieces = [*"ab1_,.-' \t\n中かー한ي", "क्षि", "e\u0301", "👩‍🚀", "👋🏽", "🇫🇷", "\u200b", "❤️"]
    text = "".join(rng.choices(pieces, k=rng.randrange(30)))
    spans = split_words(text)
    assert all(start < end for start, end in spans)
    assert spans == sorted(spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    assert {char for start, end in zip(edges[::2], edges[1::2], strict=True) for char in text[start:end]} <= set(
        " \t\n\u200b"
    )


@pytest.mark.parametrize("tokens", [[], ["Ada"], ["Ada", "wrote", "."], ["New York", "👩‍🚀", "中"], ["a", "", "b"]])
def test_join_tokens_returns_token_spans(tokens):
    text, spans = join_tokens(tokens)
    assert text == " ".join(tokens)
    assert [text[start:end] for start, end in spans] == tokens
    assert all(end < start for (_, end), (start, _) in pairwise(spans))
