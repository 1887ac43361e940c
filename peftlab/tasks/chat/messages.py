"""Messages of chats, as rows hold them: Transformers' `role` and `content`, or ShareGPT's `from` and `value`."""

from typing import Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.tasks.chat.template import ASSISTANT, Message
from peftlab.tasks.inputs.columns import json_cell, optional_text_column, quoted, text_column

ROLES = ("system", "user", ASSISTANT)
SHAREGPT = {"system": "system", "human": "user", "gpt": ASSISTANT}
"""What ShareGPT calls them → their roles."""


def messages_column(row: Row, name: str = "messages") -> list[Message]:
    """A list of objects with `role` and `content`; a table's cell may hold it as JSON. Raises RowError."""
    messages = json_cell(row.fields[name], name)
    if not isinstance(messages, list) or not messages:
        raise RowError(f"expected {name} to be a list of objects with role and content, found {quoted(messages)}")
    return [_message(message) for message in messages]


def _message(message: Any) -> Message:
    if isinstance(message, dict) and message.keys() >= {"from", "value"}:
        who = message["from"]
        if not isinstance(who, str) or who not in SHAREGPT:
            raise RowError(f"expected a message from {', '.join(SHAREGPT)}; found {who!r}")
        message = {"role": SHAREGPT[who], "content": message["value"]}
    if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise RowError(f"expected each message to have a role and its content, found {quoted(message)}")
    if message["role"] not in ROLES:
        raise RowError(f"expected a role of {', '.join(ROLES)}; found {message['role']!r}")
    return message


def instruction_messages(row: Row) -> list[Message]:
    """`instruction`, and below it `input` where there is one. Raises RowError."""
    asked = text_column(row, "instruction")
    about = optional_text_column(row, "input") if row.fields.get("input") is not None else ""
    return [{"role": "user", "content": f"{asked}\n\n{about}" if about.strip() else asked}]
