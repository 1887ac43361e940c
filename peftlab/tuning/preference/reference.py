"""The model of a run without its adapter, as what preferences are learnt against and scored beside."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from peft import PeftModel

from peftlab.tasks import Feature
from peftlab.tasks.prediction import Outcome, Through, outcomes, with_reference
from peftlab.tuning.distributed.backends import divided
from peftlab.tuning.run import Run


def through(run: Run) -> Through:
    """How features become outcomes: through the model as it is now, shared out among the processes."""
    size = run.recipe.training.per_device_eval_batch_size
    alone = partial(outcomes, run.task, run.model, run.base.tokenizer, batch_size=size)
    return divided(alone, run.task, run.processes, sharded=run.sharded)


def referred(run: Run, features: Sequence[Sequence[Feature]]) -> list[list[Feature]]:
    """The features of each example, with what the base makes of them if the task asks for it.

    It computes in the precision of the moment: what is compared is rounded alike.
    """

    def through_base(labelled: Sequence[Feature]) -> Sequence[Outcome]:
        with adapter_off(run.model):
            return through(run)(labelled)

    return with_reference(run.task, features, through_base)


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """Inside the block `model` is the bare base."""
    with as_it_trains(model), model.disable_adapter():
        yield


@contextmanager
def as_it_trains(model: PeftModel) -> Iterator[None]:
    """What trains before the block trains after it, whatever PEFT switches on inside: it would let all of an adapter
    train, AdaLoRA's counts among it."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
