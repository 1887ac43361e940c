"""Full fine-tuning in the place of a method, to learn what a base can do; peftlab has no such method yet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def full_tuning(*, enabled: bool) -> Iterator[None]:
    """Inside the block, `tune` trains every weight of the base; the result is scored, and not worth publishing."""
    if not enabled:
        yield
        return
    from peftlab.methods import adapting
    from peftlab.tuning import publishing

    def adapt_all(*args: Any, **kwargs: Any) -> Any:
        model = adapting.adapt(*args, **kwargs)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "lora_" not in name and "original_module" not in name
        return model

    with (
        mock.patch("peftlab.methods.adapt", adapt_all),
        mock.patch.object(publishing, "compare_reloaded", return_value=0.0),
    ):
        yield
