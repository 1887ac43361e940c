"""Keys that change what trains and how: class weights, label smoothing, head learning rate, steps, frozen modules."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from peftlab.errors import ErrorCollector, RecipeError
from peftlab.recipe import read_recipe
from peftlab.tasks.heads import ClassificationHead, MultiLabelHead, TokenHead
from peftlab.tasks.inputs.entity_markers import MarkedText, Span
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.labels.class_weights import fit_class_weights
from peftlab.tasks.labels.tag_schemes import tags_from_spans
from peftlab.tasks.relation_extraction import RelationExtractionTask
from peftlab.tasks.text_classification import LabelledText, TextClassificationTask
from peftlab.tasks.token_classification import TaggedText, TokenClassificationTask
from peftlab.tuning import Progress, tune
from peftlab.tuning.training_loop import _trainer
from tests.runs import prepared_run
from tests.task_stores import recipe_for


def errors_of(file, overrides):
    with pytest.raises(RecipeError) as caught:
        tune(file, store=file.parent / "store", overrides=overrides)
    return [f"{issue.key} {issue.message} {issue.hint}" for issue in caught.value.errors]


def weights(adapter):
    return load_file(adapter.folder / "adapter_model.safetensors")


# --- class weights

TAGGED = [
    TaggedText("a b c d", words=((0, 1), (2, 3), (4, 5), (6, 7)), spans=((0, 2, "PER"), (3, 4, "LOC"))),
    TaggedText("a b c", words=((0, 1), (2, 3), (4, 5)), spans=((1, 2, "PER"),)),
]


def fitted(task, examples):
    errors = ErrorCollector()
    task.fit_labels({"train": examples}, errors)
    return [f"{issue.key} {issue.message} {issue.hint}" for issue in errors.issues]


def test_balanced_tag_weights_match_sklearn():
    task = TokenClassificationTask(class_weights="balanced")
    assert fitted(task, TAGGED) == []
    tags = [tag for row in TAGGED for tag in tags_from_spans(list(row.spans), len(row.words))]
    present = [tag for tag in task.head.labels if tag in tags]
    by_tag = dict(zip(task.head.labels, task.head.weights, strict=True))
    expected = compute_class_weight("balanced", classes=np.array(present), y=np.array(tags))
    scale = len(present) / len(task.head.labels)  # scikit-learn does not know I-LOC, which no word has
    assert [by_tag[tag] for tag in present] == pytest.approx((expected * scale).tolist())


def test_tag_weights_by_name_count_for_both_tags():
    task = TokenClassificationTask(class_weights={"PER": 3.0, "O": 0.5})
    assert fitted(task, TAGGED) == []
    assert dict(zip(task.head.labels, task.head.weights, strict=True)) == {
        "O": 0.5, "B-LOC": 1.0, "I-LOC": 1.0, "B-PER": 3.0, "I-PER": 3.0,
    }  # fmt: skip


def make_relation(label):
    return MarkedText("a b", head=Span(0, 1, None), tail=Span(2, 3, None), label=label)


def test_relation_weights_match_sklearn():
    labels = ["r"] * 5 + ["Other"] * 3
    task = RelationExtractionTask(class_weights="balanced")
    assert fitted(task, [make_relation(label) for label in labels]) == []
    expected = compute_class_weight("balanced", classes=np.array(task.labels), y=np.array(labels))
    assert task.head.weights == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("task", "examples"),
    [
        (TokenClassificationTask(class_weights={"PRE": 2.0}), TAGGED),
        (RelationExtractionTask(class_weights={"PRE": 2.0}), [make_relation("PER"), make_relation("Other")]),
        (TextClassificationTask(class_weights={"PRE": 2.0}), [LabelledText("a", labels=(x,)) for x in ("PER", "b")]),
    ],
)
def test_weight_of_unknown_label_is_an_error(task, examples):
    [issue] = fitted(task, examples)
    assert issue.startswith("task.class_weights there is no label 'PRE'. Did you mean 'PER'? Available labels: ")


def test_weights_by_name_default_to_one():
    assert fit_class_weights({"b": 2.5}, {}, ["a", "b"], ErrorCollector()) == [1.0, 2.5]
    assert fit_class_weights(None, {"a": 3}, ["a"], ErrorCollector()) is None


def test_numeric_multi_label_weights_weight_rows_with_the_label():
    task = TextClassificationTask(multi_label=True, class_weights={"b": 4.0})
    rows = [LabelledText("x", labels=names) for names in (("a",), ("b",), ("a", "b"), ())]
    assert fitted(task, rows) == []
    logits, targets = torch.randn(6, 2), torch.randint(2, (6, 2)).float()
    expected = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor([1.0, 4.0]))
    assert task.head.loss(logits, targets) == expected


# --- label smoothing


def test_smoothed_losses_match_torch():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(9, 3, generator=generator), torch.randint(3, (9,), generator=generator)
    head = ClassificationHead(["a", "b", "c"], [1.0, 2.0, 0.5])
    head.label_smoothing = 0.2
    expected = functional.cross_entropy(logits, targets, weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.2)
    assert head.loss(logits, targets) == expected
    tokens = TokenHead(["a", "b", "c"])
    tokens.label_smoothing, tokens.weights = 0.2, [1.0, 2.0, 0.5]
    ignored = torch.cat([targets, torch.tensor([IGNORED] * 3)]).view(3, 4)
    padded = torch.cat([logits, torch.randn(3, 3)]).view(3, 4, 3)
    assert tokens.loss(padded, ignored) == pytest.approx(float(expected), abs=1e-6)


def test_smoothed_multi_label_loss_is_over_both_outcomes():
    head = MultiLabelHead(["a", "b"])
    head.label_smoothing = 0.1
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    expected = functional.binary_cross_entropy_with_logits(logits, torch.tensor([[0.95, 0.05]]))
    assert head.loss(logits, targets) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("kind", ["classes", "topics", "entities", "relations"])
def test_weights_and_smoothing_change_training(tmp_path, tiny_base, kind):
    file = recipe_for(tmp_path, tiny_base, kind)
    run = prepared_run(file, {"task.label_smoothing": 0.3, "task.class_weights": "balanced"})
    assert run.task.head.label_smoothing == 0.3
    assert len(run.task.head.weights) == len(run.task.head.labels)
    plain = prepared_run(file, {"task.class_weights": None})
    batch = run.task.head.collate(run.train_features, run.base.inputs)
    labels = batch.pop("labels")
    with torch.inference_mode():
        logits = run.model.eval()(**batch).logits
    assert run.task.head.loss(logits, labels) != plain.task.head.loss(logits, labels)


# --- the bias of a multi-label head


def test_multi_label_head_starts_at_log_odds(tmp_path, tiny_base):
    run = prepared_run(recipe_for(tmp_path, tiny_base, "topics"))
    rows = [example.labels for example in run.dataset.examples["train"]]
    shares = [(sum(label in row for row in rows) + 1) / (len(rows) + 2) for label in run.task.labels]
    biases = [value for name, value in run.model.named_parameters() if name.endswith("bias") and value.requires_grad]
    assert biases[-1].tolist() == pytest.approx(torch.tensor(shares).logit().tolist(), abs=1e-5)
    balanced = prepared_run(tmp_path / "recipe.yaml", {"task.class_weights": "balanced"})
    assert max(map(abs, balanced.task.head.initial_bias)) < 0.5  # both outcomes weigh about the same


# --- head_learning_rate


@pytest.mark.parametrize("method", [{}, {"method.loraplus_lr_ratio": 4.0}, {"method": {"type": "full"}}])
def test_head_has_its_own_learning_rate(tmp_path, tiny_base, method):
    overrides = {"training.learning_rate": 1e-3, "training.head_learning_rate": 0.02, **method}
    run = prepared_run(recipe_for(tmp_path, tiny_base, "classes"), overrides)
    groups = _trainer(run, tmp_path / "run", Progress()).create_optimizer().param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    trainable = {name: parameter for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    assert rates.keys() == {id(parameter) for parameter in trainable.values()}
    heads = [f".{module}." for module in run.base.head_modules]
    for name, parameter in trainable.items():
        assert (rates[id(parameter)] == 0.02) == any(head in name for head in heads), name


def test_head_learning_rate_trains_only_the_head_faster(tmp_path, tiny_base):
    file = recipe_for(tmp_path, tiny_base, "classes", training={"max_grad_norm": 1e9})
    plain, same, other = (
        weights(tune(file, store=tmp_path / "store", overrides={"training.head_learning_rate": rate}).adapter)
        for rate in (None, 5e-3, 1e-9)
    )
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    changed = [name for name in plain if not torch.allclose(plain[name], other[name], atol=1e-4)]
    assert any("lora" not in name for name in changed)


def test_head_learning_rate_needs_a_new_head(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "name: my-task\nbase: {model: some/model}\ntask: {type: causal-lm}\ndata: {train: a.txt}\n"
        "training: {head_learning_rate: 0.1}\n"
    )
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "recipe.yaml")
    [issue] = caught.value.errors
    assert issue.key == "training.head_learning_rate"
    assert issue.message == "causal-lm adds no head to the base, but uses the base's own, which stays frozen."


# --- max_steps


class Steps(Progress):
    def on_train_begin(self, total_steps, epochs, completed_steps):
        self.total, self.epochs, self.last = total_steps, epochs, 0

    def on_step_end(self, step, loss):
        self.last = step


def test_max_steps_ends_training_within_an_epoch(tmp_path, tiny_base):
    file, steps = recipe_for(tmp_path, tiny_base, "classes"), Steps()  # 12 rows in batches of 4
    changes = {"training.max_steps": 4, "training.num_train_epochs": None}
    result = tune(file, store=tmp_path / "store", overrides=changes, progress=steps)
    assert (steps.total, steps.epochs, steps.last) == (4, 2, 4)
    published = read_recipe(result.adapter.folder / "recipe.yaml").training
    assert (published.max_steps, published.num_train_epochs) == (4, None)
    whole = {"training.max_steps": 3, "training.num_train_epochs": None}
    by_steps, by_epochs = (tune(file, store=tmp_path / "store", overrides=one).adapter for one in (whole, {}))
    first, second = weights(by_steps), weights(by_epochs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_max_steps_of_contrastive_training_are_published(tmp_path, tiny_base):
    file, steps = recipe_for(tmp_path, tiny_base, "classes"), Steps()
    changes = {"training.max_steps": 2, "training.num_train_epochs": None, "training.few_shot": "contrastive"}
    result = tune(file, store=tmp_path / "store", overrides={**changes, "task.class_weights": None}, progress=steps)
    published = read_recipe(result.adapter.folder / "recipe.yaml").training
    assert (steps.total, published.max_steps, published.num_train_epochs) == (2, 2, None)


def test_steps_and_epochs_together_are_an_error(tmp_path, tiny_base):
    file = recipe_for(tmp_path, tiny_base, "classes")
    [issue] = errors_of(file, {"training.max_steps": 4})
    assert issue.startswith("training.max_steps should not be set together with num_train_epochs; set that to null")


# --- freeze


def test_frozen_modules_keep_the_weights_of_the_base(tmp_path, tiny_base):
    file = recipe_for(tmp_path, tiny_base, "classes", method={"type": "full"}, training={"learning_rate": 1e-3})
    file.write_text(file.read_text().replace("  r: 4\n", ""))
    base = load_file(tiny_base / "model.safetensors")
    trained = weights(tune(file, store=tmp_path / "store", overrides={"training.freeze": ["embeddings"]}).adapter)
    unchanged = 0
    for name, tensor in trained.items():
        original = base.get(name.removeprefix("base_model.model.bert."))
        if original is not None and "embeddings" in name:
            assert torch.equal(tensor, original), name
            unchanged += 1
        elif original is not None and "query.weight" in name:
            assert not torch.equal(tensor, original), name
    assert unchanged > 3


def test_frozen_lora_layer_stays_zero(tmp_path, tiny_base):
    file = recipe_for(tmp_path, tiny_base, "classes")
    trained = weights(tune(file, store=tmp_path / "store", overrides={"training.freeze": ["layer.0"]}).adapter)
    ups = {name: bool(tensor.any()) for name, tensor in trained.items() if "lora_B" in name}
    assert len(ups) > 4
    assert all(nonzero == (".layer.0." not in name) for name, nonzero in ups.items() if "pooler" not in name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.freeze": ["embedings"]}, "the model has no module 'embedings'. Did you mean 'embeddings'?"),
        ({"training.freeze": ["embeddings"]}, "'lora' trains no parameter in 'embeddings'. Remove the name."),
        ({"training.freeze": ["classifier"], "method": {"type": "head"}}, "no parameter is left to train."),
        (
            {"training.freeze": ["layer.0"], "method": {"type": "adalora"}},
            "'adalora' distributes its ranks by the gradients of all its layers.",
        ),
    ],
)
def test_what_cannot_be_frozen_is_an_error(tmp_path, tiny_base, changes, message):
    issues = errors_of(recipe_for(tmp_path, tiny_base, "classes"), changes)
    assert any(issue.startswith(f"training.freeze {message}") for issue in issues), issues
