"""A reply that is heard while it is written."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from peftlab.tasks.inputs.inputs import Inputs

Write = Callable[..., object]
"""Writes on with Transformers' `generate`, to which it hands its keyword arguments on."""


def stream_text(write: Write, endings: Sequence[str], inputs: Inputs) -> Generator[str]:
    """The pieces of a text as `write` makes them, in a thread of its own, up to any of `endings`.

    Whoever stops listening stops the writing. What `write` raises is raised here.
    """
    streamer = inputs.stream_decoder()
    unheard, faults = threading.Event(), []

    def run() -> None:
        try:
            write(streamer=streamer, stopping_criteria=StoppingCriteriaList([_Stopped(unheard)]))
        except BaseException as fault:  # told to the one who listens
            faults.append(fault)
            streamer.end()

    writer = threading.Thread(target=run, name="peftlab-writer")
    writer.start()
    try:
        yield from until(streamer, endings)
    finally:
        unheard.set()
        writer.join()
    if faults:
        raise faults[0]


def until(pieces: Iterator[str], endings: Sequence[str]) -> Iterator[str]:
    """The same text without leading blanks and up to the first ending, of which no part is told before it is sure."""
    held, begun = "", False
    for piece in pieces:
        held = held + piece if begun else (held + piece).lstrip()
        begun = begun or bool(held)
        places = [place for ending in endings if (place := held.find(ending)) >= 0]
        if places:
            yield held[: min(places)]
            return
        sure = len(held) - max((_begun(held, ending) for ending in endings), default=0)
        if sure:
            yield held[:sure]
        held = held[sure:]
    if held:
        yield held


def _begun(text: str, ending: str) -> int:
    """How many characters at the end of `text` may be the beginning of `ending`."""
    return next((n for n in range(min(len(ending), len(text)), 0, -1) if text.endswith(ending[:n])), 0)


class _Stopped(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, sequences: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Whether each row is to stop."""
        return torch.full((len(sequences),), self._event.is_set(), dtype=torch.bool, device=sequences.device)
