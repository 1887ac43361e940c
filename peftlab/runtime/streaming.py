"""Stream a generated reply piece by piece."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from peftlab.tasks.generation.reply_text import trim_start
from peftlab.tasks.inputs.inputs import Inputs

Generate = Callable[..., object]
"""Generates text; passes its keyword arguments on to Transformers' `generate`."""


def stream_text(generate: Generate, stop_strings: Sequence[str], inputs: Inputs) -> Generator[str]:
    """Yield the pieces of a text while `generate` runs in another thread, until one of `stop_strings`.

    Closing the generator stops the thread. Errors of `generate` are raised here.
    """
    streamer = inputs.stream_decoder()
    stopped, errors = threading.Event(), []

    def run() -> None:
        try:
            generate(streamer=streamer, stopping_criteria=StoppingCriteriaList([_StopOnEvent(stopped)]))
        except BaseException as error:  # raised again in the thread that reads the stream
            errors.append(error)
            streamer.end()

    thread = threading.Thread(target=run, name="peftlab-generate")
    thread.start()
    try:
        yield from truncate_stream(streamer, stop_strings)
    finally:
        stopped.set()
        thread.join()
    if errors:
        raise errors[0]


def truncate_stream(pieces: Iterator[str], stop_strings: Sequence[str]) -> Iterator[str]:
    """Yield the text trimmed at its start, until the first stop string; no part of a stop string is yielded."""
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
            return
        num_safe = len(buffer) - max((_partial_match(buffer, stop) for stop in stop_strings), default=0)
        if num_safe:
            yield buffer[:num_safe]
        buffer = buffer[num_safe:]
    if has_text and buffer:
        yield buffer


def _partial_match(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class _StopOnEvent(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, sequences: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Whether each row stops."""
        return torch.full((len(sequences),), self._event.is_set(), dtype=torch.bool, device=sequences.device)
