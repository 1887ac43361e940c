"""Train the embeddings of single tokens together with a LoRA: PEFT's `trainable_token_indices`.

Some tokens are rare in pretraining, such as the end of a text. Training the embeddings of such a token takes few
parameters; a LoRA without them hardly learns when to use the token.
"""

from collections.abc import Iterator, Sequence

from torch import nn

from peftlab.base import Base
from peftlab.errors import ErrorCollector, nearest
from peftlab.tasks import Task

KEY = "method.trainable_token_indices"


def find_token_indices(base: Base, wanted: str | Sequence[str | int], task: Task) -> dict[str, list[int]]:
    """Names of the base's embedding modules → the ids of the tokens to train in them.

    If the head is tied to the embeddings, PEFT trains both together; otherwise the head is one of the modules.

    Raises:
        RecipeError: the base has no such tokens, an ending is not a single token, or the head has a bias, which PEFT
            would ignore.
    """
    with ErrorCollector() as errors:
        by_name = isinstance(wanted, str)
        ids = list(_ending_ids(base, task, errors) if by_name else _token_ids(base, wanted, errors))
        modules = _embedding_modules(base, errors)
    return {module: sorted(set(ids)) for module in modules}


def _token_ids(base: Base, wanted: Sequence[str | int], errors: ErrorCollector) -> Iterator[int]:
    vocabulary, rows = base.inputs.processor.get_vocab(), base.model.get_input_embeddings().weight.shape[0]
    for token in wanted:
        token_id = token if isinstance(token, int) else vocabulary.get(token)
        if token_id is None:
            close = nearest(str(token), vocabulary)
            hint = f"Did you mean '{close}'? " if close else ""
            hint += "Tokens cannot be added: take one that the base has and your texts never use."
            errors.add(f"'{token}' is not a token of this base.", key=KEY, hint=hint)
        elif token_id >= rows:
            errors.add(f"there is no token {token}: this base has embeddings of {rows}.", key=KEY)
        else:
            yield token_id


def _ending_ids(base: Base, task: Task, errors: ErrorCollector) -> Iterator[int]:
    vocabulary = base.inputs.processor.get_vocab()
    endings = task.outputs.learned_stop_strings(base.inputs)
    if not endings:
        errors.add("neither the chat template nor the tokenizer of this base ends a text.", key=KEY)
    for ending in endings:
        if ending in vocabulary:
            yield from _token_ids(base, [ending], errors)
        else:
            pieces = len(base.inputs.processor(ending, add_special_tokens=False).input_ids)
            message = f"'{ending}', which ends an answer, is not one token of this base but {pieces}."
            hint = "Take a template that ends with one, as task.template: plain does, or name the tokens to train."
            errors.add(message, key=KEY, hint=hint)


def _embedding_modules(base: Base, errors: ErrorCollector) -> list[str]:
    """Full names of the modules with one row for each token."""
    embeddings, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    tied = head.weight is embeddings.weight
    if getattr(head, "bias", None) is not None:
        message = "the head of this base has a bias, which PEFT ignores if single tokens are trained."
        errors.add(message, key=KEY, hint="Remove it.")
    modules: list[nn.Module] = [embeddings] if tied else [embeddings, head]
    return [name for module in modules for name, found in base.model.named_modules() if found is module]
