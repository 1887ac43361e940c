"""The steps before training: load the base and add the adapter; the result is a `Run` that is ready to train."""

from peft import PeftModel

from peftlab import base as bases
from peftlab.base import Base, choose_device
from peftlab.methods import count_trainable_parameters, create_peft_model, size_warning
from peftlab.recipe import Recipe
from peftlab.store import Adapter
from peftlab.tasks import Task
from peftlab.tuning.baselines.measure import NO_BASELINES, Baselines
from peftlab.tuning.dataset import EncodedDataset
from peftlab.tuning.distributed.backend_check import shards_base
from peftlab.tuning.memory import check_checkpointing, check_optimizer
from peftlab.tuning.packing import check_packing
from peftlab.tuning.parameter_groups import freeze_modules
from peftlab.tuning.preference.start_reference import start_as_reference
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession
from peftlab.tuning.start_weights import load_start_weights
from peftlab.tuning.trainers import trainer_record
from peftlab.tuning.warm_start import WarmStart


def load_base(recipe: Recipe, task: Task, session: TuningSession) -> Base:
    """The frozen base of a recipe with the head of its task, on the session's device.

    Raises:
        RecipeError: the base, the device or an installed package does not support what the recipe asks for.
        BaseNotFoundError: the base was not found.
        DeviceNotFoundError: the device does not exist, or it cannot compute with a quantized base.
    """
    training = recipe.training
    with session.collect_errors() as errors:
        check_optimizer(training, choose_device(session.device), errors)
        trainer_record(recipe).check(recipe, session.process_group, errors)
    sharded = shards_base(training.distributed, session.process_group)
    with session.process_group.sync_errors():
        base = bases.load_base(
            recipe.base,
            task,
            seed=training.seed,
            device="cpu" if sharded else session.device,
            dropout=training.base_dropout,
        )
        check_checkpointing(training, base.model)
    return base


def add_adapter(
    base: Base,
    recipe: Recipe,
    dataset: EncodedDataset,
    start: Adapter | None,
    session: TuningSession,
    baselines: Baselines = NO_BASELINES,
) -> Run:
    """Add the method of the recipe to the base, so that only delta and head are trained.

    The adapter starts from the weights of `start`, if given; else the head from the linear probe of `baselines`.

    Raises:
        RecipeError: the base, the method and `start` do not fit together.
    """
    with session.process_group.sync_errors():
        model = create_peft_model(base, recipe.method, dataset.task)
        if recipe.training.freeze:
            freeze_modules(model, recipe.training.freeze, recipe.method.type)
        warm_start = _start_from(start, model, base, dataset.task, recipe) if start else None
        run = Run(
            recipe=recipe,
            dataset=dataset,
            base=base,
            model=model,
            num_trainable=count_trainable_parameters(model),
            process_group=session.process_group,
            device=choose_device(session.device),
            sharded=shards_base(recipe.training.distributed, session.process_group),
            start=warm_start,
            reference_state=start_as_reference(warm_start, model, dataset.task) if warm_start else {},
            baselines=baselines,
        )
        if (fitted := run.baselines.probe) and run.starts_from_probe:
            fitted.probe.copy_to(run.output_layer(fitted.layer))
        _report(run, session)
        if recipe.training.packing:
            check_packing(run)
    return run


def _start_from(start: Adapter, model: PeftModel, base: Base, task: Task, recipe: Recipe) -> WarmStart:
    return load_start_weights(start, model, base, task, trust_remote_code=recipe.base.trust_remote_code)


def _report(run: Run, session: TuningSession) -> None:
    if run.start:
        session.progress.info(str(run.start))
    session.progress.on_base_loaded(run.base, run.num_trainable)
    if run.base.head_note:
        session.progress.info(run.base.head_note)
    if warning := size_warning(run.model, run.base, run.recipe.method):
        session.progress.warn(warning)
