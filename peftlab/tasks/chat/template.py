"""A chat as text, and which parts of that text a model learns: what the assistant says, and that it then ends."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from peftlab.errors import ErrorCollector, suggest
from peftlab.imports import jinja2, transformers

Message = Mapping[str, str]
"""`role` and `content`, as Transformers has them."""
FOLDER = Path(__file__).parent / "templates"
CHAT_TEMPLATES = {file.stem: file for file in sorted(FOLDER.glob("*.jinja"))}
ASSISTANT = "assistant"
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


class ChatError(ValueError):
    """A template cannot write a chat; the message says why."""


class RenderedText(NamedTuple):
    """A formatted text, and the spans of characters that are in the loss, one for each answer."""

    text: str
    loss_spans: list[tuple[int, int]]


class ChatTemplate:
    """How one family of models writes a chat.

    Args:
        source: Jinja, as Transformers renders it.
        special: The tokenizer's special tokens by their names there, such as `eos_token`.
    """

    def __init__(self, source: str, special: Mapping[str, Any]) -> None:
        self.source = source
        self._special = special

    def prompt(self, messages: Sequence[Message]) -> str:
        """Format messages up to the beginning of the next answer. Raises ChatError."""
        return self._render(messages, add_generation_prompt=True)[0]

    def write(self, messages: Sequence[Message], *, last: int | None = None) -> RenderedText:
        """Format a full chat, and find the spans of its `last` answers, or of all.

        The spans are the parts that the template marks with `{% generation %}`. Without marks, a span is the text that
        an answer adds to the chat before it, including its end-of-turn token.

        Raises:
            ChatError: the template refuses these messages, or writes a turn differently when others follow, so that
                the span of an answer cannot be found.
        """
        written = self._write(messages, last)
        closed = self.ending or messages[-1]["role"] != ASSISTANT
        return written if closed else self._with_end(written)

    def _write(self, messages: Sequence[Message], last: int | None = None) -> RenderedText:
        chosen = slice(last and -last, None)
        if _MARKED.search(self.source):
            text, marked = self._render(messages, return_assistant_tokens_mask=True)
            return RenderedText(text, marked[chosen])
        text = self._render(messages)[0]
        turns = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
        return RenderedText(text, [self._turn(messages, i, text) for i in turns[chosen]])

    @cached_property
    def ending(self) -> str:
        """The string after an answer, such as `<|im_end|>`; may be empty."""
        answer = "answer"
        written = self._write([{"role": "user", "content": "question"}, {"role": ASSISTANT, "content": answer}])
        start, end = written.loss_spans[-1]
        return written.text[start:end].rpartition(answer)[2]

    def _turn(self, messages: Sequence[Message], number: int, text: str) -> tuple[int, int]:
        """The span of one answer in the `text` of all messages."""
        before = self.prompt(messages[:number]) if number else ""
        through = self._render(messages[: number + 1])[0]
        if not (text.startswith(through.rstrip()) and through.startswith(before)):
            raise ChatError(
                "the chat template writes a turn differently when others follow, so the tokens of an answer cannot be "
                "found. Use another one (task.template), or mark answers in it with {% generation %}"
            )
        return len(before), len(through.rstrip())

    def _with_end(self, written: RenderedText) -> RenderedText:
        """A template that does not end its answers: the tokenizer's own end does."""
        start, end = written.loss_spans[-1]
        text = written.text[:end] + self._special.get("eos_token", "")
        return RenderedText(text, [*written.loss_spans[:-1], (start, len(text))])

    def _render(self, messages: Sequence[Message], **how: Any) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, spans = transformers.utils.chat_template_utils.render_jinja_template(
                [list(map(dict, messages))], chat_template=self.source, **how, **self._special
            )
        except jinja2.TemplateError as error:  # also what a template itself raises, in a sandbox
            raise ChatError(f"the chat template refuses these messages: {error}") from None
        return texts[0], [(start, end) for start, end in spans[0]] if spans else []


def tokens_in_spans(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> Iterator[bool]:
    """For each token, by its offsets, whether any of its characters is in a span."""
    left = iter(sorted(spans))
    span = next(left, None)
    for start, end in offsets:
        while span and span[1] <= start:
            span = next(left, None)
        yield span is not None and start < end and end > span[0]
