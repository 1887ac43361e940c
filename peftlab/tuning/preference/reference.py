"""The reference of preference tuning: the model of a run without its adapter, or with the weights it started from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from peft import PeftModel

from peftlab.tasks import Feature
from peftlab.tasks.prediction import FeatureOutput, ForwardFunction, compute_outputs
from peftlab.tuning.distributed.inference import split_across_ranks
from peftlab.tuning.run import Run


def run_forward(run: Run) -> ForwardFunction:
    """A function that runs features through the model of the run, split across the processes."""
    size = run.recipe.training.per_device_eval_batch_size
    forward = partial(compute_outputs, run.task, run.model, run.base.inputs, batch_size=size)
    return split_across_ranks(forward, run.task, run.process_group, sharded=run.sharded)


def attach_references(run: Run, features: Sequence[Sequence[Feature]]) -> list[list[Feature]]:
    """The features of each example; if the task needs a reference, with the outputs of the reference model added.

    The reference is computed in the current autocast precision, so that both sides are rounded in the same way.
    """

    def forward_reference(labelled: Sequence[Feature]) -> Sequence[FeatureOutput]:
        with start_weights(run) if run.reference_state else adapter_disabled(run.model):
            return run_forward(run)(labelled)

    return run.task.outputs.attach_references(features, forward_reference)


@contextmanager
def start_weights(run: Run) -> Iterator[None]:
    """Inside the block `run.model` has the weights that the run started from."""
    parameters = dict(run.model.named_parameters())
    trained = {name: parameters[name].data for name in run.reference_state}
    for name, tensor in run.reference_state.items():
        parameters[name].data = tensor.to(trained[name])
    try:
        yield
    finally:
        for name, tensor in trained.items():
            parameters[name].data = tensor


@contextmanager
def adapter_disabled(model: PeftModel) -> Iterator[None]:
    """Inside the block `model` computes as the base model alone."""
    with preserve_requires_grad(model), model.disable_adapter():
        yield


@contextmanager
def preserve_requires_grad(model: PeftModel) -> Iterator[None]:
    """Restore `requires_grad` of all parameters after the block, because PEFT makes a whole adapter trainable."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
