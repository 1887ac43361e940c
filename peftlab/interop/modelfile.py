"""Write a Modelfile, in which Ollama reads an adapter's base, chat template, stop strings and sampling options.

Ollama's chat templates are Go templates. Each of our chat templates has a Go template that writes the same text
(`*.gotmpl`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from peftlab.recipe import Generation
from peftlab.store import Adapter
from peftlab.tasks import TASKS, Feature, Task
from peftlab.tasks.chat.template import ASSISTANT, CHAT_TEMPLATES, ChatError, ChatTemplate, go_template
from peftlab.tasks.inputs.text import PlainTextInputs

_SYSTEM, _FIRST, _REPLY, _SECOND = (
    {"role": role, "content": content}
    for role, content in (
        ("system", "Be brief.\nBe kind."),
        ("user", "Who wrote “Flatland”?"),
        (ASSISTANT, "Abbott did.\n\nIn 1884."),
        ("user", "Why?"),
    )
)
PROBE_CHATS = [[_FIRST], [_SYSTEM, _FIRST], [_FIRST, _REPLY, _SECOND], [_SYSTEM, _FIRST, _REPLY, _SECOND]]
"""Two templates with the same text for these chats count as equal; white space around messages is not tested."""
PROMPT = "{{ .Prompt }}"
QUOTES = '"""'


class Modelfile:
    """The Modelfile of a causal-lm adapter; `base_name` is the base's name in Ollama, if the user gave it."""

    def __init__(self, adapter: Adapter, task: Task, inputs: PlainTextInputs, base_name: str | None = None) -> None:
        self._adapter, self._base_name, self._tokenizer = adapter, base_name, inputs.tokenizer
        generation = task.outputs.generation(Feature({}, labels=None))
        assert generation  # causal language models generate
        self._generation: Mapping[str, Any] = {**Generation().model_dump(), **generation.settings}
        self._has_chats = TASKS[task.type].input_columns(task)[0] == "instruction"
        self._system = task.options["system"] if self._has_chats else None
        self._stop_strings = generation.find_stop_strings(inputs)
        source = task.state["chat_template"]
        self._template = find_same_template(source, inputs.tokenizer.special_tokens_map) if self._has_chats else None

    @property
    def warnings(self) -> list[str]:
        """A sentence for each thing that the user must add, or that Ollama does differently from peftlab."""
        return [*self._base_warnings(), *self._generation_warnings(), *self._chat_warnings()]

    def unsupported(self) -> Iterator[str]:
        """Yield each reason why a Modelfile cannot describe the adapter."""
        name = self._base_name
        if name is not None and not (name.strip() and name.isprintable() and '"' not in name):
            yield f"{name!r} is neither a name in its library nor a file that a Modelfile can name after FROM."
        if self._has_chats and self._template is None:
            yield (
                "its chat template is none of those that peftlab can translate to Ollama's language "
                f"({', '.join(CHAT_TEMPLATES)}). Tune it with one of these as task.template, or take gguf-lora: "
                "llama-server takes the template as it is."
            )
        for what, text in [("task.system", self._system or ""), *(("a stop string", s) for s in self._stop_strings)]:
            if QUOTES in text or not all(letter.isprintable() or letter in "\n\t" for letter in text):
                yield f"{what} has three quotes in a row, or characters that a Modelfile cannot contain: {text!r}."

    def text(self, gguf_file: str) -> str:
        """The text of the Modelfile, for an adapter in `gguf_file` in the same folder."""
        lines = [f"# {self._adapter}, tuned by peftlab on {self._adapter.manifest.base.model}."]
        lines += [f"# {warning}" for warning in self.warnings]
        lines += [f"FROM {self._base_name}" if self._base_name else "# FROM ./base.gguf", f"ADAPTER ./{gguf_file}"]
        lines.append(f"TEMPLATE {_quote(self._go_template())}")
        lines += [f"SYSTEM {_quote(self._system)}"] if self._system else []
        lines += [f"PARAMETER stop {_quote(stop)}" for stop in self._stop_strings]
        lines += [f"PARAMETER {name} {value}" for name, value in self._parameters().items()]
        return "\n".join(lines) + "\n"

    def _go_template(self) -> str:
        if self._template is None:
            return PROMPT
        bos_token = "" if self._tokenizer_adds_bos else self._tokenizer.bos_token or ""
        return go_template(self._template, bos_token=bos_token, eos_token=self._tokenizer.eos_token or "")

    def _parameters(self) -> dict[str, Any]:
        """All generation settings, because Ollama's defaults are different."""
        generation = self._generation
        sampling = {name: generation[name] for name in ("temperature", "top_p", "top_k")}
        penalty = generation["repetition_penalty"]
        return {
            **(sampling if generation["do_sample"] else {"temperature": 0}),
            "num_predict": generation["max_new_tokens"],
            "repeat_penalty": penalty,
            **({"repeat_last_n": -1} if penalty != 1 else {}),  # the whole text, as in Transformers
        }

    @property
    def _tokenizer_adds_bos(self) -> bool:
        """Whether the tokenizer, and thus llama.cpp with this base, starts each text with the BOS token."""
        bos_token_id = self._tokenizer.bos_token_id
        return bos_token_id is not None and self._tokenizer("text").input_ids[0] == bos_token_id

    def _base_warnings(self) -> Iterator[str]:
        if not self._base_name:
            yield (
                "FROM is left open: name the base as Ollama has it (peftlab export … --from NAME), or its GGUF file, "
                f"which llama.cpp makes from the folder of {self._adapter.manifest.base.model}: "
                "python convert_hf_to_gguf.py FOLDER --outfile base.gguf"
            )

    def _generation_warnings(self) -> Iterator[str]:
        if (num_beams := self._generation["num_beams"]) > 1:
            yield f"peftlab searches with {num_beams} beams, and Ollama has no beam search: replies will differ."
        if size := self._generation["no_repeat_ngram_size"]:
            yield f"peftlab repeats no sequence of {size} tokens, and Ollama has no such rule: replies may differ."

    def _chat_warnings(self) -> Iterator[str]:
        if self._has_chats:
            yield (
                "Ollama joins consecutive messages of one role, and keeps white space around messages; peftlab does "
                "neither."
            )
        if self._template and self._tokenizer_adds_bos and "bos_token" not in go_template(self._template):
            bos_token = self._tokenizer.bos_token
            yield (
                f"Ollama begins each chat with {bos_token}, as this base's tokenizer does; the adapter was tuned on "
                "chats without it."
            )


def find_same_template(source: str, special_tokens: Mapping[str, Any]) -> str | None:
    """The name of our chat template that writes all `PROBE_CHATS` as `source` does, if there is one."""
    expected = _write_probes(source, special_tokens)
    sources = {name: file.read_text(encoding="utf8") for name, file in CHAT_TEMPLATES.items()}
    ours = {name: _write_probes(text, special_tokens) for name, text in sources.items()}
    return next((name for name, texts in ours.items() if expected and texts == expected), None)


def _write_probes(source: str, special_tokens: Mapping[str, Any]) -> list[str] | None:
    template = ChatTemplate(source, special_tokens)
    try:
        return [template.prompt(chat).text for chat in PROBE_CHATS]
    except ChatError:
        return None


def _quote(text: str) -> str:
    return f"{QUOTES}{text}{QUOTES}"
