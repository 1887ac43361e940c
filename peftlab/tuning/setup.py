"""A recipe and its understood rows → a `Run` that only has to train: base loaded, rows encoded, method added."""

from typing import Any

from peftlab.base import UNLIMITED, choose_device, load_base
from peftlab.data import Ledger, Rows
from peftlab.errors import ErrorCollector
from peftlab.methods import adapt, heavier_than_its_base, trained_parameters
from peftlab.recipe import Recipe
from peftlab.store import Adapter
from peftlab.tasks import ModelContext, Task
from peftlab.tuning.distributed.process_group import Processes
from peftlab.tuning.encoding import encode, input_length
from peftlab.tuning.memory import check_checkpointing, check_optimizer
from peftlab.tuning.objective import with_objective
from peftlab.tuning.packing import check_packing
from peftlab.tuning.preference.checks import check_aligning
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run
from peftlab.tuning.warm_start import begin_with


def prepare(
    recipe: Recipe,
    rows: Rows,
    task: Task,
    examples: dict[str, list[Any]],
    ledgers: dict[str, Ledger],
    progress: Progress,
    *,
    processes: Processes,
    device: str,
    sharded: bool,
    start: Adapter | None = None,
) -> Run:
    """All that training needs, in memory, with the weights of `start` if there is one; see `Run`.

    Raises:
        RecipeError: base, method and rows do not go together, or too much of the rows would be lost.
        BaseNotFoundError: the base model is nowhere.
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
    """
    recipe, task = with_objective(recipe, task)
    place, training = "cpu" if sharded else device, recipe.training
    with ErrorCollector() as errors:
        check_optimizer(training, choose_device(device), errors)
        check_aligning(recipe, processes, errors)
    base = load_base(recipe.base, task, seed=training.seed, device=place, dropout=training.base_dropout)
    check_checkpointing(training, base.model)
    max_length = input_length(base, recipe)
    if base.max_length >= UNLIMITED and not recipe.data.max_length:
        progress.note(
            f"this base takes inputs of any length; the recipe names no data.max_length: {max_length} tokens."
        )
    with ErrorCollector() as errors:
        task.bind_to_base(ModelContext(base.tokenizer, base.model.config, max_length), examples, errors)
    if taken := recipe.method.input_tokens:
        progress.note(f"{taken} of the {base.max_length} tokens of an input are virtual ones: {max_length} are left.")
    encoded = encode(task, examples, base, max_length, recipe.data.max_lost, ledgers, progress)
    model = adapt(base, recipe.method, task)  # only delta and head train
    trusted = recipe.base.trust_remote_code
    started = begin_with(start, model, base, task, trust_remote_code=trusted) if start else None
    if started:
        progress.note(str(started))
    trained = trained_parameters(model)
    progress.base_loaded(base, trained)
    if heavy := heavier_than_its_base(model, base, recipe.method):
        progress.warn(heavy)
    shared = (processes, choose_device(device), sharded)
    run = Run(recipe, rows, task, examples, ledgers, base, max_length, encoded, model, trained, *shared, started)
    if training.packing:
        check_packing(run)
    return run
