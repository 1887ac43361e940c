import re
import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.errors import ErrorCollector, RecipeError
from peftlab.recipe import Head, Lora, Recipe, parse_byte_size, parse_override, read_recipe, recipe_yaml

SHORTEST = """\
name: ner-news
base:
  model: some/model
task:
  type: token-classification
data:
  train: train.txt
"""
NEXT_LINE = SHORTEST.count("\n") + 1


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf8")
        return path

    return write


@pytest.fixture
def get_errors(tmp_path):
    """What reading a recipe complains about, one string a problem, without the folder."""

    def get_errors(path, overrides=None):
        with pytest.raises(RecipeError) as caught:
            read_recipe(path, overrides)
        return [str(issue).replace(f"{tmp_path}/", "") for issue in caught.value.errors]

    return get_errors


def test_short_recipe_gets_every_default(write, tmp_path):
    recipe = read_recipe(write(SHORTEST))
    assert recipe.model_dump() == {
        "name": "ner-news",
        "base": {
            "model": "some/model",
            "revision": None,
            "quantization": None,
            "attn_implementation": None,
            "head": "new",
            "pooling": "auto",
            "trust_remote_code": False,
        },
        "task": {
            "type": "token-classification",
            "labels": None,
            "tag_scheme": "auto",
            "class_weights": None,
            "label_smoothing": 0.0,
        },
        "method": {
            "start_from": None,
            "type": "lora",
            "r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.0,
            "target_modules": "all-linear",
            "layers_to_transform": None,
            "use_rslora": False,
            "use_dora": False,
            "init_lora_weights": True,
            "rank_pattern": {},
            "alpha_pattern": {},
            "trainable_token_indices": None,
            "loraplus_lr_ratio": None,
        },
        "data": {
            "train": str(tmp_path / "train.txt"),
            "validation": "auto",
            "test": None,
            "dataset": None,
            "subset": None,
            "format": "auto",
            "header": None,
            "drop_blank": False,
            "group_by": None,
            "encoding": "utf-8",
            "columns": {},
            "seed": 13,
            "max_length": None,
            "max_lost": 0.3,
        },
        "training": {
            "learning_rate": None,
            "num_train_epochs": None,
            "max_steps": None,
            "head_learning_rate": None,
            "freeze": [],
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 32,
            "gradient_accumulation_steps": 1,
            "lr_scheduler_type": "linear",
            "warmup_ratio": None,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "head_init": "auto",
            "few_shot": "auto",
            "optim": "adamw_torch_fused",
            "gradient_checkpointing": False,
            "packing": False,
            "train_sampling_strategy": "tokens",
            "bf16": None,
            "fp16": None,
            "fused_lora": None,
            "torch_compile": False,
            "base_dropout": True,
            "distributed": None,
            "seed": 42,
            "early_stopping_patience": "auto",
            "frozen_cache": "2GiB",
        },
    }


@pytest.mark.parametrize(
    ("section", "issue"),
    [
        ('method: {r: "8"}', "method.r: should be a valid integer, not '8'."),
        ("method: {r: true}", "method.r: should be a valid integer, not True."),
        ("method: {r: 8.0}", "method.r: should be a valid integer, not 8.0."),
        ("method: {r: 0}", "method.r: should be greater than or equal to 1, not 0."),
        (
            "method: {type: ia3, feedforward_modules: [dense]}",
            "method.feedforward_modules: should come with target_modules, not ['dense'].",
        ),
        (
            "method: {type: prefix, encoder_hidden_size: 8}",
            "method.encoder_hidden_size: should come with prefix_projection: true, not 8.",
        ),
        (
            "method: {type: p-tuning, encoder_reparameterization_type: GRU}",
            "method.encoder_reparameterization_type: unknown encoder_reparameterization_type 'GRU'. Known: LSTM, MLP.",
        ),
        ("training: {bf16: true, fp16: true}", "training.fp16: should not be true together with bf16, not True."),
        ("method: {use_dora: 1}", "method.use_dora: should be a valid boolean, not 1."),
        ("method: {use_dora: yes}", "method.use_dora: should be a valid boolean, not 'yes'."),
        ("method: {target_modules: 3}", "method.target_modules: should be 'all-linear', or a valid list, not 3."),
        (
            "method: {type: lra}",
            "method.type: unknown type 'lra'. Did you mean 'lora'? Known: adalora, beft, bitfit, bottleneck, c3a, "
            "deft, delora, fourierft, full, glora, gralora, head, hira, hra, ia3 and 20 more.",
        ),
        (
            "method: {type: boft, r: 8}",
            "method.type: 'boft' is not supported: it compiles a CUDA extension when it is used; oft is the "
            "simpler variant. Take lora, or another method.",
        ),
        (
            "method: {tpye: head}",
            "method.tpye: unknown key. Did you mean 'type'? Keys here: alpha_pattern, "
            "init_lora_weights, layers_to_transform, lora_alpha, lora_dropout, loraplus_lr_ratio, r, rank_pattern, "
            "start_from, target_modules, trainable_token_indices, type, use_dora, use_rslora.",
        ),
        ("method: {type: head, r: 8}", "method.r: unknown key. Keys here: start_from, type."),
        (
            "method: {layers_to_transform: last}",
            "method.layers_to_transform: should be a valid list, or a valid integer, not 'last'.",
        ),
        (
            "method: {layers_to_transform: [1, -2]}",
            "method.layers_to_transform: should be greater than or equal to 0, or a valid integer, not -2.",
        ),
        (
            "training: {frozen_cache: 2 gigs}",
            "training.frozen_cache: should be a number and one of KB, MB, GB, TB, KiB, MiB, GiB, TiB, as in 2GiB; "
            "null for none, not '2 gigs'.",
        ),
        (
            "training: {lr_scheduler_type: cosin}",
            "training.lr_scheduler_type: unknown lr_scheduler_type 'cosin'. Did you mean 'cosine'? "
            "Known: constant, constant_with_warmup, cosine, linear.",
        ),
        ("training: {learning_rate: fast}", "training.learning_rate: should be a valid number, not 'fast'."),
        ('training: {learning_rate: "1e-3"}', "training.learning_rate: should be a valid number, not '1e-3'."),
        ("training: {learning_rate: 0}", "training.learning_rate: should be greater than 0, not 0."),
        (
            "method: {rr: 8}",
            "method.rr: unknown key. Did you mean 'r'? "
            "Keys here: alpha_pattern, init_lora_weights, layers_to_transform, lora_alpha, lora_dropout, "
            "loraplus_lr_ratio, r, rank_pattern, start_from, target_modules, trainable_token_indices, type, use_dora, "
            "use_rslora.",
        ),
        (
            "trainig: {}",
            "trainig: unknown key. Did you mean 'training'? Keys here: base, data, method, name, task, training.",
        ),
        ("xyzzy: 1", "xyzzy: unknown key. Keys here: base, data, method, name, task, training."),
    ],
)
def test_wrong_line_reports_location_key_and_hint(write, get_errors, section, issue):
    assert get_errors(write(f"{SHORTEST}{section}\n")) == [f"recipe.yaml:{NEXT_LINE}  {issue}"]


@pytest.mark.parametrize(
    ("line", "wrong", "issue"),
    [
        ("name: ner-news", "name: NER news", "recipe.yaml:1  name: "),
        ("name: ner-news", "name: x", "recipe.yaml:1  name: "),
        ("name: ner-news", "name: 3", "recipe.yaml:1  name: should be a valid string, not 3."),
        ("  model: some/model", "  model: 3", "recipe.yaml:3  base.model: should be a valid string, not 3."),
        ("  model: some/model", "  {}", "recipe.yaml:2  base.model: missing, and it has no default."),
        (
            "  type: token-classification",
            "  type: ner",
            "recipe.yaml:5  task.type: unknown type 'ner'. "
            "Known: causal-lm, domain-adaptation, preference, question-answering, regression, relation-extraction, "
            "summarization, text-classification, token-classification, translation.",
        ),
        ("  train: train.txt", "  {}", "recipe.yaml:6  data.train: missing, and it has no default."),
        (
            "  train: train.txt",
            "  train: a\n  columns: {tokens: 3}",
            "recipe.yaml:8  data.columns.tokens: should be a valid string, not 3.",
        ),
        (
            "  train: train.txt",
            "  train: a\n  format: jsnl",
            "recipe.yaml:8  data.format: unknown format 'jsnl'. Did you mean 'jsonl'? "
            "Known: auto, conll, csv, json, jsonl, markup, paragraphs, parquet, squad, text, tsv.",
        ),
        ("  train: train.txt", "  train: a\n  validation: 1.5", "recipe.yaml:8  data.validation: should be "),
        ("  train: train.txt", "  train: 3", "recipe.yaml:7  data.train: should be a valid string, not 3."),
        ("data:\n  train: train.txt", "data: train.txt", "recipe.yaml:6  data: should be "),
    ],
)
def test_wrong_value_is_reported_once(write, get_errors, line, wrong, issue):
    errors = get_errors(write(SHORTEST.replace(line, wrong)))
    assert len(errors) == 1, errors
    assert errors[0].startswith(issue)


def test_invalid_adapter_name_error_lists_allowed_characters(write, get_errors):
    [issue] = get_errors(write(SHORTEST.replace("ner-news", "NER news")))
    assert "'NER news'" in issue
    assert "[a-z0-9-]" in issue or "lower-case" in issue


@pytest.mark.parametrize("line", ["learning_rate: .inf", "max_grad_norm: .inf", "warmup_ratio: .nan"])
def test_number_must_be_finite(write, get_errors, line):
    [issue] = get_errors(write(f"{SHORTEST}training: {{{line}}}\n"))
    assert issue.startswith(f"recipe.yaml:{NEXT_LINE}  training.{line.split(':')[0]}: ")


def test_every_missing_section_is_reported(write, get_errors):
    assert get_errors(write("name: ner-news\n")) == [
        f"recipe.yaml  {key}: missing, and it has no default." for key in ("base", "task", "data")
    ]


def test_yaml_version_is_1_2(write):
    labels = SHORTEST.replace("token-classification", "token-classification\n  labels: [NO, Yes, on]")
    recipe = read_recipe(write(f"{labels}training: {{learning_rate: 5e-4, weight_decay: 1}}\n"))
    assert recipe.task.labels == ["NO", "Yes", "on"]
    assert recipe.training.learning_rate == 0.0005
    assert recipe.training.weight_decay == 1.0


def test_all_errors_are_reported_in_file_order(write, get_errors):
    path = write("""\
name: ner-news
base:
  model: 3
  revison: main
task:
  type: token-clasification
  labels: PER
method:
  r: "8"
  target_modules: 3
data:
  train: train.txt
  validation: 0.2
  formt: conll
training:
  learning_rate: fast
  seed: -1
  num_train_epoch: 3
""")
    keys_of_data = (
        "columns, dataset, drop_blank, encoding, format, group_by, header, max_length, max_lost, seed, subset, test, "
        "train, validation"
    )
    errors = get_errors(path)
    assert errors[:-1] == [
        "recipe.yaml:3  base.model: should be a valid string, not 3.",
        "recipe.yaml:4  base.revison: unknown key. Did you mean 'revision'? "
        "Keys here: attn_implementation, head, model, pooling, quantization, revision, trust_remote_code.",
        "recipe.yaml:6  task.type: unknown type 'token-clasification'. Did you mean 'token-classification'? "
        "Known: causal-lm, domain-adaptation, preference, question-answering, regression, relation-extraction, "
        "summarization, text-classification, token-classification, translation.",
        "recipe.yaml:7  task.labels: should be a valid list, not 'PER'.",
        "recipe.yaml:9  method.r: should be a valid integer, not '8'.",
        "recipe.yaml:10  method.target_modules: should be 'all-linear', or a valid list, not 3.",
        f"recipe.yaml:14  data.formt: unknown key. Did you mean 'format'? Keys here: {keys_of_data}.",
        "recipe.yaml:16  training.learning_rate: should be a valid number, not 'fast'.",
        "recipe.yaml:17  training.seed: should be greater than or equal to 0, not -1.",
    ]
    assert errors[-1].startswith(
        "recipe.yaml:18  training.num_train_epoch: unknown key. Did you mean 'num_train_epochs'? "
        "Keys here: base_dropout, bf16, distributed, early_"
    )


def test_misspelled_section_content_is_checked(write, get_errors):
    errors = get_errors(write(f"{SHORTEST}trainig:\n  seed: many\n"))
    assert errors[0].startswith(f"recipe.yaml:{NEXT_LINE}  trainig: unknown key.")
    assert errors[1:] == [f"recipe.yaml:{NEXT_LINE + 1}  training.seed: should be a valid integer, not 'many'."]


def test_misspelled_required_key_is_not_reported_missing(write, get_errors):
    errors = get_errors(write(SHORTEST.replace("train: train.txt", "trian: train.txt")))
    assert len(errors) == 1, errors
    assert errors[0].startswith("recipe.yaml:7  data.trian: unknown key. Did you mean 'train'?")


def test_repaired_recipe_is_returned_with_error_collector(write):
    errors = ErrorCollector()
    recipe = read_recipe(write(f"{SHORTEST}method: {{r: many}}\ntrainig: {{seed: 7}}\n"), errors=errors)
    assert [issue.key for issue in errors.issues] == ["method.r", "trainig"]
    assert (recipe.method.r, recipe.training.seed) == (8, 7)


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        (f"{SHORTEST}name: twice\n", f"recipe.yaml:{NEXT_LINE}: not valid YAML: found duplicate key"),
        (f"{SHORTEST}method: {{r: 8\n", "not valid YAML: "),
        ("name: a\n\tbase: b\n", "recipe.yaml:2: not valid YAML: found character '\\t'"),
        (f"{SHORTEST}method: *nowhere\n", f"recipe.yaml:{NEXT_LINE}: not valid YAML: found undefined alias"),
        ("", "recipe.yaml: a recipe is a mapping, with at least name, base, task and data."),
        ("# nothing yet\n", "recipe.yaml: a recipe is a mapping, with at least name, base, task and data."),
        ("- name: a\n", "recipe.yaml: a recipe is a mapping, with at least name, base, task and data."),
        ("ner-news\n", "recipe.yaml: a recipe is a mapping, with at least name, base, task and data."),
    ],
)
def test_invalid_document_is_refused_with_line(write, get_errors, text, issue):
    errors = get_errors(write(text))
    assert len(errors) == 1
    assert issue in errors[0]


def test_yaml_merge_keys_are_read(write):
    training = read_recipe(write(f"{SHORTEST}training:\n  <<: {{seed: 3}}\n  num_train_epochs: 2\n")).training
    assert (training.seed, training.num_train_epochs) == (3, 2)


def test_missing_recipe_suggests_similar_names(write, get_errors, tmp_path):
    write(SHORTEST)
    [issue] = get_errors(tmp_path / "recpie.yaml")
    assert issue == "recpie.yaml: no such recipe. Did you mean 'recipe.yaml'? Available recipes: recipe.yaml."


def test_folder_or_non_utf8_file_is_refused(get_errors, tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert get_errors(tmp_path / "latin.yaml")[0].startswith("latin.yaml: cannot be read: 'utf-8' codec")
    with pytest.raises(RecipeError, match=r"cannot be read: .*Is a directory"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.learning_rate=5e-4", "training.learning_rate", 0.0005),
        ("method.r=4", "method.r", 4),
        ("method.use_dora=true", "method.use_dora", True),
        ("data.test=null", "data.test", None),
        ("data.test=", "data.test", None),
        ("task.labels=[NO, PER]", "task.labels", ["NO", "PER"]),
        ("data.columns={tokens: words}", "data.columns", {"tokens": "words"}),
        ("base.model=a=b", "base.model", "a=b"),
        ('data.train="1"', "data.train", "1"),
    ],
)
def test_parse_override_returns_dotted_key_and_yaml_value(text, key, value):
    assert parse_override(text) == (key, value)
    assert type(parse_override(text)[1]) is type(value)


def test_default_method_is_lora(write):
    assert read_recipe(write(f"{SHORTEST}method: {{r: 4}}\n")).method == Lora(r=4)
    assert read_recipe(write(f"{SHORTEST}method: {{type: head}}\n")).method == Head(type="head")


@pytest.mark.parametrize(
    ("size", "count"), [("2GiB", 2 * 2**30), ("500MB", 500_000_000), ("1.5 KiB", 1536), ("0MB", 0)]
)
def test_byte_size_is_number_and_unit(size, count):
    assert parse_byte_size(size) == count


@pytest.mark.parametrize("text", ["method.r", "=4", ""])
def test_override_without_key_or_equals_sign_is_refused(text):
    expected = f"'{text}' is not of the form key=value, as in training.learning_rate=5e-4"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        parse_override(text)


def test_invalid_yaml_override_is_refused():
    with pytest.raises(ValueError, match=r"^the value of 'task\.labels=\[PER' is not YAML: "):
        parse_override("task.labels=[PER")


def test_overrides_replace_values_and_add_sections(write):
    path = write(f"{SHORTEST}method: {{r: 4}}\n")
    overrides = {"method.r": 2, "training.seed": 7, "data.columns.tokens": "words"}
    recipe = read_recipe(path, overrides)
    assert (recipe.method.r, recipe.training.seed, recipe.data.columns) == (2, 7, {"tokens": "words"})


@pytest.mark.parametrize(
    ("key", "value", "issue"),
    [
        ("method.r", "many", "-o method.r=many  method.r: should be a valid integer, not 'many'."),
        ("method.rr", 4, "-o method.rr=4  method.rr: unknown key. Did you mean 'r'? Keys here: "),
        ("name.first", "x", "-o name.first=x  name.first: 'name' is not a section."),
        ("task.labels.0", "PER", "-o task.labels.0=PER  task.labels.0: 'labels' is not a section."),
        ("optimizer.name", "x", "-o optimizer.name=x  optimizer: unknown key. Keys here: base, data, "),
    ],
)
def test_wrong_override_is_reported_as_typed(write, get_errors, key, value, issue):
    path = write(SHORTEST.replace("token-classification", "token-classification\n  labels: [PER]"))
    errors = get_errors(path, {key: value})
    assert len(errors) == 1
    assert errors[0].startswith(issue)


@pytest.mark.parametrize("text", ["method.r=true", "method.r=null", "method.r=[1, a]", "training.seed=0.5"])
def test_wrong_override_value_is_reported_as_yaml(write, get_errors, text):
    key, value = parse_override(text)
    assert get_errors(write(SHORTEST), {key: value})[0].startswith(f"-o {text}  {key}: ")


def test_wrong_override_and_wrong_line_are_both_reported(write, get_errors):
    errors = get_errors(write(f"{SHORTEST}method: {{r: many}}\n"), {"training.seed": "x"})
    assert [issue.split(": ")[0] for issue in errors] == [
        "-o training.seed=x  training.seed",
        f"recipe.yaml:{NEXT_LINE}  method.r",
    ]


def test_paths_are_relative_to_recipe_and_override_paths_to_current_folder(
    write, tmp_path, monkeypatch, tmp_path_factory
):
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    path = write(
        SHORTEST.replace("train.txt", "data/train.txt\n  validation: ../validation.txt\n  test: /data/test.txt")
    )
    recipe = read_recipe(path, {"data.test": "test.txt"})
    assert recipe.data.train == str(tmp_path / "data" / "train.txt")
    assert recipe.data.validation == str(tmp_path.parent / "validation.txt")
    assert recipe.data.test == str(here / "test.txt")
    assert read_recipe(path).data.test == "/data/test.txt"


def test_paths_in_overridden_section_are_relative_to_current_folder(write, monkeypatch, tmp_path_factory):
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    assert read_recipe(write(SHORTEST), {"data": {"train": "other.txt"}}).data.train == str(here / "other.txt")


def test_relative_recipe_path_gives_absolute_paths(write, tmp_path, monkeypatch):
    write(SHORTEST)
    monkeypatch.chdir(tmp_path)
    assert read_recipe("recipe.yaml").data.train == str(tmp_path / "train.txt")


def test_tilde_expands_to_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert read_recipe(write(SHORTEST.replace("train.txt", "~/train.txt"))).data.train == str(
        tmp_path / "home" / "train.txt"
    )


def test_base_is_existing_folder_or_hub_id(write, tmp_path):
    path = write(SHORTEST)
    assert read_recipe(path).base.model == "some/model"
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert read_recipe(path).base.model == str(tmp_path / "some" / "model")


def test_split_names_are_not_resolved_as_paths(write):
    splits = "  dataset: owner/data\n  validation: dev\n  test: test\n"
    data = read_recipe(write(SHORTEST.replace("train.txt", "train") + splits)).data
    assert (data.dataset, data.train, data.validation, data.test) == ("owner/data", "train", "dev", "test")


def test_local_dataset_is_relative_to_recipe(write, tmp_path):
    (tmp_path / "corpus").mkdir()
    assert read_recipe(write(f"{SHORTEST}  dataset: corpus\n")).data.dataset == str(tmp_path / "corpus")


@pytest.mark.parametrize(
    "more",
    [
        "",
        "  validation: sub/v.txt\n  test: ../t.txt\n  columns: {tokens: words, tags: 'null'}\n",
        "  dataset: corpus\n  test: test\n",
        "  validation: 0.25\ntraining: {learning_rate: 1e-5, early_stopping_patience: null}\n",
        "method: {target_modules: [query, value], use_dora: true}\n",
    ],
)
def test_recipe_yaml_round_trips(write, tmp_path, more):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "some" / "model").mkdir(parents=True)
    labels = "  labels: [NO, on, '1e-3', 'null', 'a: b', Größe, 组织, '# x']\n"
    recipe = read_recipe(write(SHORTEST.replace("data:", f"{labels}data:") + more))
    text = recipe_yaml(recipe, tmp_path)
    assert str(tmp_path) not in text
    again = tmp_path / "again.yaml"
    again.write_text(text, encoding="utf8")
    assert read_recipe(again) == recipe


def test_recipe_yaml_paths_are_relative_to_folder(write, tmp_path):
    (tmp_path / "store").mkdir()
    recipe = read_recipe(write(SHORTEST))
    text = recipe_yaml(recipe, tmp_path / "store")
    assert "  train: ../train.txt\n" in text
    (tmp_path / "store" / "recipe.yaml").write_text(text, encoding="utf8")
    assert read_recipe(tmp_path / "store" / "recipe.yaml") == recipe


def test_recipe_yaml_contains_defaults_and_nulls(write, tmp_path):
    lines = recipe_yaml(read_recipe(write(SHORTEST)), tmp_path).splitlines()
    assert lines[:4] == ["name: ner-news", "base:", "  model: some/model", "  revision: null"]
    for line in ("  train: train.txt", "  test: null", "  r: 8", "  learning_rate: null", "  columns: {}"):
        assert line in lines


def test_schema_describes_its_fields():
    schema = Recipe.model_json_schema()
    sections = schema["$defs"]
    assert set(schema["required"]) == {"name", "base", "task", "data"}
    assert schema["additionalProperties"] is False
    assert schema["properties"]["name"]["description"].startswith("Name of the adapter")
    assert sections["Lora"]["properties"]["r"]["description"] == "Rank of the update matrices."
    assert sections["Lora"]["properties"]["r"]["minimum"] == 1
    assert sections["DataSection"]["properties"]["format"]["enum"] == [
        "auto",
        "jsonl",
        "json",
        "squad",
        "conll",
        "markup",
        "text",
        "paragraphs",
        "csv",
        "tsv",
        "parquet",
    ]
    for name, section in sections.items():
        assert section["additionalProperties"] is (name == "PeftMethod"), name


def test_recipe_is_frozen(write):
    recipe = read_recipe(write(SHORTEST))
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"


def test_every_shipped_recipe_is_valid():
    found = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert found
    for path in found:
        read_recipe(path)


def test_reading_recipe_imports_nothing_heavy(write):
    code = (
        "import sys; from peftlab.recipe import read_recipe; read_recipe(sys.argv[1]); "
        "print({'torch', 'transformers', 'datasets', 'peft', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, write(SHORTEST)], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("labels", ["[PER, PER]", "[PER, '']"])
def test_labels_are_unique_names(write, get_errors, labels):
    text = SHORTEST.replace("token-classification", f"token-classification\n  labels: {labels}")
    assert get_errors(write(text))[0].startswith("recipe.yaml:6  task.labels: should be unique, non-empty names, not [")


def test_empty_section_uses_defaults(write):
    assert read_recipe(write(f"{SHORTEST}training:\nmethod:\n")) == read_recipe(write(SHORTEST))


@pytest.mark.parametrize("name", ["News", "-news", "a", "ner_news", "../x", "a" * 64])
def test_invalid_adapter_name_is_reported(write, get_errors, name):
    (issue,) = get_errors(write(SHORTEST.replace("ner-news", name)))
    assert issue == (
        "recipe.yaml:1  name: should be 2 to 63 lower-case letters, digits and dashes, "
        f"and not begin with a dash, not '{name}'."
    )


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        *(("lora", 1e-3), ("bottleneck", 1e-2), ("ia3", 3e-2), ("head", 3e-2), ("last-layers", 1e-3), ("oft", 3e-3)),
        *(("prefix", 3e-2), ("prompt", 1e-1), ("p-tuning", 3e-3), ("ln-tuning", 1e-2), ("deft", 1e-3)),
    ],
)
def test_each_method_has_its_usual_learning_rate(write, method, rate):
    recipe = read_recipe(write(f"{SHORTEST}method: {{type: {method}}}\n"))
    assert recipe.method.default_learning_rate == rate
    assert recipe.training.learning_rate is None  # chosen from the rows
    said = read_recipe(write(f"{SHORTEST}method: {{type: {method}}}\ntraining: {{learning_rate: 0.5}}\n"))
    assert said.training.learning_rate == 0.5
