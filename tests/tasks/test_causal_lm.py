"""The task causal-lm: rows, what is learnt of them, scores, and replies, against plain Transformers and PEFT."""

import json
import math

import pytest
import sacrebleu
import torch
from peft import PeftModel
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftlab
from peftlab.base import load_with_head
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import IntegrityError, RecipeError
from peftlab.interop import merge
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.task import ModelContext
from tests import task_stores
from tests.language_models import (
    END,
    ROWS,
    build_language_model,
    instruction_recipe,
    save_byte_tokenizer,
    single_turn_chat,
    transformers_generation,
)
from tests.runs import prepared_run
from tests.task_stores import one_line
from tests.untrained import publish_untrained

QUESTIONS = ["Who wrote the letter?", "Where did it rain, and when did it begin to rain there?", "Who?", "Say it."]
METHODS = {
    "lora": {"type": "lora", "r": 4},
    "wide": {"type": "lora", "r": 8, "target_modules": ["q_proj", "v_proj"]},
    "dora": {"type": "lora", "r": 2, "use_dora": True},
    "ia3": {"type": "ia3"},
    "pfeiffer": {"type": "bottleneck", "variant": "pfeiffer"},
    "houlsby": {"type": "bottleneck", "variant": "houlsby"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 3},
    "last-layers": {"type": "last-layers", "layers": 1},
    "prompt": {"type": "prompt", "num_virtual_tokens": 3},
    "p-tuning": {"type": "p-tuning", "num_virtual_tokens": 2},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def store(base, tmp_path_factory):
    """Untrained, stirred adapters of several methods on one tiny Llama."""
    folder = tmp_path_factory.mktemp("writers")
    recipe = instruction_recipe(folder / "rows", base)
    for name, method in METHODS.items():
        publish_untrained(folder / "store", recipe, {"name": name, "method": method})
    return folder / "store"


@pytest.fixture(scope="module")
def bank(store):
    return peftlab.load(*METHODS, store=store, device="cpu")


def plain_reply(base, adapter, question, **settings):
    """What Transformers' `generate` and plain PEFT give for one question, by the template as the adapter keeps it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter.folder).eval()
    template = adapter.manifest.task.state["chat_template"]
    return transformers_generation(
        model, AutoTokenizer.from_pretrained(base), single_turn_chat(question), template, **settings
    )


@pytest.mark.parametrize("name", METHODS)
def test_greedy_reply_matches_peft(bank, base, name):
    for question in QUESTIONS:
        reply = bank.predict(question, adapters=name)[0].prediction.reply
        assert reply == plain_reply(base, bank.adapter(name), question)


@pytest.mark.parametrize("name", ["prompt", "p-tuning", "prefix"])
def test_cached_generation_matches_uncached(bank, base, name):
    """The same code writes in the bank and through plain PEFT; without a cache each step computes all anew."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, bank.adapter(name).folder).eval()
    tokenizer, template = AutoTokenizer.from_pretrained(base), bank.task(name).state["chat_template"]
    for question in QUESTIONS:
        tokens = tokenizer.apply_chat_template(
            single_turn_chat(question),
            chat_template=template,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        begun = tokens.shape[1]
        while tokens.shape[1] < begun + 12 and tokens[0, -1] != tokenizer.eos_token_id:
            with torch.inference_mode():
                logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
        expected = tokenizer.decode(tokens[0, begun:], skip_special_tokens=True).strip()
        assert bank.predict(question, adapters=name)[0].prediction.reply == expected


def test_base_only_reply_matches_transformers(bank, base):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    for name in METHODS:
        template = bank.task(name).state["chat_template"]
        expected = transformers_generation(model, tokenizer, single_turn_chat(QUESTIONS[0]), template)
        assert "".join(bank.reply(single_turn_chat(QUESTIONS[0]), adapter=name, base_only=True)).strip() == expected


def test_adapters_return_different_text(bank):
    assert len({bank.predict(QUESTIONS[0], adapters=name)[0].prediction.reply for name in METHODS}) > 4


@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_batch_matches_single_rows(store, beams):
    bank = peftlab.load(*METHODS, store=store, device="cpu")
    for name in METHODS:
        bank.task(name).generation["num_beams"] = beams
    asked = [(name, question) for question in QUESTIONS for name in METHODS]
    names, questions = zip(*asked, strict=True)
    mixed = bank.predict(list(questions), adapters=list(names))
    for (name, question), answer in zip(asked, mixed, strict=True):
        assert answer == bank.predict(question, adapters=name)[0]
        if question == QUESTIONS[1]:
            expected = plain_reply(bank.base.files.folder, bank.adapter(name), question, num_beams=beams)
            assert answer.prediction.reply == expected


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen2", True), ("gpt2", True)])
def test_other_architectures_match_peft(kind, tied, tmp_path):
    base = build_language_model(tmp_path / kind, kind, tied=tied)
    recipe = instruction_recipe(tmp_path / "rows", base)
    adapter = publish_untrained(tmp_path / "store", recipe, {})
    bank = peftlab.load("chat", store=tmp_path / "store", device="cpu")
    for question in QUESTIONS:
        assert bank.predict(question)[0].prediction.reply == plain_reply(base, adapter, question)


def test_sampling_is_deterministic_for_seed(store):
    bank = peftlab.load("lora", store=store, device="cpu")
    bank.task("lora").generation.update(do_sample=True, temperature=1.5, top_k=20)
    told = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        told.append(bank.predict(QUESTIONS[0])[0].prediction.reply)
    assert told[0] == told[1] != told[2]


def test_stop_string_ends_reply_as_finished(store):
    bank = peftlab.load("lora", store=store, device="cpu")
    whole = bank.predict(QUESTIONS[0])[0].prediction
    assert not whole.finished
    stop = whole.reply[4:6]
    bank.task("lora").generation["stop_strings"] = [stop]
    ended = bank.predict(QUESTIONS[0])[0].prediction
    assert ended.finished
    assert ended.reply == whole.reply[: whole.reply.index(stop)].strip()


def test_long_question_is_truncated(bank):
    long = bank.predict("Who came? " * 100, adapters="lora")[0].prediction
    assert long.truncated
    assert long.as_dict()["cut"] is True
    assert not bank.predict("Who came?", adapters="lora")[0].prediction.truncated


def test_input_columns_select_chat_or_prompt(bank):
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    plain = bank.predict(QUESTIONS[0], adapters="lora")[0].prediction
    assert bank.predict({"messages": chat}, adapters="lora")[0].prediction == plain
    assert bank.predict({"instruction": QUESTIONS[0], "input": " "}, adapters="lora")[0].prediction == plain
    assert bank.predict({"prompt": QUESTIONS[0]}, adapters="lora")[0].prediction.reply != plain.reply


def test_chat_and_token_classification_share_base(base, tmp_path):
    """Chats are tokenized as they stand, tagged words one by one, from one bank and in one batch."""
    from tests.conftest import recipe_in

    (tmp_path / "tags").mkdir()
    publish_untrained(tmp_path / "store", instruction_recipe(tmp_path / "rows", base), {})
    publish_untrained(tmp_path / "store", recipe_in(tmp_path / "tags", base), {})
    both = peftlab.load("ner-tiny", "chat", store=tmp_path / "store", device="cpu")
    names = ["chat", "ner-tiny", "chat", "ner-tiny"]
    mixed = both.predict([QUESTIONS[0], "Ada left Rome .", QUESTIONS[1], "Nobody came ."], adapters=names)
    for name, answer in zip(names, mixed, strict=True):
        alone = peftlab.load(name, store=tmp_path / "store", device="cpu")
        assert alone.predict(answer.prediction.text)[0] == answer


def test_validation_loss_matches_peft(base, tmp_path):
    recipe = instruction_recipe(tmp_path / "rows", base, training={"num_train_epochs": 10, "learning_rate": 5e-2})
    result = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    curve = result.adapter.manifest.scores["validation"].values
    untrained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(untrained, result.adapter.folder).eval()
    template = result.adapter.manifest.task.state["chat_template"]
    assert curve["loss"] == pytest.approx(plain_loss(model, base, template), abs=1e-5)
    assert curve["perplexity"] == pytest.approx(math.exp(curve["loss"]))
    with model.disable_adapter():
        assert curve["loss"] < plain_loss(model, base, template) - 0.1  # its tiny embeddings allow no more
    told = peftlab.evaluate("chat", tmp_path / "rows" / "rows.jsonl", store=tmp_path / "store", device="cpu")
    assert told.scores.values == pytest.approx(result.scores["validation"].values, rel=1e-5)


def plain_loss(model, base, template):
    """Mean cross entropy of the answers, by Transformers' own loss on hand-made labels."""
    tokenizer, nll, tokens = AutoTokenizer.from_pretrained(base), 0.0, 0
    for row in ROWS:
        asked = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
        chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
        options = {"chat_template": template, "tokenize": False}
        prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, **options)
        whole = tokenizer.apply_chat_template(chat, **options).rstrip()
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
        begin = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        labels = ids.clone()
        labels[:, :begin] = IGNORED
        with torch.inference_mode():
            nll += float(model(input_ids=ids, labels=labels).loss) * (ids.shape[1] - begin)
        tokens += ids.shape[1] - begin
    return nll / tokens


def test_padding_token_without_embedding_is_mapped(tmp_path):
    """Qwen2's tokenizer class adds a padding token to a vocabulary that has none."""
    base = build_language_model(tmp_path / "qwen2", "qwen2")
    run = prepared_run(instruction_recipe(tmp_path / "rows", base))
    batch = run.task.head.collate(run.train_features, run.base.inputs)
    assert (batch["attention_mask"] == 0).any()
    assert batch["input_ids"].max() < run.base.model.config.vocab_size


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def task(tokenizer):
    made = CausalLmTask(template="chatml")
    made.bind_to_base(ModelContext(TextInputs(tokenizer), None, 256), {}, None)
    return made


def read(task, **fields):
    return task.read(Row(fields, "rows.jsonl:1"))


def test_plain_text_chunks_overlap_by_one_token(task, tokenizer):
    example = read(task, text="Nobody came to Rome by train. " * 12)
    (whole,) = task.encode([example], TextInputs(tokenizer), 10_000, training=True)[0]
    pieces = task.encode([example], TextInputs(tokenizer), 16, training=True)[0]
    assert tokenizer.decode(whole.inputs["input_ids"]) == "<s>" + example.completion + END
    learnt = [label for piece in pieces for label in piece.labels[1:]]
    assert learnt == whole.inputs["input_ids"][1:]
    assert all(len(piece) <= 16 and not piece.truncated for piece in pieces)
    assert task.lost(example, pieces) == 0


@pytest.mark.parametrize("length", [8, 9, 31, 64])
def test_windows_score_each_token_once(task, tokenizer, length):
    for example in (read(task, text="It rained in Rome. " * 20), read(task, prompt="Ada ", completion="wrote. " * 30)):
        (whole,) = task.encode([example], TextInputs(tokenizer), 10_000, training=False)[0]
        windows = task.encode([example], TextInputs(tokenizer), length, training=False)[0]
        assert sum(map(task.head.loss_terms, windows)) == task.head.loss_terms(whole)
        assert all(len(window) <= length for window in windows)


def test_truncated_answer_is_lost_target(task, tokenizer):
    chat = read(task, messages=[*turn("Who?", "Ada."), *turn("Why?", "It rained in Rome and Paris." * 4)])
    (whole,) = task.encode([chat], TextInputs(tokenizer), 10_000, training=True)[0]
    (truncated,) = task.encode([chat], TextInputs(tokenizer), len(whole) - 3, training=True)[0]
    assert (truncated.truncated, task.lost(chat, [truncated]), task.count(chat)) == (True, 1, 2)
    assert (whole.truncated, task.lost(chat, [whole])) == (False, 0)
    assert (
        task.encode([read(task, prompt="Who came? " * 9, completion="Ada")], TextInputs(tokenizer), 16, training=True)[
            0
        ]
        == []
    )


def turn(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_prompt_completion_has_no_template(task, tokenizer):
    (feature,) = task.encode(
        [read(task, prompt="Ada ", completion="wrote.")], TextInputs(tokenizer), 64, training=True
    )[0]
    assert tokenizer.decode(feature.inputs["input_ids"]) == "<s>Ada wrote." + END
    assert tokenizer.decode([label for label in feature.labels if label != IGNORED]).strip() == "wrote." + END


def test_recipe_system_message_is_added_once(tokenizer):
    made = CausalLmTask(system="Be brief.")
    assert read(made, messages=turn("Who?", "Ada."))
    assert read(made, instruction="Who?", output="Ada.").messages[0] == {"role": "system", "content": "Be brief."}
    own = [{"role": "system", "content": "Be long."}, *turn("Who?", "Ada.")]
    assert read(made, messages=own).messages == tuple(own)


def test_messages_after_last_answer_are_dropped(task):
    example = read(task, messages=[*turn("Who?", "Ada."), {"role": "user", "content": "Thanks."}])
    assert [message["role"] for message in example.messages] == ["user", "assistant"]
    assert example.warnings == {"message after the last answer": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "Who?"}, "expected columns messages, or instruction and output, or prompt and completion"),
        ({"messages": "[]"}, "expected messages to be a list of objects with role and content"),
        ({"messages": [{"role": "user"}]}, "expected each message to have a role and its content"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "expected a role of system, user, assistant; found 'narrator'",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, "expected a message of the assistant"),
        ({"instruction": "Who?", "output": " "}, "expected output to hold some text"),
        ({"text": 3}, "expected text to be a string, found 3"),
    ],
)
def test_invalid_row_raises_row_error(task, fields, message):
    with pytest.raises(RowError, match=message):
        read(task, **fields)


def test_input_with_final_answer_raises_recipe_error(bank):
    with pytest.raises(RecipeError, match="expected the last message not to have the role assistant"):
        bank.predict({"messages": turn("Who?", "Ada.")}, adapters="lora")


@pytest.mark.parametrize(("by", "main"), [("rouge", "rougeL"), ("bleu", "bleu")])
def test_generation_metric_uses_last_answers(base, tmp_path, by, main):
    recipe = instruction_recipe(tmp_path / "rows", base, task={"scored_by": by}, method={"type": "lora", "r": 16})
    result = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    bank = peftlab.load("chat", store=tmp_path / "store", device="cpu")
    asked = [{k: v for k, v in row.items() if k != "output"} for row in ROWS * 3]
    replies = [answer.prediction.reply for answer in bank.predict(asked)]
    answers = [row["output"] for row in ROWS * 3]
    if by == "rouge":
        scorer = RougeScorer(["rougeL"])
        told = [scorer.score(*both)["rougeL"].fmeasure for both in zip(answers, replies, strict=True)]
        expected = sum(told) / len(told)
    else:
        expected = sacrebleu.corpus_bleu(replies, [answers]).score
    assert result.task.metric.name == main
    assert result.scores["validation"].values[main] == pytest.approx(expected)
    again = peftlab.evaluate("chat", tmp_path / "rows" / "rows.jsonl", store=tmp_path / "store", device="cpu")
    assert again.scores == result.scores["validation"]


def test_generation_metric_requires_prompts(base, tmp_path):
    recipe = instruction_recipe(tmp_path / "rows", base, task={"scored_by": "rouge"})
    (tmp_path / "rows" / "rows.jsonl").write_text('{"text": "It rained in Rome."}\n' * 4)
    with pytest.raises(RecipeError, match="4 rows of validation are plain text, which has no prompt to reply to"):
        peftlab.tune(recipe, store=tmp_path / "store")


def test_invalid_base_or_option_raises_recipe_error(tmp_path, tiny_base, base):
    recipe = instruction_recipe(tmp_path / "rows", tiny_base)
    with pytest.raises(RecipeError, match=r"has no head for causal-lm: its checkpoint lacks "):
        peftlab.tune(recipe, store=tmp_path / "store")
    own = {"base.model": str(base)}
    for key, value, message in (
        ("task.template", "base", "the tokenizer of this base has no chat template. Name one of chatml, gemma"),
        ("task.template", "chatlm", "chatml"),
        ("task.generation.max_new_tokens", 250, "a reply of 250 tokens leaves 6 of 256 for the prompt"),
        ("method.type", "head", "'head' trains only a new head"),
        ("method.target_modules", ["lm_head"], "'lm_head' matches no Linear layer of this base"),
    ):
        with pytest.raises(RecipeError, match=message):
            peftlab.tune(recipe, overrides={**own, key: value}, store=tmp_path / "store")


def test_template_error_names_row(tmp_path):
    template = "{{ raise_exception('Only one turn') if messages | length > 2 else 'x' }}"
    base = build_language_model(tmp_path / "strict", template=template)
    recipe = instruction_recipe(tmp_path / "rows", base)
    rows = [{"messages": turn("Who?", "Ada.") * 2}, {"messages": turn("Who?", "Ada.")}]
    (tmp_path / "rows" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(RecipeError, match=r"rows.jsonl:1.*the chat template refuses these messages: Only one turn\."):
        peftlab.tune(recipe, store=tmp_path / "store")


def test_only_average_composition_is_supported(store):
    bank = peftlab.load("lora", "wide", store=store, device="cpu")
    with pytest.raises(IntegrityError, match="several adapters cannot generate one text"):
        bank.compose("both", "ensemble", ["lora", "wide"])
    bank.compose("mean", "average", ["lora", "wide"])
    assert bank.predict(QUESTIONS[0], adapters="mean")[0].prediction.reply


def test_cli_tune_predict_and_evaluate(base, tmp_path):
    recipe, store = instruction_recipe(tmp_path / "rows", base), tmp_path / "store"
    told = task_stores.run("tune", recipe, "--store", store)
    assert told.exit_code == 0, told.output
    assert "validation perplexity" in told.output
    replied = task_stores.run("predict", "chat", QUESTIONS[0], "--store", store)
    assert replied.exit_code == 0, replied.output
    assert QUESTIONS[0] in replied.output
    fields = json.loads(task_stores.run("predict", "chat", QUESTIONS[0], "--store", store, "--json").stdout)
    assert fields.keys() >= {"adapter", "text", "reply", "finished"}
    scored = task_stores.run("evaluate", "chat", "--data", tmp_path / "rows" / "rows.jsonl", "--store", store)
    assert "perplexity" in one_line(scored.output)


@pytest.mark.parametrize("tied", [True, False])
def test_bf16_scores_are_close_to_fp32(tmp_path, tied):
    base = build_language_model(tmp_path / "base", tied=tied)
    publish_untrained(tmp_path / "store", instruction_recipe(tmp_path / "rows", base), {})
    rows = tmp_path / "rows" / "rows.jsonl"
    losses = []
    for precision in ("fp32", "bf16"):
        options = {"store": tmp_path / "store", "device": "cpu", "precision": precision}
        losses.append(peftlab.evaluate("chat", rows, **options).scores.values["loss"])
        assert peftlab.load("chat", **options).predict(QUESTIONS[0])[0].prediction.reply
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_base_matches_peft(tmp_path, quantization, tied):
    base = build_language_model(tmp_path / "base", tied=tied, hidden_size=64, intermediate_size=128)
    recipe = instruction_recipe(tmp_path / "rows", base, base={"quantization": quantization})
    result = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    bank = peftlab.load("chat", store=tmp_path / "store", device="cpu")
    plain, _ = load_with_head(bank.base.files, bank.task("chat"), quantization=quantization)
    assert type(plain.lm_head) is torch.nn.Linear
    assert "skip_modules" not in (result.adapter.folder / "README.md").read_text()  # it names new heads
    plain = PeftModel.from_pretrained(plain, result.adapter.folder).eval()
    tokenizer, template = AutoTokenizer.from_pretrained(base), bank.task("chat").state["chat_template"]
    for question in QUESTIONS:
        expected = transformers_generation(plain, tokenizer, single_turn_chat(question), template)
        assert bank.predict(question)[0].prediction.reply == expected
    scored = peftlab.evaluate("chat", tmp_path / "rows" / "rows.jsonl", store=tmp_path / "store", device="cpu")
    assert scored.scores.values["loss"] == pytest.approx(result.scores["validation"].values["loss"], rel=0.02)


def test_merged_model_matches_adapter(store, tmp_path):
    merged = merge("lora", tmp_path / "model", store=store, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(merged.folder)
    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    bank = peftlab.load("lora", store=store, device="cpu")
    for question in QUESTIONS:
        expected = transformers_generation(model, tokenizer, single_turn_chat(question))
        assert bank.predict(question)[0].prediction.reply == expected
