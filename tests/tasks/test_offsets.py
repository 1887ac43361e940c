"""Spans whose offsets count something else than characters, and texts in scripts without spaces."""

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.tasks.inputs.words import split_words
from peftlab.tasks.question_answering import QuestionAnsweringTask
from peftlab.tasks.relation_extraction import RelationExtractionTask
from peftlab.tasks.token_classification import TokenClassificationTask

UNITS = {
    "UTF-16 code units": lambda text: len(text.encode("utf-16-le", "surrogatepass")) // 2,
    "bytes of UTF-8": lambda text: len(text.encode("utf-8", "surrogatepass")),
    "line ends of two characters": lambda text: len(text.replace("\n", "\r\n")),
    "line ends of one character": lambda text: len(text.replace("\r\n", "\n")),
    "bytes of UTF-8, line ends of two": lambda text: len(text.replace("\n", "\r\n").encode()),
}
TEXTS = {
    "UTF-16 code units": "🚂 Lena 👩‍🚀 saw Porto 🇵🇹 again",
    "bytes of UTF-8": "Zoë Müller — Göteborg, Łódź",
    "line ends of two characters": "Lena\nsaw\n\nPorto\n",
    "line ends of one character": "Lena\r\nsaw\r\n\r\nPorto",
    "bytes of UTF-8, line ends of two": "Zoë\nà Göteborg\n",
}


def entities(text, names, length=len, key="text"):
    found = []
    for name in names:
        start = text.index(name)
        found.append({"start": length(text[:start]), "end": length(text[: start + len(name)]), "label": "X", key: name})
    return found


def read(text, spans):
    example = TokenClassificationTask().read(Row({"text": text, "entities": spans}, "f:1"))
    surface = [text[example.words[first][0] : example.words[end - 1][1]] for first, end, _ in example.spans]
    return surface, {name: count for name, count in example.warnings.items() if count}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("key", ["text", "surface", "mention"])
def test_offsets_in_another_unit_are_converted_and_counted(unit, key):
    text = TEXTS[unit]
    names = [name for name in ("Lena", "Porto", "Müller", "Göteborg", "Łódź") if name in text]
    found, warnings = read(text, entities(text, names, UNITS[unit], key))
    assert found == names
    moved = [e for e in entities(text, names, UNITS[unit]) if text[e["start"] : e["end"]] != e["text"]]
    assert warnings == {f"entities moved to their own text ({unit})": len(moved)}


@pytest.mark.parametrize(("first", "last"), [(-1, -1), (1, 1), (0, -1), (3, 3), (0, 2), (-1, 0)])
def test_one_shift_for_all_spans_is_corrected(first, last):
    text = "Then Lena saw Porto and met Ada ."
    names = ["Lena", "Porto", "Ada"]
    spans = [{**e, "start": e["start"] + first, "end": e["end"] + last} for e in entities(text, names)]
    found, warnings = read(text, spans)
    assert found == names
    assert list(warnings.values()) == [3]


@pytest.mark.parametrize(
    "moves",
    [[(0, 0), (1, 1)], [(1, 1), (-1, -1)], [(2, 2), (0, 0)], [(0, -1), (1, 1)]],
)
def test_spans_that_no_single_rule_corrects_are_refused(moves):
    text = "Lena saw Porto , Porto saw Lena ."
    spans = [
        {**e, "start": e["start"] + a, "end": e["end"] + b}
        for e, (a, b) in zip(entities(text, ["Lena", "Porto"]), moves, strict=True)
    ]
    with pytest.raises(RowError, match="no shift fits all spans of the row"):
        read(text, spans)


@pytest.mark.parametrize("shift", [-9, 4, 12])
def test_large_shift_is_corrected_for_several_spans_only(shift):
    """One text at another place may be another mention."""
    text = "It was here that Lena saw Porto , and it rained on her ."
    spans = [{**e, "start": e["start"] + shift, "end": e["end"] + shift} for e in entities(text, ["Lena", "Porto"])]
    assert read(text, spans)[0] == ["Lena", "Porto"]
    with pytest.raises(RowError, match="no shift fits"):
        read(text, spans[1:])


@pytest.mark.parametrize("start", [0, 8, 10, 20])
def test_answer_at_another_place_is_refused(start):
    row = {
        "question": "Where?",
        "context": "Lena saw Porto in the rain",
        "answers": [{"text": "Porto", "answer_start": start}],
    }
    with pytest.raises(RowError, match=f"expected 'Porto' at character {start} of the context"):
        QuestionAnsweringTask().read(Row(row, "f:1"))


@pytest.mark.parametrize("own", ["Lisbon", "porto", "Porto saw"])
def test_own_text_that_is_not_in_the_text_is_refused(own):
    with pytest.raises(RowError, match=f"expected '{own}' at 9–14 of the text; 'Porto' is there"):
        read("Lena saw Porto", [{"start": 9, "end": 14, "label": "LOC", "text": own}])


@pytest.mark.parametrize(
    ("text", "own"),
    [("in São  Paulo", "São Paulo"), ("in São\nPaulo", "São Paulo"), ("in Sa\u0303o Paulo", "São Paulo")],
)
def test_blanks_and_composition_may_differ(text, own):
    assert read(text, [{"start": 3, "end": len(text), "label": "LOC", "text": own}]) == ([text[3:]], {})


@given(
    st.lists(st.sampled_from([*"ab \n", "é", "中", "🚂", "\r\n"]), max_size=20).map("".join),
    st.sampled_from(sorted(UNITS)),
)
def test_any_unit_is_converted_wherever_it_differs(before, unit):
    """Whatever stands before: the span is found, or it was right as it was."""
    text = f"{before} Lena saw Porto"
    assert read(text, entities(text, ["Lena", "Porto"], UNITS[unit]))[0] == ["Lena", "Porto"]


@pytest.mark.parametrize("unit", ["UTF-16 code units", "bytes of UTF-8"])
def test_relations_and_answers_are_converted_too(unit):
    text, length = "🚂 Zoë Müller went to Łódź", UNITS[unit]
    head, tail = ({**e, "type": "X"} for e in entities(text, ["Zoë Müller", "Łódź"], length))
    example = RelationExtractionTask().read(Row({"text": text, "head": head, "tail": tail, "label": "x"}, "f:1"))
    assert [text[s.start : s.end] for s in (example.head, example.tail)] == ["Zoë Müller", "Łódź"]
    assert list(example.warnings.values()) == [2]
    answers = [{"text": "Łódź", "answer_start": tail["start"]}]
    question = QuestionAnsweringTask().read(Row({"question": "Where?", "context": text, "answers": answers}, "f:1"))
    assert [text[start:end] for start, end in question.answers] == ["Łódź"]
    assert list(question.warnings.values()) == [1]


# --- scripts without spaces

UNSPACED = {
    "Thai": ("นายกรัฐมนตรีเดินทางไปกรุงเทพมหานครเมื่อวาน", "กรุงเทพมหานคร"),
    "Lao": ("ຂ້ອຍໄປນະຄອນຫຼວງວຽງຈັນນ້ຳໃຈດີ", "ວຽງຈັນ"),
    "Khmer": ("ខ្ញុំទៅរាជធានីភ្នំពេញម្សិលមិញ", "ភ្នំពេញ"),
    "Myanmar": ("ကျွန်တော်ရန်ကုန်မြို့သို့သွားသည်", "ရန်ကုန်"),
    "Tai Lue": ("ᦀᦱᦆᦱᦏᦱᦗᦱ", "ᦏᦱ"),
    "Javanese": ("ꦲꦤꦕꦫꦏꦢꦠꦱꦮꦭ", "ꦏꦢ"),
    "Chinese": ("我昨天去了北京大学。", "北京大学"),
    "Japanese": ("昨日サーバーを東京に置いた", "東京"),
}


@pytest.mark.parametrize("script", UNSPACED)
def test_entity_in_a_script_without_spaces_is_exact(script):
    text, name = UNSPACED[script]
    found, warnings = read(text, entities(text, [name]))
    assert (found, warnings) == ([name], {})
    clusters = [match[0] for match in regex.finditer(r"\X", text)]
    assert [text[start:end] for start, end in split_words(text)] == clusters
    question = TokenClassificationTask().read_input(Row({"text": text}, "f:1"))
    assert [question.text[start:end] for start, end in question.words] == clusters


@pytest.mark.parametrize("script", UNSPACED)
def test_characters_as_tokens_set_the_unit(script):
    """Corpora with a character a line: predictions split any text by character."""
    text, name = UNSPACED[script]
    tokens = [match[0] for match in regex.finditer(r"\X", text)]
    start = len(regex.findall(r"\X", text[: text.index(name)]))
    tags = ["O"] * len(tokens)
    tags[start] = "B-LOC"
    task = TokenClassificationTask()
    example = task.read(Row({"tokens": tokens, "tags": tags}, "f:1"))
    assert (example.text, example.by_character) == (text, True)
