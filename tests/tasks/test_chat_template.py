"""Chat templates: the text of a chat, and what is learnt of it, against texts marked by hand."""

import re

import pytest

from peftlab.data import Row
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.chat.template import CHAT_TEMPLATES, ChatError, ChatTemplate, tokens_in_spans
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.task import ModelContext
from tests.language_models import BEGIN, END, save_byte_tokenizer

SPECIAL = {"bos_token": BEGIN, "eos_token": END}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who came?"},
    {"role": "assistant", "content": "Nobody."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It rained."},
]
MARKED = {  # « and » stand around what is learnt
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWho came?<|im_end|>\n<|im_start|>assistant\n«Nobody.<|im_end|>»\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n«It rained.<|im_end|>»\n"
    ),
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWho came?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Nobody.<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«It rained.<|eot_id|>»"
    ),
    "mistral": "<s>[INST] Be brief.\n\nWho came? [/INST]« Nobody.</s>»[INST] Why? [/INST]« It rained.</s>»",
    "gemma": (
        "<s><start_of_turn>user\nBe brief.\n\nWho came?<end_of_turn>\n"
        "<start_of_turn>model\n«Nobody.<end_of_turn>»\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n«It rained.<end_of_turn>»\n"
    ),
    "plain": (
        "<s>Be brief.\n\n### Instruction:\nWho came?\n\n### Response:\n«Nobody.</s>»\n\n"
        "### Instruction:\nWhy?\n\n### Response:\n«It rained.</s>»\n\n"
    ),
}
ENDINGS = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "mistral": END, "gemma": "<end_of_turn>", "plain": END}
WITH_GENERATION = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def load_template(name):
    return ChatTemplate(CHAT_TEMPLATES[name].read_text(encoding="utf8"), SPECIAL)


def parse_spans(marked):
    """The text without its marks, and the spans that they stand around."""
    spans, text = [], ""
    for part in re.split("(«[^»]*»)", marked):
        said = part.strip("«»") if part.startswith("«") else part
        if part.startswith("«"):
            spans.append((len(text), len(text) + len(said)))
        text += said
    return text, spans


def test_every_template_has_expected_text():
    assert set(MARKED) == set(ENDINGS) == set(CHAT_TEMPLATES)


@pytest.mark.parametrize("name", MARKED)
def test_chat_text_and_target_spans(name):
    text, spans = parse_spans(MARKED[name])
    assert load_template(name).write(CHAT) == (text, spans, [start for start, _ in spans])
    assert load_template(name).ending == ENDINGS[name]


@pytest.mark.parametrize("name", MARKED)
def test_prompt_is_chat_before_answer(name):
    text, spans = parse_spans(MARKED[name])
    assert load_template(name).prompt(CHAT[:4]).text == text[: spans[-1][0]]
    assert load_template(name).prompt(CHAT[:2]).text == text[: spans[0][0]]


@pytest.mark.parametrize("name", MARKED)
def test_labels_decode_to_target_spans(name, tmp_path):
    tokenizer = save_byte_tokenizer(tmp_path)
    task = CausalLmTask(template=name)
    task.bind_to_base(ModelContext(TextInputs(tokenizer), None, 256), {}, None)
    example = task.read(Row({"messages": CHAT}, "rows.jsonl:1"))
    (feature,) = task.encode([example], TextInputs(tokenizer), 256, training=True)[0]
    text, spans = parse_spans(MARKED[name])
    assert tokenizer.decode(feature.inputs["input_ids"]) == text
    learnt = [token for token in feature.labels if token != IGNORED]
    assert tokenizer.decode(learnt) == "".join(text[start:end] for start, end in spans)
    assert learnt[-1] == tokenizer.convert_tokens_to_ids(ENDINGS[name])  # the end is learnt


def test_generation_blocks_select_target_spans():
    written = ChatTemplate(WITH_GENERATION, SPECIAL).write(CHAT)
    assert [written.text[start:end] for start, end in written.loss_spans] == ["Nobody.</s>", "It rained.</s>"]
    assert ChatTemplate(WITH_GENERATION, SPECIAL).ending == END


def test_template_without_end_uses_eos_token():
    bare = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    prompted = bare + "{% if add_generation_prompt %}assistant: {% endif %}"
    written = ChatTemplate(prompted, SPECIAL).write(CHAT[:3])
    assert written.text.endswith("assistant: Nobody.</s>")
    assert [written.text[start:end] for start, end in written.loss_spans] == ["Nobody.</s>"]


def test_template_that_changes_past_turn_raises_chat_error():
    rewriting = (
        "{% for message in messages %}{{ message['role'] + ': ' + (message['content'] if loop.last else '…') + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(ChatError, match="writes a turn differently when others follow"):
        ChatTemplate(rewriting, SPECIAL).write(CHAT)


def test_template_exception_raises_chat_error():
    raising = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(ChatError, match="refuses these messages: Roles must alternate"):
        ChatTemplate(raising, SPECIAL).prompt(CHAT)


def test_tokens_in_spans_include_partial_overlap():
    offsets = [(0, 0), (0, 2), (2, 5), (5, 5), (5, 8), (8, 9)]
    assert list(tokens_in_spans([(3, 6)], offsets)) == [False, False, True, False, True, False]
    assert list(tokens_in_spans([(0, 1), (8, 9)], offsets)) == [False, True, False, False, False, True]
    assert not any(tokens_in_spans([], offsets))
