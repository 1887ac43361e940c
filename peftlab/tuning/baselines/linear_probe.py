"""A linear probe: one linear layer on states of the frozen base, fitted by L-BFGS to the loss of the task.

It is a baseline, and the start of the head: fine-tuning from random weights first distorts the features of the base
(LP-FT: Kumar et al. 2022).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftlab.tasks.heads import Head
from peftlab.tuning.baselines.states import FrozenStates

DEFAULT_STRENGTH = 0.01
"""C, the inverse strength of the L2 penalty, as in scikit-learn's LogisticRegression (decision 0042)."""
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1)
MIN_STATES = 200  # with fewer, a choice of the strength by held-out states is no better than the default
MAX_ITERATIONS = 100


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear layer: weight (labels, width), bias (labels,), and the strength of its penalty."""

    weight: Tensor
    bias: Tensor
    strength: float = DEFAULT_STRENGTH

    def copy_to(self, layer: nn.Linear) -> None:
        """Overwrite the parameters of `layer`."""
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            if layer.bias is not None:
                layer.bias.copy_(self.bias)

    @contextmanager
    def inserted_in(self, layer: nn.Linear) -> Iterator[None]:
        """Inside the block `layer` has the parameters of the probe."""
        before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
        self.copy_to(layer)
        try:
            yield
        finally:
            layer.load_state_dict(before)


def fit_probe(states: FrozenStates, head: Head, *, strength: float, with_bias: bool = True) -> LinearProbe:
    """Minimize the loss of `head` plus ‖weight‖² / (2 · strength · n), on states with mean 0 and mean variance 1."""
    mean, deviation = _moments(states.states, with_bias)
    inputs = (states.states - mean) / deviation
    weight = torch.zeros(len(head.labels), inputs.shape[1], requires_grad=True)
    bias = torch.zeros(len(head.labels), requires_grad=with_bias)
    trained = [weight, bias] if with_bias else [weight]
    optimizer = torch.optim.LBFGS(trained, max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = probe_loss(inputs @ weight.T + bias, states.targets, head)
        loss = loss + weight.square().sum() / (2 * strength * len(inputs))
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    weight = weight.detach() / deviation
    return LinearProbe(weight, bias.detach() - weight @ mean, strength)


def _moments(states: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """The mean, (width,), which is 0 for a layer that cannot shift by a bias, and one deviation for all states."""
    mean = states.mean(0) if with_bias else torch.zeros(states.shape[1])
    return mean, (states - mean).square().mean().sqrt().clamp(min=1e-6)


def probe_loss(logits: Tensor, targets: Tensor, head: Head) -> Tensor:
    """The loss of the head, for one logit vector per target."""
    return head.loss(logits[None], targets[None]) if head.is_token_level else head.loss(logits, targets)


def choose_strength(states: FrozenStates, head: Head, held_out: Sequence[int], *, with_bias: bool = True) -> float:
    """The strength with the lowest loss on the states of `held_out` features; the default for few states."""
    validation, training = states.select(held_out), states.select(held_out, invert=True)
    if len(states) < MIN_STATES or not (len(validation) and len(training)):
        return DEFAULT_STRENGTH

    def loss(strength: float) -> float:
        probe = fit_probe(training, head, strength=strength, with_bias=with_bias)
        return float(probe_loss(validation.states @ probe.weight.T + probe.bias, validation.targets, head))

    return min(STRENGTHS, key=loss)
