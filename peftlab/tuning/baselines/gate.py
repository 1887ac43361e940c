"""Compare a trained adapter with the baselines: one no better than the majority is not published."""

from collections.abc import Mapping

from peftlab.errors import NoBetterThanMajority
from peftlab.recipe import Recipe
from peftlab.store import BaselineInfo
from peftlab.tasks import Scores
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession

ADAPTER_FOLDER = "adapter"


def check_baselines(run: Run, scores: Mapping[str, Scores], session: TuningSession) -> BaselineInfo | None:
    """Compare the main score with the baselines; None if the task has none, or no row was held out.

    Raises:
        NoBetterThanMajority: the score is no better than that of the majority, and the session does not publish anyway.
    """
    info = baseline_info(run, scores)
    if info is None or session.publish_anyway or info.is_above_majority:
        return info
    with session.process_group.sync_errors():
        if session.process_group.is_main:
            assert run.folder is not None
            adapter = run.folder / ADAPTER_FOLDER
            run.model.save_pretrained(adapter, save_embedding_layers=False)
            raise NoBetterThanMajority(
                f"trained, but not published: {info.split} {info.metric} is {info.adapter:.3f}, no better than "
                f"{info.majority:.3f}, which the most frequent answer gets for every row. The adapter is kept in "
                f"{adapter}. To publish it without training again, use the same command with --resume --publish-anyway "
                f"(Python: resume=True, publish_anyway=True). {suggest_improvement(run.recipe, run.num_training_rows)}"
            )
    return info


def baseline_info(run: Run, scores: Mapping[str, Scores]) -> BaselineInfo | None:
    """The main score of the adapter beside those of the baselines on the same split."""
    baselines = run.baselines.scores
    if baselines is None:
        return None
    metric = run.task.metric
    info = BaselineInfo(
        split=baselines.split,
        metric=metric.name,
        adapter=scores[baselines.split].values[metric.name],
        majority=baselines.majority,
        linear_probe=baselines.linear_probe,
        training_rows=baselines.training_rows,
        scored_rows=baselines.scored_rows,
        greater_is_better=metric.greater_is_better,
    )
    hint = "" if info.is_above_probe else suggest_improvement(run.recipe, run.num_training_rows)
    return info.model_copy(update={"hint": hint})


def suggest_improvement(recipe: Recipe, num_rows: int) -> str:
    """What may give a better score, without what the recipe has already."""
    training, default = recipe.training, recipe.method.default_learning_rate
    length = "max_steps" if training.max_steps else "num_train_epochs"
    options = [
        f"more training rows (there are {num_rows:,})",
        f"more {length.rpartition('_')[2]}: training.{length} (it is {getattr(training, length)})",
    ]
    rate = f"{training.learning_rate:g}" + (
        ", the default for this method"
        if training.learning_rate == default
        else f"; the default for this method is {default:g}"
    )
    options.append(f"another training.learning_rate (it is {rate})")
    if training.head_init == "random":
        options.append("training.head_init: auto")
    if getattr(recipe.task, "class_weights", "balanced") is None:
        options.append("task.class_weights: balanced if some labels are rare")
    if training.early_stopping_patience is not None:
        options.append("training.early_stopping_patience: null if the run stopped early")
    return f"You can try {'; '.join(options)}."
