"""Chats and passages as examples, their replies, and how they are written."""

from dataclasses import dataclass
from typing import Any

from peftlab.tasks.chat.template import ASSISTANT, ChatError, ChatTemplate, Message, RenderedText, RewrittenTurnError
from peftlab.tasks.task import Example, Prediction


@dataclass(frozen=True)
class Chat(Example):
    """A chat; `text` is the last message that is no answer. At prediction the messages end before an answer.

    `answers_in_loss` is how many answers are in the loss, counted from the last; None for all but those in `skipped`,
    which are numbered from the first answer.
    """

    messages: tuple[Message, ...] = ()
    answers_in_loss: int | None = None
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Passage(Example):
    """A prompt `text` and its completion, without a chat template; at prediction `completion` is None."""

    completion: str | None = None


@dataclass(frozen=True)
class Reply(Prediction):
    """A generated reply.

    `finished` is false if generation stopped at `max_new_tokens`; `truncated` is true if the beginning of the input was
    removed because the input was too long.
    """

    reply: str
    finished: bool
    truncated: bool = False

    def as_dict(self) -> dict[str, Any]:
        """`text`, `reply`, `finished`, and the key `cut` if the input was truncated."""
        prediction = {"text": self.text, "reply": self.reply, "finished": self.finished}
        return prediction | ({"cut": True} if self.truncated else {})


def is_prompt(example: Chat | Passage) -> bool:
    """Whether the example is a prompt, without an answer."""
    if isinstance(example, Passage):
        return example.completion is None
    return example.messages[-1]["role"] != ASSISTANT


def render_example(example: Chat | Passage, template: ChatTemplate, end: str) -> list[RenderedText]:
    """The text of an example; one for each answer, if the template rewrites earlier turns."""
    if isinstance(example, Passage):
        return [_write_passage(example, end)]
    messages = [template.without_special(message, is_first=not i) for i, message in enumerate(example.messages)]
    if is_prompt(example):
        return [template.prompt(messages)]
    try:
        return [_without_skipped(template.write(messages, last=example.answers_in_loss), example)]
    except RewrittenTurnError:
        if example.answers_in_loss is not None:
            raise
        answers = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
        trained = [i for number, i in enumerate(answers) if number not in example.skipped]
        return [template.write(messages[: i + 1], last=1) for i in trained]


def _without_skipped(rendered: RenderedText, example: Chat) -> RenderedText:
    """Remove the spans of answers that are not in the loss. Raises ChatError if the template marks other spans."""
    if not example.skipped:
        return rendered
    if len(rendered.loss_spans) != sum(message["role"] == ASSISTANT for message in example.messages):
        raise ChatError("the chat template does not mark every answer, so weights of messages cannot be applied")
    spans = [span for number, span in enumerate(rendered.loss_spans) if number not in example.skipped]
    return rendered._replace(loss_spans=spans)


def _write_passage(example: Passage, end: str) -> RenderedText:
    """A prompt and its completion with an end, which it may have itself."""
    if example.completion is None:
        return RenderedText(example.text, [])
    start, text = len(example.text), f"{example.text}{example.completion}"
    if end and example.completion.rstrip().endswith(end):
        return RenderedText(text, [(start, len(text.rstrip()))], [start])
    return RenderedText(f"{text}{end}", [(start, len(text) + len(end))], [start])
