"""Stream a generated reply piece by piece."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from peftlab.tasks.generation.reply_text import trim_start
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.outputs import Continuation

Generate = Callable[..., Sequence[Continuation]]
"""Generates one text; passes its keyword arguments on to Transformers' `generate`."""


@dataclass
class ReplyState:
    """What is known of a reply: `truncated` from its first piece on, `finished` after its last one; None before."""

    truncated: bool | None = None
    finished: bool | None = None


class ReplyStream(Iterator[str]):
    """The pieces of a reply, and whether something was cut."""

    def __init__(self, stream: Callable[[ReplyState], Generator[str]]) -> None:
        self._state = ReplyState()
        self._pieces = stream(self._state)

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def truncated(self) -> bool | None:
        """Whether the beginning of the chat was removed because it is too long; None before the first piece."""
        return self._state.truncated

    @property
    def finished(self) -> bool | None:
        """False if the reply stopped at `max_new_tokens`; None before its end."""
        return self._state.finished

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()


def stream_text(generate: Generate, stop_strings: Sequence[str], inputs: Inputs, state: ReplyState) -> Generator[str]:
    """Yield the pieces of a text while `generate` runs in another thread, until one of `stop_strings`.

    Closing the generator stops the thread. Errors of `generate` are raised here. Sets `state.finished` at the end.
    """
    streamer = inputs.stream_decoder()
    stopped, errors = threading.Event(), []
    texts: list[Continuation] = []

    def run() -> None:
        try:
            texts[:] = generate(streamer=streamer, stopping_criteria=StoppingCriteriaList([_StopOnEvent(stopped)]))
        except BaseException as error:  # raised again in the thread that reads the stream
            errors.append(error)
            streamer.end()

    thread = threading.Thread(target=run, name="peftlab-generate")
    thread.start()
    try:
        found_stop = yield from truncate_stream(streamer, stop_strings)
    finally:
        stopped.set()
        thread.join()
    if errors:
        raise errors[0]
    state.finished = found_stop or texts[0].finished


def truncate_stream(pieces: Iterator[str], stop_strings: Sequence[str]) -> Generator[str, None, bool]:
    """Yield the text trimmed at its start, until the first stop string; no part of a stop string is yielded.

    Returns whether a stop string was found.
    """
    buffer, has_text = "", False
    for piece in pieces:
        buffer += piece
        if not has_text:
            if not buffer.strip():
                continue
            buffer, has_text = trim_start(buffer), True
        ends = [end for stop in stop_strings if (end := buffer.find(stop)) >= 0]
        if ends:
            yield buffer[: min(ends)]
            return True
        num_safe = len(buffer) - max((_partial_match(buffer, stop) for stop in stop_strings), default=0)
        if num_safe:
            yield buffer[:num_safe]
        buffer = buffer[num_safe:]
    if has_text and buffer:
        yield buffer
    return False


def _partial_match(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class _StopOnEvent(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, sequences: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Whether each row stops."""
        return torch.full((len(sequences),), self._event.is_set(), dtype=torch.bool, device=sequences.device)
