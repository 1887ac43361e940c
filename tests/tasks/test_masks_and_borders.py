"""What is learnt and what is asked, for chat templates in the form of those that models are published with.

For every template and chat: the tokens in the loss are the answers and their ends, and the tokens of a prompt are the
beginning of the tokens that were trained.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from peftlab.data import Row
from peftlab.errors import ErrorCollector, RecipeError
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.inputs.rendered_text import SPLIT_BORDER
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.preference import PreferenceTask
from peftlab.tasks.task import ModelContext

FOLDER = Path(__file__).parent / "chat_templates"
BEGIN, END = "<s>", "</s>"
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end|>",
    "<|user|>",
]
SPECIAL += ["<|assistant|>", "<start_of_turn>", "<end_of_turn>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"]
ENDS = {  # of the last answer, and of earlier ones where they differ
    "chatml": "<|im_end|>", "chatml-always-header": "<|im_end|>", "llama-2": " </s>", "llama-3": "<|eot_id|>",
    "llama-3-always-header": "<|eot_id|>", "alpaca-always-header": "</s>", "zephyr": "</s>", "gemma": "<end_of_turn>",
    "phi-3": "<|end|>", "mistral-tools": "</s>", "vicuna": "</s>", "alpaca": "</s>",
    "command-r": "<|END_OF_TURN_TOKEN|>", "deepseek": "</s>", "qwen-2.5": "<|im_end|>", "qwen-3-think": "<|im_end|>",
    "harmony": "<|return|>", "marked-header": "<|im_end|>",
}  # fmt: skip
EARLIER_ENDS = {"alpaca-always-header": "", "harmony": ""}
WITHOUT_SYSTEM = {"gemma", "mistral-tools"}  # the latter writes it only where no answer follows
TEXTS = ["the train was late", "It rained in Rome, and the old pier was closed.", "def add(a, b):\n    return a + b"]
WORDS = st.sampled_from(
    ["Who", "came", "at", "noon", "42", "é", "漢字", "🙂", "don't", "###", "a+b", "<b>", "USER", "x:", "\n"]
)
CONTENTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join).filter(str.strip).map(str.strip)


def byte_level(*, appends_end):
    """Byte-level BPE as Llama 3 has it; with `appends_end` it writes `</s>` behind every text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[BEGIN, END, *SPECIAL], initial_alphabet=alphabet)
    core.train_from_iterator(TEXTS, trainer)
    return _with_frame(core, appends_end)


def metaspace(*, appends_end):
    """SentencePiece BPE with byte fallback as Llama 2 has it: a text begins with a blank of its own."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    special = [BEGIN, END, "<unk>", *SPECIAL]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *bytes_], initial_alphabet=["▁"])
    core.train_from_iterator(TEXTS, trainer)
    return _with_frame(core, appends_end)


def _with_frame(core, appends_end):
    parts = f"{BEGIN} $A {END}" if appends_end else f"{BEGIN} $A"
    tokens = [(token, core.token_to_id(token)) for token in (BEGIN, END) if token in parts]
    core.post_processor = processors.TemplateProcessing(single=parts, special_tokens=tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens=SPECIAL,
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
    )


TOKENIZERS = {
    f"{kind.__name__}{'-with-end' * appends_end}": TextInputs(kind(appends_end=appends_end))
    for kind in (byte_level, metaspace)
    for appends_end in (False, True)
}


def bound_task(template, inputs, rows, cls=CausalLmTask):
    """A task with a template file, bound to the tokenizer, and its examples."""
    task = cls(template=str(FOLDER / f"{template}.jinja"))
    with ErrorCollector() as errors:
        examples = {"train": [task.read(Row(row, f"rows.jsonl:{i}")) for i, row in enumerate(rows, 1)]}
        task.fit_labels(examples, errors)
        task.bind_to_base(ModelContext(inputs, None, 4096), examples, errors)
    return task, examples["train"]


def asked_tokens(task, inputs, messages):
    example = task.read_input(Row({"messages": messages}, "row 1"))
    [[feature]] = task.encode([example], inputs, 4096, training=False)
    assert feature.labels is None
    return feature.inputs["input_ids"]


def learnt_runs(feature):
    """The neighbouring tokens that are in the loss, as (place of the first, token ids)."""
    runs, previous = [], None
    for place, label in enumerate(feature.labels):
        if label != IGNORED:
            if previous != place - 1:
                runs.append((place, []))
            runs[-1][1].append(label)
            previous = place
    return runs


def answers_of(chat):
    return [(i, message["content"]) for i, message in enumerate(chat) if message["role"] == "assistant"]


@st.composite
def chats(draw):
    turns = draw(st.lists(st.tuples(CONTENTS, CONTENTS), min_size=1, max_size=3))
    system = [{"role": "system", "content": draw(CONTENTS)}] if draw(st.booleans()) else []
    roles = ("user", "assistant")
    return [*system, *({"role": role, "content": text} for turn in turns for role, text in zip(roles, turn))]  # noqa: B905


def test_every_template_is_tested():
    assert {file.stem for file in FOLDER.glob("*.jinja")} == set(ENDS)


CHEAP = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TOKENIZER = st.sampled_from(sorted(TOKENIZERS))


@pytest.mark.parametrize("template", ENDS)
@CHEAP
@given(chat=chats(), tokenizer=TOKENIZER)
def test_learnt_are_answers_and_ends_and_asked_is_beginning(template, tokenizer, chat):
    inputs = TOKENIZERS[tokenizer]
    if template in WITHOUT_SYSTEM:
        chat = [message for message in chat if message["role"] != "system"]
    task, [example] = bound_task(template, inputs, [{"messages": chat}])
    [features] = task.encode([example], inputs, 4096, training=True)
    assert sorted(number for feature in features for _, number in feature.positions) == list(range(task.count(example)))
    found = [(feature.inputs["input_ids"], *run) for feature in features for run in learnt_runs(feature)]
    answers = answers_of(chat)
    assert len(found) == len(answers)
    for number, ((tokens, place, learnt), (index, answer)) in enumerate(zip(found, answers, strict=True)):
        is_last = number == len(answers) - 1 or len(features) > 1
        end = ENDS[template] if is_last else EARLIER_ENDS.get(template, ENDS[template])
        expected = f"{answer}{end}"
        assert inputs.tokenizer.decode(learnt).lstrip() == expected
        assert asked_tokens(task, inputs, chat[:index]) == tokens[:place]
    assert task.learned_stop_strings(inputs)[0] == ENDS[template].strip()


@pytest.mark.parametrize("template", ENDS)
@settings(CHEAP, max_examples=4)
@given(chat=chats(), tokenizer=TOKENIZER, other=CONTENTS)
def test_preference_learns_last_answers_and_ends(template, tokenizer, chat, other):
    inputs = TOKENIZERS[tokenizer]
    chat = [message for message in chat if message["role"] != "system" or template not in WITHOUT_SYSTEM]
    answer = chat[-1]["content"]
    if answer == other:
        return
    row = {"messages": chat[:-1], "chosen": answer, "rejected": other}
    task, [pair] = bound_task(template, inputs, [row], PreferenceTask)
    [features] = task.encode([pair], inputs, 4096, training=True)
    prompt = asked_tokens(task, inputs, chat[:-1])
    for feature, text in zip(features, (answer, other), strict=True):
        [(place, learnt)] = learnt_runs(feature)
        assert inputs.tokenizer.decode(learnt).lstrip() == f"{text}{ENDS[template]}"
        assert feature.inputs["input_ids"][:place] == prompt


PROMPTS = st.lists(
    st.sampled_from(["Q:", "the", "old", "pier?", "A:", "#", "1", "\t", "\n\n", " ", "  "]), max_size=7
).map("".join)
COMPLETIONS = st.sampled_from(
    ["the harbour", " At noon.", "    return a + b", "1.", "\n\n- a", "漢字", "'s", "?", "\tx", "🙂"]
)


@settings(CHEAP, max_examples=80)
@given(tokenizer=TOKENIZER, prompt=PROMPTS, completion=COMPLETIONS, begins=st.booleans(), ends=st.booleans())
def test_completion_continues_asked_prompt(tokenizer, prompt, completion, begins, ends):
    """A prompt that ends in white space, and texts that hold BOS and EOS."""
    inputs, prompt = TOKENIZERS[tokenizer], f"{BEGIN * begins}{prompt}"
    row = {"prompt": prompt, "completion": f"{completion}{END * ends}"}
    task, [example] = bound_task("chatml", inputs, [row])
    [[feature]] = task.encode([example], inputs, 4096, training=True)
    [[asked]] = task.encode([task.read_input(Row({"prompt": prompt}, "row 1"))], inputs, 4096, training=False)
    tokens, size = feature.inputs["input_ids"], len(asked.inputs["input_ids"])
    assert asked.inputs["input_ids"] == tokens[:size]
    assert feature.labels == [IGNORED] * size + tokens[size:]
    begin, end = inputs.tokenizer.bos_token_id, inputs.tokenizer.eos_token_id
    assert (tokens.count(begin), tokens.count(end), tokens[0], tokens[-1]) == (1, 1, begin, end)
    assert inputs.tokenizer.decode(tokens[size:-1]).lstrip() == completion.lstrip()


def test_template_that_writes_system_only_before_a_reply_is_refused():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    rows = [{"messages": [*chat, {"role": "assistant", "content": "Nobody."}]}]
    with pytest.raises(RecipeError, match=r"rows.jsonl:1: the chat template writes a turn differently .*task.template"):
        bound_task("mistral-tools", TOKENIZERS["byte_level"], rows)


def test_think_block_is_asked_unless_answers_bring_their_own():
    inputs, question = TOKENIZERS["byte_level"], [{"role": "user", "content": "Who?"}]
    plain = {"messages": [*question, {"role": "assistant", "content": "Nobody."}]}
    thinking = {"messages": [*question, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nNobody."}]}
    task, _ = bound_task("qwen-3-think", inputs, [plain])
    asked = inputs.tokenizer.decode(asked_tokens(task, inputs, question))
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    task, examples = bound_task("qwen-3-think", inputs, [plain, thinking])
    asked = asked_tokens(task, inputs, question)
    assert inputs.tokenizer.decode(asked).endswith("<|im_start|>assistant\n")
    for [feature] in task.encode(examples, inputs, 4096, training=True):
        assert feature.inputs["input_ids"][: len(asked)] == asked
        assert feature.labels[len(asked)] != IGNORED


def test_borders_that_merge_are_counted():
    inputs = TOKENIZERS["byte_level"]
    rows = [{"prompt": f"Q: the old pier? A:{blank}", "completion": "the harbour"} for blank in (" ", "", "\n")]
    task, examples = bound_task("chatml", inputs, rows)
    features = [feature for [feature] in task.encode(examples, inputs, 4096, training=True)]
    assert [list(feature.warnings) for feature in features] == [[SPLIT_BORDER], [], []]
