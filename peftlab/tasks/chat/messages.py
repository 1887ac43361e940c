"""Messages of chats, as rows hold them: Transformers' `role` and `content`, or ShareGPT's `from` and `value`.

What a column or key means elsewhere is honoured where it is clear (system, history, weight, parts of text, names of
roles). Tools, images and labels of bad answers are refused, because they would be lost without a word.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.tasks.chat.template import ASSISTANT, Message
from peftlab.tasks.inputs.columns import json_cell, optional_text_column, quoted, text_column

SYSTEM, USER = "system", "user"
ROLES = {
    SYSTEM: SYSTEM, "developer": SYSTEM, USER: USER, "human": USER, "prompter": USER, ASSISTANT: ASSISTANT,
    "gpt": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT, "chatgpt": ASSISTANT, "bard": ASSISTANT, "bing": ASSISTANT,
}  # fmt: skip
"""The names of roles in data → the roles of chat templates."""
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython", "tool_call")
TOOL_KEYS = ("tools", "functions", "tool_calls", "function_call", "tool_call_id")
TRAIN_KEYS = ("train", "training", "trainable")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
READ_KEYS = ("role", "from", "content", "value", "weight", *TRAIN_KEYS, *REASONING_KEYS)
NO_TOOLS = "peftlab does not train tool calls. Leave these rows out, or write calls and results as text of messages"


class Messages(NamedTuple):
    """The messages of a row; `not_in_loss` are the indices of answers that the row excludes from the loss.

    `unread` counts keys of messages that are not used, by name.
    """

    messages: list[Message]
    not_in_loss: frozenset[int] = frozenset()
    unread: Mapping[str, int] = {}


def messages_column(row: Row, name: str = "messages") -> list[Message]:
    """The messages of `read_messages`, for rows in which all answers are in the loss. Raises RowError."""
    read = read_messages(row, name)
    if read.not_in_loss:
        raise RowError(f"expected no weight 0 in {name}, because its answers are compared with each other")
    return read.messages


def read_messages(row: Row, name: str = "messages") -> Messages:
    """A list of objects with `role` and `content`; a table's cell may hold it as JSON.

    The columns `system` and `history` come before them.

    Raises:
        RowError: it is no such list, or holds what peftlab does not train, such as tool calls.
    """
    messages = json_cell(row.fields[name], name)
    if not isinstance(messages, list) or not messages:
        raise RowError(f"expected {name} to be a list of objects with role and content, found {quoted(messages)}")
    before = _messages_before(row)
    read = [_message(message) for message in messages]
    if before and before[0]["role"] == read[0]["role"] == SYSTEM:
        before = _without_repeated_system(before, read[0])
    excluded = (i for i, message in enumerate(messages, len(before)) if not _is_trained(message))
    unread: dict[str, int] = {}
    for key in (key for message in messages for key in message if key not in (*READ_KEYS, *TOOL_KEYS)):
        unread[key] = unread.get(key, 0) + 1
    return Messages([*before, *read], frozenset(excluded), unread)


def instruction_messages(row: Row) -> list[Message]:
    """`instruction`, and below it `input` where there is one, after `system` and `history`. Raises RowError."""
    instruction = text_column(row, "instruction")
    context = optional_text_column(row, "input") if row.fields.get("input") is not None else ""
    text = f"{instruction}\n\n{context}" if context.strip() else instruction
    return [*_messages_before(row), {"role": USER, "content": text}]


def check_plain_columns(row: Row) -> None:
    """Refuse what only chats can have, in a row without chat template. Raises RowError."""
    check_chat_columns(row)
    for name in (SYSTEM, "history"):
        if row.fields.get(name):
            raise RowError(
                f"expected no {name} beside a prompt, which is taken as it is. Use instruction and output, or messages"
            )


def check_chat_columns(row: Row) -> None:
    """Refuse columns that mean something which peftlab does not train. Raises RowError."""
    for name in TOOL_KEYS:
        if row.fields.get(name):
            raise RowError(f"found {name}: {NO_TOOLS}")
    if (label := row.fields.get("label")) is False or str(label).lower() == "false":
        raise RowError(
            "found label: false, which marks a bad answer, and this task would learn it. Leave these rows out, or "
            "pair good and bad answers as chosen and rejected for the task preference"
        )


def _messages_before(row: Row) -> list[Message]:
    """The messages of the columns `system` and `history`, if the row has them."""
    check_chat_columns(row)
    system = optional_text_column(row, SYSTEM) if row.fields.get(SYSTEM) is not None else ""
    messages: list[Message] = [{"role": SYSTEM, "content": system}] if system.strip() else []
    return [*messages, *_history(row)]


def _history(row: Row) -> Iterator[Message]:
    """Earlier turns: a list of [question, answer], or of messages."""
    turns = row.fields.get("history")
    turns = json_cell(turns, "history") if isinstance(turns, str) and turns.strip() else turns
    if not turns:
        return
    for turn in turns if isinstance(turns, list) else [turns]:
        if isinstance(turn, dict):
            yield _message(turn)
        elif isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn):
            yield from ({"role": role, "content": text} for role, text in zip((USER, ASSISTANT), turn, strict=True))
        else:
            raise RowError(f"expected history to be a list of [question, answer], found {quoted(turn)}")


def _without_repeated_system(before: Sequence[Message], own: Message) -> list[Message]:
    if before[0]["content"].strip() != own["content"].strip():
        raise RowError("expected one system message; found one in the column system, and another one in the messages")
    return list(before[1:])


def _message(message: Any) -> Message:
    if not isinstance(message, dict):
        raise RowError(f"expected each message to have a role and its content, found {quoted(message)}")
    role, content = (
        message.get(ours, message.get(theirs)) for ours, theirs in (("role", "from"), ("content", "value"))
    )
    if role in TOOL_ROLES or any(message.get(key) for key in TOOL_KEYS):
        found = f"a message of {role}" if role in TOOL_ROLES else next(key for key in TOOL_KEYS if message.get(key))
        raise RowError(f"found {found}: {NO_TOOLS}")
    if not isinstance(role, str) or content is None:
        raise RowError(f"expected each message to have a role and its content, found {quoted(message)}")
    if role.lower() not in ROLES:
        raise RowError(f"expected a role of {', '.join(dict.fromkeys(ROLES.values()))}; found {role!r}")
    reasoning = {key: message[key] for key in REASONING_KEYS if message.get(key)}
    return {"role": ROLES[role.lower()], "content": _text(content, message), **reasoning}


def _text(content: Any, message: Any) -> str:
    """The text of a message; a list of parts may hold text only."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise RowError(f"expected each message to have a role and its content, found {quoted(message)}")
    kinds = [part.get("type", "text") if isinstance(part, dict) else "text" for part in content]
    if other := sorted({str(kind) for kind in kinds} - {"text"}):
        raise RowError(f"expected content with parts of text only; found {', '.join(other)}")
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise RowError(f"expected each part of a content to have a text, found {quoted(content)}")
    return "".join(map(str, texts))


def _is_trained(message: Mapping[str, Any]) -> bool:
    """Whether an answer is in the loss, by its `weight` (0 or 1) or `train` (true or false). Raises RowError."""
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, str | list | dict) or weight not in (0, 1)):
        raise RowError(f"expected the weight of a message to be 0 or 1, found {quoted(weight)}")
    return weight != 0 and not any(message.get(key) in (False, 0) for key in TRAIN_KEYS if message.get(key) is not None)
