"""A chat as text, and which parts of that text a model learns: what the assistant says, and that it then ends."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from peftlab.errors import ErrorCollector, suggest
from peftlab.imports import jinja2, transformers
from peftlab.tasks.chat.turn_format import ASSISTANT as ASSISTANT
from peftlab.tasks.chat.turn_format import Message as Message
from peftlab.tasks.chat.turn_format import TurnFormat, find_turn_format

FOLDER = Path(__file__).parent / "templates"
CHAT_TEMPLATES = {file.stem: file for file in sorted(FOLDER.glob("*.jinja"))}
REWRITTEN = (
    "the chat template writes a turn differently when others follow, so that the text before an answer is not the "
    "prompt for it. Use another template, or change this one (task.template)"
)
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_GENERATION = re.compile(r"\{%-?[ \t]*(end)?generation[ \t]*-?%\}")  # tags that only Transformers knows


def go_template(name: str, **special: str) -> str:
    """The chat template of this name as a Go template (text/template).

    Names of special tokens, such as `eos_token`, are replaced by the tokens in `special`.
    """
    text = (FOLDER / f"{name}.gotmpl").read_text(encoding="utf8").removesuffix("\n")
    for token, written in special.items():
        text = text.replace(f" {token} }}}}", f" {json.dumps(written, ensure_ascii=False)} }}}}")
    return text


def read_template(file: Path, errors: ErrorCollector, *, key: str) -> str | None:
    """The text of a chat template; that it is not there, or no Jinja, is a problem with `key` of the recipe."""
    try:
        source = file.read_text(encoding="utf8")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", source))
    except FileNotFoundError:
        beside = [found.name for found in file.parent.glob(f"*{file.suffix}")]
        errors.add(f"there is no {file}.", key=key, hint=suggest(file.name, beside, what="Available templates"))
    except (OSError, UnicodeDecodeError) as error:
        errors.add(f"{file} cannot be read: {error}.", key=key)
    except jinja2.TemplateSyntaxError as error:
        message = f"not valid Jinja: {(error.message or '').removesuffix('.')}."
        errors.add(message, where=f"{file}:{error.lineno}", key=key)
    else:
        return source
    return None


def default_template(found: Any, errors: ErrorCollector, *, wanted: bool) -> str | None:
    """The chat template of a tokenizer; of several with names, the one named default.

    If it is `wanted` and several have other names, that is an error.
    """
    if isinstance(found, list):  # as tokenizer_config.json has it
        found = {one["name"]: one["template"] for one in found}
    if isinstance(found, Mapping):
        if "default" not in found and wanted:
            names = ", ".join(map(str, found))
            message = f"the tokenizer of this base has chat templates {names}, and none is named default."
            hint = f"Save one as a .jinja file and name it, or name one of {', '.join(CHAT_TEMPLATES)}."
            errors.add(message, key="task.template", hint=hint)
        return found.get("default")
    return found if isinstance(found, str) else None


class ChatError(ValueError):
    """A template cannot write a chat; the message says why."""


class RewrittenTurnError(ChatError):
    """A template writes earlier turns differently when others follow, so that no text has all answers as they are
    asked for."""


class RenderedText(NamedTuple):
    """A formatted text, the spans of characters that are in the loss, one for each answer, and its `borders`.

    A border is where an answer begins: the text before it is the prompt for that answer.
    """

    text: str
    loss_spans: list[tuple[int, int]]
    borders: Sequence[int] = ()


class ChatTemplate:
    """How one family of models writes a chat.

    Args:
        source: Jinja, as Transformers renders it.
        special: The tokenizer's special tokens by their names there, such as `eos_token`.
        opening: What the template writes between the generation prompt and an answer, such as an empty think block;
            it is then a part of prompts, and not in the loss.
    """

    def __init__(self, source: str, special: Mapping[str, Any], *, opening: str = "") -> None:
        self.source, self.opening = source, opening
        self._special = special

    def prompt(self, messages: Sequence[Message]) -> RenderedText:
        """Format messages up to the beginning of the next answer. Raises ChatError."""
        text = self._prompt(messages)
        borders = [border for i in _answers(messages) if (border := self._border(messages, i, text)) is not None]
        return RenderedText(f"{text}{self.opening}", [], borders)

    def write(self, messages: Sequence[Message], *, last: int | None = None) -> RenderedText:
        """Format a full chat, and find the spans of its `last` answers, or of all: the answer, and the token that ends
        it.

        Where the template has marks, `{% generation %}`, a span is the marked part, through the end of the answer.

        Raises:
            ChatError: the template refuses these messages.
            RewrittenTurnError: it writes a turn differently when others follow, so that the span of an answer cannot
                be found.
        """
        chosen = slice(last and -last, None)
        text, marks = self._render(messages, return_assistant_tokens_mask=self.has_marks)
        borders = {i: self._border(messages, i, text) for i in _answers(messages)}
        found = [border for border in borders.values() if border is not None]
        if None in list(borders.values())[chosen]:
            raise RewrittenTurnError(REWRITTEN)
        if self.has_marks:
            spans = [self._marked_span(text, start, end, found) for start, end in marks[chosen]]
        else:
            spans = [self._span(messages, i, text, borders[i] or 0) for i in list(borders)[chosen]]
        rendered = RenderedText(text, spans, found)
        has_end = self.turn_format.end or messages[-1]["role"] != ASSISTANT
        return rendered if has_end else self._with_end(rendered)

    @property
    def has_marks(self) -> bool:
        """Whether it marks what is in the loss."""
        return bool(_MARKED.search(self.source))

    @property
    def ending(self) -> str:
        """The string after an answer, such as `<|im_end|>`; may be empty."""
        return (self.turn_format.end or self.turn_format.earlier_end).strip()

    @cached_property
    def turn_format(self) -> TurnFormat:
        """What the template writes around answers."""
        return find_turn_format(lambda messages, is_prompt: self._render(messages, add_generation_prompt=is_prompt)[0])

    def writes_opening(self, messages: Sequence[Message]) -> bool:
        """Whether `turn_format.opening` stands before the last answer of a chat; an answer may bring its own."""
        prompt = self._prompt(messages[:-1]) if len(messages) > 1 else ""
        return self._render(messages)[0].startswith(f"{prompt}{self.turn_format.opening}")

    def without_special(self, message: Message, *, is_first: bool) -> Message:
        """A message without the BOS token before the first one, and without ends behind answers: the template writes
        them."""
        content, bos_token = message["content"], self._special.get("bos_token")
        if is_first and bos_token and content.lstrip().startswith(bos_token):
            content = content.lstrip().removeprefix(bos_token)
        for end in (self._special.get("eos_token"), self.ending) if message["role"] == ASSISTANT else ():
            content = content.rstrip().removesuffix(end) if end and content.rstrip().endswith(end) else content
        return message if content == message["content"] else {**message, "content": content}

    def _prompt(self, messages: Sequence[Message]) -> str:
        return self._render(messages, add_generation_prompt=True)[0] if messages else ""

    def _border(self, messages: Sequence[Message], number: int, text: str) -> int | None:
        """Where the answer of this number begins in `text`; None if its prompt is not the beginning of the text."""
        prompt = self._prompt(messages[:number])
        if not text.startswith(prompt):
            return None
        return len(prompt) + (len(self.opening) if text.startswith(self.opening, len(prompt)) else 0)

    def _span(self, messages: Sequence[Message], number: int, text: str, border: int) -> tuple[int, int]:
        """The span of one answer in the `text` of all messages."""
        through = self._render(messages[: number + 1])[0].removesuffix(self.turn_format.remainder)
        for ended in (through, through.removesuffix(self.turn_format.end)):  # only the last turn may have an end
            if text.startswith(ended) and border <= len(ended):
                earlier_end = self.turn_format.earlier_end
                return border, len(ended) + (len(earlier_end) if text.startswith(earlier_end, len(ended)) else 0)
        raise RewrittenTurnError(REWRITTEN)

    def _marked_span(self, text: str, start: int, end: int, borders: Sequence[int]) -> tuple[int, int]:
        """A marked span without the prompt before it, and with the end of its answer."""
        border = max((border for border in borders if border < end), default=0)
        ending, rest = self.ending, text[end:]
        is_open = ending and not text[start:end].rstrip().endswith(ending) and rest.lstrip().startswith(ending)
        return max(start, border), end + (rest.index(ending) + len(ending) if is_open else 0)

    def _with_end(self, rendered: RenderedText) -> RenderedText:
        """A template that does not end the last answer: what ends earlier ones does, or else the tokenizer's eos
        token."""
        start, end = rendered.loss_spans[-1]
        text = rendered.text[:end] + (self.turn_format.earlier_end or self._special.get("eos_token", ""))
        return RenderedText(text, [*rendered.loss_spans[:-1], (start, len(text))], rendered.borders)

    def _render(self, messages: Sequence[Message], **options: Any) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, spans = transformers.utils.chat_template_utils.render_jinja_template(
                [list(map(dict, messages))], chat_template=self.source, **options, **self._special
            )
        except jinja2.TemplateError as error:  # also what a template itself raises, in a sandbox
            raise ChatError(f"the chat template refuses these messages: {error}") from None
        except Exception as error:  # a template is a program, and may fail in any way
            raise ChatError(f"the chat template fails on these messages ({type(error).__name__}: {error})") from None
        return texts[0], [(start, end) for start, end in spans[0]] if spans else []


def _answers(messages: Sequence[Message]) -> list[int]:
    """The indices of the assistant's messages."""
    return [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]


def tokens_in_spans(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> Iterator[bool]:
    """For each token, by its offsets, whether any of its characters is in a span."""
    left = iter(sorted(spans))
    span = next(left, None)
    for start, end in offsets:
        while span and span[1] <= start:
            span = next(left, None)
        yield span is not None and start < end and end > span[0]
