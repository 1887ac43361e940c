"""The model of a run without its adapter, as what preferences are learnt against and scored beside."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from peft import PeftModel

from peftlab.tasks import Feature
from peftlab.tasks.prediction import Outcome, Through, outcomes, with_reference
from peftlab.tuning.distributed.inference import split_across_ranks
from peftlab.tuning.run import Run


def run_forward(run: Run) -> Through:
    """How features become outcomes: through the model as it is now, shared out among the processes."""
    size = run.recipe.training.per_device_eval_batch_size
    alone = partial(outcomes, run.task, run.model, run.base.inputs, batch_size=size)
    return split_across_ranks(alone, run.task, run.process_group, sharded=run.sharded)


def attach_references(run: Run, features: Sequence[Sequence[Feature]]) -> list[list[Feature]]:
    """The features of each example, with what the base makes of them if the task asks for it.

    It computes in the precision of the moment: what is compared is rounded alike.
    """

    def through_base(labelled: Sequence[Feature]) -> Sequence[Outcome]:
        with adapter_disabled(run.model):
            return run_forward(run)(labelled)

    return with_reference(run.task, features, through_base)


@contextmanager
def adapter_disabled(model: PeftModel) -> Iterator[None]:
    """Inside the block `model` is the bare base."""
    with preserve_requires_grad(model), model.disable_adapter():
        yield


@contextmanager
def preserve_requires_grad(model: PeftModel) -> Iterator[None]:
    """What trains before the block trains after it, whatever PEFT switches on inside: it would let all of an adapter
    train, AdaLoRA's counts among it."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
