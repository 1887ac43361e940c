"""What Ollama is told of an adapter: its base, how chats are written, how replies end and are drawn.

Ollama writes chats by Go's templates: beside each of our chat templates lies one that writes the same (`*.gotmpl`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from peftlab.recipe import Generation
from peftlab.store import Adapter
from peftlab.tasks import TASKS, Task
from peftlab.tasks.chat.template import ASSISTANT, CHAT_TEMPLATES, ChatError, ChatTemplate, go_template
from peftlab.tasks.inputs.text import PlainTextInputs

_SYSTEM, _ASKED, _ANSWER, _AGAIN = (
    {"role": role, "content": content}
    for role, content in (
        ("system", "Be brief.\nBe kind."),
        ("user", "Who wrote “Flatland”?"),
        (ASSISTANT, "Abbott did.\n\nIn 1884."),
        ("user", "Why?"),
    )
)
PROBES = [[_ASKED], [_SYSTEM, _ASKED], [_ASKED, _ANSWER, _AGAIN], [_SYSTEM, _ASKED, _ANSWER, _AGAIN]]
"""Chats that two templates write alike only if they are the same but for blanks around messages."""
PROMPT = "{{ .Prompt }}"
QUOTES = '"""'


class Modelfile:
    """For an adapter of causal-lm; `base_name` is what Ollama has its base under, if that is known."""

    def __init__(self, adapter: Adapter, task: Task, inputs: PlainTextInputs, base_name: str | None = None) -> None:
        self._adapter, self._base_name, self._tokenizer = adapter, base_name, inputs.tokenizer
        generation = task.outputs.chat_generation(str(adapter), task.type)
        self._generation: Mapping[str, Any] = {**Generation().model_dump(), **generation.settings}
        self._chats = TASKS[task.type].input_columns(task)[0] == "instruction"
        self._system = task.options["system"] if self._chats else None
        self._stops = generation.find_stop_strings(inputs)
        source = task.state["chat_template"]
        self._template = same_template(source, inputs.tokenizer.special_tokens_map) if self._chats else None

    @property
    def notes(self) -> list[str]:
        """What Ollama does otherwise."""
        return [*self._open_base(), *self._otherwise()]

    def refused(self) -> Iterator[str]:
        """What cannot be said to it."""
        name = self._base_name
        if name is not None and not (name.strip() and name.isprintable() and '"' not in name):
            yield f"{name!r} is no name in its library, and no file, that a Modelfile can say after FROM."
        if self._chats and self._template is None:
            yield (
                "its chat template is none of those that peftlab can say in Ollama's language "
                f"({', '.join(CHAT_TEMPLATES)}). Tune it with one of these as task.template, or take gguf-lora: "
                "llama-server takes the template as it is."
            )
        for what, text in [("task.system", self._system or ""), *(("an ending", stop) for stop in self._stops)]:
            if QUOTES in text or not all(letter.isprintable() or letter in "\n\t" for letter in text):
                yield f"{what} has three quotes in a row, or letters that a Modelfile loses: {text!r}."

    def text(self, gguf: str) -> str:
        """The whole file, for an adapter in the file `gguf` beside it."""
        lines = [f"# {self._adapter}, tuned by peftlab on {self._adapter.manifest.base.model}."]
        lines += [f"# {note}" for note in self.notes]
        lines += [f"FROM {self._base_name}" if self._base_name else "# FROM ./base.gguf", f"ADAPTER ./{gguf}"]
        lines.append(f"TEMPLATE {_quoted(self._go_template())}")
        lines += [f"SYSTEM {_quoted(self._system)}"] if self._system else []
        lines += [f"PARAMETER stop {_quoted(stop)}" for stop in self._stops]
        lines += [f"PARAMETER {name} {value}" for name, value in self._parameters().items()]
        return "\n".join(lines) + "\n"

    def _go_template(self) -> str:
        if self._template is None:
            return PROMPT
        begin = "" if self._begins_by_itself else self._tokenizer.bos_token or ""
        return go_template(self._template, bos_token=begin, eos_token=self._tokenizer.eos_token or "")

    def _parameters(self) -> dict[str, Any]:
        """Ollama's own defaults are others, so each is said."""
        asked = self._generation
        drawn = {name: asked[name] for name in ("temperature", "top_p", "top_k")}
        penalty = asked["repetition_penalty"]
        return {
            **(drawn if asked["do_sample"] else {"temperature": 0}),
            "num_predict": asked["max_new_tokens"],
            "repeat_penalty": penalty,
            **({"repeat_last_n": -1} if penalty != 1 else {}),  # of the whole text, as Transformers looks at it
        }

    @property
    def _begins_by_itself(self) -> bool:
        """Whether the tokenizer, and so llama.cpp with this base, begins each text with the token for it."""
        begin = self._tokenizer.bos_token_id
        return begin is not None and self._tokenizer("text").input_ids[0] == begin

    def _open_base(self) -> Iterator[str]:
        if not self._base_name:
            yield (
                "FROM is left open: name the base as Ollama has it (peftlab export … --from NAME), or its GGUF file, "
                f"which llama.cpp makes of the folder of {self._adapter.manifest.base.model}: "
                "python convert_hf_to_gguf.py FOLDER --outfile base.gguf"
            )

    def _otherwise(self) -> Iterator[str]:
        if (beams := self._generation["num_beams"]) > 1:
            yield f"It searches by {beams} beams here, and Ollama knows none: replies will be others."
        if size := self._generation["no_repeat_ngram_size"]:
            yield f"No run of {size} tokens comes twice here, and Ollama knows no such rule: replies may be others."
        if self._chats:
            yield "Ollama joins messages in a row of one role, and keeps blanks around messages; peftlab does neither."
        if self._template and self._begins_by_itself and "bos_token" not in go_template(self._template):
            begin = self._tokenizer.bos_token
            yield f"Ollama begins each chat with {begin}, as this base's tokenizer does; it was tuned on chats without."


def same_template(source: str, special: Mapping[str, Any]) -> str | None:
    """The name of the chat template of ours that writes all `PROBES` as `source` does, if there is one."""
    written = _probed(source, special)
    ours = {name: _probed(file.read_text(encoding="utf8"), special) for name, file in CHAT_TEMPLATES.items()}
    return next((name for name, texts in ours.items() if written and texts == written), None)


def _probed(source: str, special: Mapping[str, Any]) -> list[str] | None:
    template = ChatTemplate(source, special)
    try:
        return [template.prompt(chat) for chat in PROBES]
    except ChatError:
        return None


def _quoted(text: str) -> str:
    return f"{QUOTES}{text}{QUOTES}"
