"""The task causal-lm: instructions with answers, chats, prompts with completions, and plain text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.loading import add_invalid_rows
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector, RecipeError, ValidationIssue
from peftlab.recipe.tasks import TEMPLATE_ENDING
from peftlab.tasks.chat.examples import Chat, Passage, Reply, is_prompt, render_example
from peftlab.tasks.chat.messages import Messages, check_plain_columns, instruction_messages, read_messages
from peftlab.tasks.chat.template import (
    ASSISTANT,
    CHAT_TEMPLATES,
    ChatError,
    ChatTemplate,
    Message,
    RenderedText,
    default_template,
    read_template,
)
from peftlab.tasks.generation.reply_text import trim_reply
from peftlab.tasks.inputs.columns import chosen_form, optional_text_column, text_column
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.rendered_text import (
    slice_feature,
    split_into_chunks,
    split_into_scored_windows,
    tokenize_rendered,
)
from peftlab.tasks.inputs.text import PlainTextInputs, TextInputs
from peftlab.tasks.language_model_heads import LanguageModelHead
from peftlab.tasks.metrics.perplexity import TokenLoss, perplexity_scores, sum_token_losses
from peftlab.tasks.outputs import ChatOutputs, Outputs, TextGeneration
from peftlab.tasks.task import Metric, ModelContext, Scores, Targets, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMS = (("messages",), ("instruction", "output"), ("prompt", "completion"), ("text",), ("conversations",))
ASKED_FORMS = (("messages",), ("instruction",), ("prompt",), ("conversations",))
MAX_NEW_TOKENS = 128
MESSAGE_FORMS = (("messages",), ("conversations",))
AFTER_LAST = "message after the last answer"
NOTHING_IN_LOSS = "nothing to learn within its first tokens"
ONE_TEXT_PER_ANSWER = "chat of several texts, one for each answer, because the template rewrites earlier turns"
SHORTEST_QUESTION = 8  # tokens


class CausalLmTask(Task):
    """Rows have `messages`, or `instruction` (and `input`) and `output`, or `prompt` and `completion`, or `text`.

    The first two are formatted by the chat template; the others have no template. The loss is on answers, completions,
    or all of the text, and on the end token of each.
    """

    type = "causal-lm"
    inputs_class = PlainTextInputs

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        template: str | None = None,
        system: str | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(labels=labels)
        self.template_file = Path(template) if template and template.endswith(TEMPLATE_ENDING) else None
        self.template, self.system = self.template_file.name if self.template_file else template, system
        self.generation = {"max_new_tokens": MAX_NEW_TOKENS, **(generation or {})}
        self.state = {"asked by": "prompt", "chat_template": None, "answer_opening": ""}
        self.metric = Metric("perplexity", self.score, greater_is_better=False)
        self.targets = Targets("answers", self.count, self.lost, empty_reason=NOTHING_IN_LOSS)

    @property
    def head(self) -> LanguageModelHead:
        """The base model's own."""
        return LanguageModelHead()

    @property
    def outputs(self) -> Outputs:
        """Generated replies."""
        return ChatOutputs(self._generation(), self.learned_stop_strings)

    def _generation(self) -> TextGeneration:
        return TextGeneration(self.generation, self.stop_strings, self.state, {})

    @property
    def options(self) -> dict[str, Any]:
        """The chat template, the system prompt, and the settings for generating replies."""
        return {"template": self.template, "system": self.system, "generation": self.generation}

    def input_columns(self) -> tuple[str, ...]:
        """A single string is an instruction if most training rows were chats, else a prompt."""
        return ("instruction", "input") if self.state["asked by"] == "instruction" else ("prompt",)

    def read(self, row: Row) -> Chat | Passage:
        """Read a row with its answers, completion or text. Raises RowError with what was expected."""
        form = chosen_form(row, *FORMS)
        if form in MESSAGE_FORMS:
            return self._chat_with_answers(row, read_messages(row, form[0]))
        if form == ("instruction", "output"):
            answer = {"role": ASSISTANT, "content": text_column(row, "output")}
            return self._chat_with_answers(row, Messages([*instruction_messages(row), answer]))
        check_plain_columns(row)
        if form == ("text",):
            return Passage("", row.where, completion=text_column(row, "text"))
        return Passage(optional_text_column(row, "prompt"), row.where, completion=text_column(row, "completion"))

    def read_input(self, row: Row) -> Chat | Passage:
        """Read a row whose reply or continuation is to be generated."""
        form = chosen_form(row, *ASKED_FORMS)
        if form == ("prompt",):
            check_plain_columns(row)
            return Passage(optional_text_column(row, "prompt"), row.where)
        messages = read_messages(row, form[0]).messages if form in MESSAGE_FORMS else instruction_messages(row)
        if messages[-1]["role"] == ASSISTANT:
            raise RowError(f"expected the last message not to have the role {ASSISTANT}, because the model answers it")
        return self._chat(row, messages)

    def _chat_with_answers(self, row: Row, read: Messages) -> Chat:
        """Drop the messages after the last answer in the loss."""
        answers = [i for i, message in enumerate(read.messages) if message["role"] == ASSISTANT]
        trained = [i for i in answers if i not in read.not_in_loss]
        if not trained:
            reason = " with weight 1" if answers else ""
            raise RowError(f"expected a message of the {ASSISTANT}{reason}, because the loss is on these messages")
        kept = read.messages[: trained[-1] + 1]
        warnings = {f"message key not read: {key}": count for key, count in read.unread.items()}
        warnings |= {AFTER_LAST: after} if (after := len(read.messages) - len(kept)) else {}
        skipped = [number for number, i in enumerate(answers) if i in read.not_in_loss and i < len(kept)]
        warnings |= {"answer of weight 0, not in the loss": len(skipped)} if skipped else {}
        return replace(self._chat(row, kept, warnings), skipped=tuple(skipped))

    def _chat(self, row: Row, messages: list[Message], warnings: Mapping[str, int] | None = None) -> Chat:
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        asked = next((message for message in reversed(messages) if message["role"] != ASSISTANT), messages[0])
        return Chat(asked["content"], row.where, warnings=warnings or {}, messages=tuple(messages))

    def fit_labels(self, examples: Mapping[str, Sequence[Chat | Passage]], errors: ErrorCollector) -> None:
        """Decide whether a single string is an instruction or a prompt, and read the chat template if it is a file."""
        if self.template_file:
            self.state["chat_template"] = read_template(self.template_file, errors, key="task.template")
        chats = sum(isinstance(example, Chat) for example in examples["train"])
        self.state["asked by"] = "instruction" if chats > len(examples["train"]) / 2 else "prompt"

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """Choose the chat template: the recipe's, the tokenizer's own, or `plain`; see `Task.bind_to_base`."""
        self.state["end_tokens"] = list(context.end_tokens)
        own = default_template(context.inputs.tokenizer.chat_template, errors, wanted=self.template in (None, "base"))
        if self.template == "base" and own is None:
            hint = f"Name one of {', '.join(CHAT_TEMPLATES)}."
            errors.add("the tokenizer of this base has no chat template.", key="task.template", hint=hint)
            return
        if own and self.template in (None, "base"):
            self.state["chat_template"] = own
        elif not self.template_file:  # which was read with the rows
            self.state["chat_template"] = CHAT_TEMPLATES[self.template or "plain"].read_text(encoding="utf8")
        self.state["answer_opening"] = self._find_opening(examples.get("train", ()), context.inputs.tokenizer)
        self._check_ends(examples.get("train", ()), context.inputs.tokenizer, errors)
        for split in examples.values():
            self._written(split, context.inputs.tokenizer, errors)
        self._check_prompt_length(context.max_length, errors)

    def _find_opening(self, examples: Sequence[Any], tokenizer: "PreTrainedTokenizerBase") -> str:
        """What the template writes before every answer of the training rows; empty if some answers bring their own."""
        template = ChatTemplate(self.state["chat_template"], tokenizer.special_tokens_map)
        chats = [one.messages for one in examples if isinstance(one, Chat)]
        if template.has_marks or not template.turn_format.opening or not chats:
            return ""
        try:
            return template.turn_format.opening if all(map(template.writes_opening, chats)) else ""
        except ChatError:  # `_written` reports it
            return ""

    def _check_ends(
        self, examples: Sequence[Any], tokenizer: "PreTrainedTokenizerBase", errors: ErrorCollector
    ) -> None:
        """Check that something ends every text: the tokenizer's eos token, or the template."""
        has_chats_only = bool(examples) and all(isinstance(one, Chat) for one in examples)
        ending = self._chat_template(tokenizer).ending if has_chats_only else ""
        if not ending and tokenizer.eos_token is None:
            message = "the tokenizer of this base has no eos_token, so nothing would end a reply."
            hint = "Set eos_token in its tokenizer_config.json."
            hint += (
                " Or name a template that ends its answers, as chatml does (task.template)." if has_chats_only else ""
            )
            errors.add(message, key="base.model", hint=hint)
        elif ending and ending not in tokenizer.decode(tokenizer(f"a{ending}", add_special_tokens=False)["input_ids"]):
            message = f"the tokenizer of this base changes {ending}, with which the template ends answers."
            hint = f"Add {ending} to its special tokens, or use another template (task.template)."
            errors.add(message, key="base.model", hint=hint)

    def _check_prompt_length(self, max_length: int, errors: ErrorCollector) -> None:
        if (budget := max_length - self.generation["max_new_tokens"]) < SHORTEST_QUESTION:
            message = f"a reply of {self.generation['max_new_tokens']} tokens leaves {max(0, budget)} of {max_length}"
            hint = "Use fewer, or raise data.max_length if it is below the maximum of the base."
            errors.add(f"{message} for the prompt.", key="task.generation.max_new_tokens", hint=hint)

    def encode(
        self,
        examples: Sequence[Chat | Passage],
        inputs: TextInputs,
        max_length: int,
        *,
        training: bool,
    ) -> list[list[Feature]]:
        """See `Task.encode`.

        For training, plain text is split into chunks, and other examples are truncated to their first `max_length`
        tokens. For scoring, texts are split into windows that overlap by half; each token is scored once, with as much
        context as fits. Prompts keep their last tokens, so that the reply fits.
        """
        tokenizer = inputs.tokenizer
        with ErrorCollector() as errors:
            written = self._written(examples, tokenizer, errors)
        templated = [isinstance(example, Chat) for example, texts in zip(examples, written, strict=True) for _ in texts]
        wholes = iter(tokenize_rendered(templated, list(chain(*written)), tokenizer))
        return [
            [self._encode_prompt(next(wholes), max_length, example.where)]
            if is_prompt(example)
            else self._encode_texts(example, list(islice(wholes, len(texts))), max_length, training)
            for example, texts in zip(examples, written, strict=True)
        ]

    def _chat_template(self, tokenizer: "PreTrainedTokenizerBase") -> ChatTemplate:
        opening = self.state.get("answer_opening", "")
        return ChatTemplate(self.state["chat_template"], tokenizer.special_tokens_map, opening=opening)

    def _written(
        self, examples: Sequence[Chat | Passage], tokenizer: "PreTrainedTokenizerBase", errors: ErrorCollector
    ) -> list[list[RenderedText]]:
        """Format each example, with one text per answer if the template rewrites earlier turns; it is an error if the
        chat template fails."""
        template = self._chat_template(tokenizer)
        written: list[list[RenderedText]] = []
        broken: dict[str, str] = {}
        for example in examples:
            try:
                written.append(render_example(example, template, tokenizer.eos_token or ""))
            except ChatError as error:
                broken[example.where] = f"{error}."
        add_invalid_rows(list(broken.items()), errors, read=len({example.where for example in examples}))
        return written

    def _encode_texts(
        self, example: Chat | Passage, texts: Sequence[Feature], max_length: int, training: bool
    ) -> list[Feature]:
        """The features of an example with several texts, in which answers are numbered as in the example."""
        if len(texts) == 1:
            return self._encode_answers(example, texts[0], max_length, training)
        numbered = [
            replace(
                text,
                positions=[(token, number) for token, _ in text.positions],
                warnings=[*text.warnings, ONE_TEXT_PER_ANSWER],
            )
            for number, text in enumerate(texts)
        ]
        return [part for text in numbered for part in self._encode_answers(example, text, max_length, training)]

    def _encode_answers(self, example: Chat | Passage, full: Feature, max_length: int, training: bool) -> list[Feature]:
        parts: Iterable[Feature]
        if not training:
            parts = split_into_scored_windows(full, max_length)
        elif isinstance(example, Passage) and not example.text:
            parts = split_into_chunks(full, max_length)
        else:
            parts = [slice_feature(full, 0, max_length)]
        return [part for part in parts if self.head.loss_terms(part)]

    def _encode_prompt(self, full: Feature, max_length: int, where: str) -> Feature:
        if not len(full):
            message = "expected some text: the tokenizer of this base writes no token before a text."
            raise RecipeError([ValidationIssue(message, where)])
        budget = max(1, max_length - self.generation["max_new_tokens"])
        inputs = {name: values[-budget:] for name, values in full.inputs.items()}
        return Feature(inputs, None, truncated=len(full) > budget)

    def count(self, example: Chat | Passage) -> int:
        """The number of answers."""
        if isinstance(example, Passage):
            return 1
        answers = sum(message["role"] == ASSISTANT for message in example.messages)
        return example.answers_in_loss or answers - len(example.skipped)

    def lost(self, example: Chat | Passage, features: Sequence[Feature]) -> int:
        """The number of answers whose end is truncated, or that the tokenizer cannot write."""
        ends = {answer for feature in features for _, answer in feature.positions}
        return self.count(example) - len(ends)

    def stop_strings(self, inputs: Any) -> list[str]:
        """The strings that end an answer in training, and the recipe's `stop_strings`."""
        return list(dict.fromkeys([*self.learned_stop_strings(inputs), *self.generation.get("stop_strings", ())]))

    def learned_stop_strings(self, inputs: TextInputs) -> list[str]:
        """The string that the template writes after an answer, and the tokenizer's eos token."""
        tokenizer = inputs.tokenizer
        stop_strings = [self._chat_template(tokenizer).ending, tokenizer.eos_token or ""]
        return list(dict.fromkeys(ending for ending in stop_strings if ending))

    def decode(self, example: Chat | Passage, features: Sequence[Feature], logits: Sequence[Any]) -> TokenLoss | Reply:
        """For a prompt, the reply; for other examples, the token losses, summed over windows."""
        if is_prompt(example):
            (prediction,), (feature,) = logits, features
            return Reply(example.text, trim_reply(prediction.text), prediction.finished, feature.truncated)
        return sum_token_losses(example.text, logits, sum(map(self.head.loss_terms, features)))

    def score(self, examples: Sequence[Chat | Passage], predictions: Sequence[TokenLoss]) -> Scores:
        """Perplexity, loss (nats per token), and the fraction of tokens that were predicted right."""
        return perplexity_scores(predictions)
