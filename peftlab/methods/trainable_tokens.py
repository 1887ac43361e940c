"""Single tokens whose embeddings train beside a LoRA: PEFT's `trainable_token_indices`.

A token that a base has hardly seen, as the end of a text mostly is to one that was taught on texts without an end, is
learnt by its own rows of the embeddings, which are few numbers; layers alone can hardly make up for them.
"""

from collections.abc import Iterator, Sequence

from torch import nn

from peftlab.base import Base
from peftlab.errors import ErrorCollector, nearest
from peftlab.tasks import Task
from peftlab.tasks.causal_lm import CausalLmTask

KEY = "method.trainable_token_indices"


def trained_tokens(base: Base, wanted: str | Sequence[str | int], task: Task) -> dict[str, list[int]]:
    """Names of the base's embeddings → the numbers of the tokens to train in them.

    Where the head's weights are the embeddings once more, PEFT trains both as one; else the head is named as well.

    Raises:
        RecipeError: the base has no such tokens, or `endings` are not one token each, or the head has a bias, which
            PEFT would leave out.
    """
    assert isinstance(task, CausalLmTask)  # the recipe was checked for it
    with ErrorCollector() as errors:
        named = isinstance(wanted, str)
        numbers = list(_ends(base, task, errors) if named else _known(base, wanted, errors))
        layers = _embeddings(base, errors)
    return {layer: sorted(set(numbers)) for layer in layers}


def _known(base: Base, wanted: Sequence[str | int], errors: ErrorCollector) -> Iterator[int]:
    vocabulary, rows = base.tokenizer.get_vocab(), base.model.get_input_embeddings().weight.shape[0]
    for token in wanted:
        number = token if isinstance(token, int) else vocabulary.get(token)
        if number is None:
            close = nearest(str(token), vocabulary)
            hint = f"Did you mean '{close}'? " if close else ""
            hint += "Tokens cannot be added: take one that the base has and its texts never use."
            errors.add(f"'{token}' is no token of this base.", key=KEY, hint=hint)
        elif number >= rows:
            errors.add(f"there is no token {token}: this base has embeddings of {rows}.", key=KEY)
        else:
            yield number


def _ends(base: Base, task: CausalLmTask, errors: ErrorCollector) -> Iterator[int]:
    vocabulary = base.tokenizer.get_vocab()
    endings = task.learned_stop_strings(base.tokenizer)
    if not endings:
        errors.add("neither the chat template nor the tokenizer of this base ends a text.", key=KEY)
    for ending in endings:
        if ending in vocabulary:
            yield from _known(base, [ending], errors)
        else:
            pieces = len(base.tokenizer(ending, add_special_tokens=False).input_ids)
            message = f"'{ending}', which ends an answer, is {pieces} tokens of this base, which stand elsewhere too."
            hint = "Take a template that ends with one, as task.template: plain does, or name the tokens to train."
            errors.add(message, key=KEY, hint=hint)


def _embeddings(base: Base, errors: ErrorCollector) -> list[str]:
    """Full names of the modules that have a row for each token."""
    given, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    tied = head.weight is given.weight
    if getattr(head, "bias", None) is not None:
        message = "the head of this base has a bias, which PEFT leaves out where single tokens train."
        errors.add(message, key=KEY, hint="Take it out.")
    modules: list[nn.Module] = [given] if tied else [given, head]
    return [name for module in modules for name, found in base.model.named_modules() if found is module]
