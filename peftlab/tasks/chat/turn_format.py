"""What a chat template writes around an answer: found by rendering two probe chats with known contents.

A template may end in an assistant header whether or not a generation prompt is asked for, write a think block before
each answer, or end the last answer otherwise than earlier ones. None of that is part of an answer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

Message = Mapping[str, str]
"""`role` and `content`, as Transformers has them."""
Render = Callable[[Sequence[Message], bool], str]
"""Messages, and whether to add the generation prompt → text; raises ValueError if the template refuses them."""
ASSISTANT = "assistant"
QUESTION, ANSWER, NEXT_QUESTION, LAST_ANSWER, SYSTEM = (
    "peftlab-first-question", "peftlab-first-answer", "peftlab-next-question", "peftlab-last-answer", "peftlab-system",
)  # fmt: skip
_ATOM = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]+\]|.", re.DOTALL)
"""A control token such as `<|im_end|>` or `[/INST]`, or else one character."""


class TurnFormat(NamedTuple):
    """The text around an answer in the last turn of a chat.

    `opening` stands between the generation prompt and the answer, such as an empty think block; white space there is
    part of the answer. `end` follows the answer, such as `<|im_end|>`; it may be empty. `remainder` is the rest of the
    text, such as a line break or a header that the template always writes. `earlier_end` follows earlier answers if the
    last one has no end.
    """

    opening: str = ""
    end: str = ""
    remainder: str = ""
    earlier_end: str = ""


def find_turn_format(render: Render) -> TurnFormat:
    """The format of answers in a template; an empty one if the template refuses every probe chat."""
    system: list[Message] = [{"role": "system", "content": SYSTEM}]
    for before in ([], system):
        try:
            return _from_two_turns(render, before)
        except ValueError:  # it refuses these messages, or does not write them as they are
            continue
    for before in ([], system):
        try:
            return _from_one_turn(render, before)
        except ValueError:
            continue
    return TurnFormat()


def _from_two_turns(render: Render, before: Sequence[Message]) -> TurnFormat:
    first, asked = [*before, _user(QUESTION)], [*before, _user(QUESTION), _answer(ANSWER), _user(NEXT_QUESTION)]
    text, prompt = render([*asked, _answer(LAST_ANSWER)], False), render(asked, True)
    header, _, between, _, remainder = _between(text, [QUESTION, ANSWER, NEXT_QUESTION, LAST_ANSWER])
    generation_prompt = render(first, True).rpartition(QUESTION)[2]
    found = _turn_format(text, prompt, remainder, _find_end(remainder, between, header, generation_prompt))
    return found if found.end else found._replace(earlier_end=_earlier_end(between, header))


def _from_one_turn(render: Render, before: Sequence[Message]) -> TurnFormat:
    asked = [*before, _user(QUESTION)]
    text, prompt = render([*asked, _answer(LAST_ANSWER)], False), render(asked, True)
    _, _, remainder = _between(text, [QUESTION, LAST_ANSWER])
    return _turn_format(text, prompt, remainder, _end_without_next_turn(remainder, prompt.rpartition(QUESTION)[2]))


def _turn_format(text: str, prompt: str, remainder: str, end: str) -> TurnFormat:
    before = text.partition(LAST_ANSWER)[0]
    opening = before[len(prompt) :] if before.startswith(prompt) else ""
    return TurnFormat(opening if opening.strip() else "", end, remainder[len(end) :])


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _answer(content: str) -> Message:
    return {"role": ASSISTANT, "content": content}


def _between(text: str, contents: Sequence[str]) -> list[str]:
    """The parts of a text before, between and after `contents`. Raises ValueError unless each is in it once."""
    parts = re.split("|".join(map(re.escape, contents)), text)
    if len(parts) != len(contents) + 1 or any(text.count(content) != 1 for content in contents):
        raise ValueError("the template does not write the contents as they are")
    return parts


def _find_end(last: str, between: str, header: str, generation_prompt: str) -> str:
    """The end of an answer.

    Args:
        last: What follows the last answer.
        between: What stands between an earlier answer and the next question.
        header: What stands before the first question.
        generation_prompt: What follows a question, with the generation prompt.
    """
    common = _common_prefix(last, between)
    if not common.strip():
        return _end_without_next_turn(last, generation_prompt)
    if common.rstrip() == last.rstrip():
        return common.rstrip()
    # the template writes more behind it, such as a header: remove what the next turn begins with
    without_header = between.removesuffix(_common_suffix(header, between)).rstrip()
    if without_header and common.startswith(without_header):
        return without_header
    if len(_ATOM.findall(common.strip())[0]) == 1:  # no control token
        return ""
    return _without_turn_start(common, header)


def _earlier_end(between: str, header: str) -> str:
    """The control token after an earlier answer; empty if there is none, or if the next turn begins with it."""
    without_header = between.removesuffix(_common_suffix(header, between)).rstrip()
    return without_header if without_header and len(_ATOM.findall(without_header.lstrip())[0]) > 1 else ""


def _end_without_next_turn(last: str, generation_prompt: str) -> str:
    """The end of the last answer if nothing is known of earlier ones."""
    is_header = generation_prompt.rstrip().endswith(last.strip())
    return "" if is_header or not last.strip() else last.rstrip()


def _without_turn_start(common: str, header: str) -> str:
    """Remove from the end of `common` what turns begin with, such as `<|im_start|>`, by the start of the chat."""
    atoms, start = _ATOM.findall(common), _ATOM.findall(header)
    for size in range(len(atoms) - 1, 0, -1):
        if atoms[-size:] in (start[:size], start[1 : size + 1]):  # start[0] may be the BOS token
            return "".join(atoms[:-size]).rstrip()
    return common.rstrip()


def _common_prefix(left: str, right: str) -> str:
    pairs = zip(_ATOM.findall(left), _ATOM.findall(right), strict=False)
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _common_suffix(left: str, right: str) -> str:
    pairs = zip(reversed(_ATOM.findall(left)), reversed(_ATOM.findall(right)), strict=False)
    return "".join(reversed([one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]))
