"""Batches by tokens: every row once, the usual number of batches, little padding, the same mean gradient."""

import numpy as np
import pytest
import torch

from peftlab.tuning import Progress
from peftlab.tuning.batching import TokenBatches, split_evenly
from peftlab.tuning.training_loop import _trainer
from tests.runs import prepared_run
from tests.task_stores import recipe_for


def random_lengths(n, seed=0):
    return np.random.default_rng(seed).lognormal(2.7, 0.7, n).astype(int).clip(3, 200).tolist()


@pytest.mark.parametrize(("n", "batch"), [(1, 8), (7, 8), (8, 8), (9, 8), (50, 1), (50, 2), (1000, 16), (5003, 16)])
def test_every_row_is_in_one_batch(n, batch):
    batches = TokenBatches(random_lengths(n), batch, seed=1)
    made = list(batches)
    assert len(made) == len(batches) == -(-n // batch)
    assert all(made)
    assert sorted(row for chosen in made for row in chosen) == list(range(n))


def test_batches_with_equal_tokens_and_minimal_padding():
    lengths = np.array(random_lengths(2000))
    made = list(TokenBatches(lengths.tolist(), 16, seed=1))
    tokens = np.array([lengths[chosen].sum() for chosen in made])
    padded = np.array([lengths[chosen].max() * len(chosen) for chosen in made])
    plain = np.array([lengths[i : i + 16].max() * 16 for i in range(0, 2000, 16)])
    assert tokens.std() < 0.25 * tokens.mean()
    assert padded.sum() < 1.1 * lengths.sum() < 0.7 * plain.sum()
    assert padded.max() < plain.max()


@pytest.mark.parametrize("rows", [100, 400])
def test_batches_are_fixed_by_seed_and_epoch(rows):
    first, again = (TokenBatches(random_lengths(rows), 8, seed=1) for _ in range(2))
    zero, one = list(first), (first.set_epoch(1), list(first))[1]
    again.set_epoch(1)
    assert list(again) == one
    assert len({frozenset(batch) for batch in zero} & {frozenset(batch) for batch in one}) < 0.1 * len(zero)
    assert list(TokenBatches(random_lengths(rows), 8, seed=2)) != zero


@pytest.mark.parametrize(("n", "batch", "world"), [(103, 4, 2), (103, 4, 3), (5, 2, 4), (3, 8, 2)])
def test_ranks_get_disjoint_batches(n, batch, world):
    single_run = list(TokenBatches(random_lengths(n), batch, seed=1, world_size=1))
    shares = [TokenBatches(random_lengths(n), batch, seed=1, rank=rank, world_size=world) for rank in range(world)]
    made = [list(share) for share in shares]
    assert len({len(share) for share in made}) == 1
    assert {row for share in made for chosen in share for row in chosen} == set(range(n))
    assert len(single_run) <= sum(map(len, made)) < len(single_run) + world


@pytest.mark.parametrize("seed", range(20))
def test_split_evenly_has_no_empty_part(seed):
    random = np.random.default_rng(seed)
    costs = np.sort(random.pareto(0.5, 60) + 1)
    for parts in (1, 2, 17, 30, 59, 60):
        runs = np.split(costs, split_evenly(costs, parts))
        assert len(runs) == parts
        assert all(len(run) for run in runs)


@pytest.mark.parametrize("kind", ["entities", "rating"])
def test_weighted_batches_match_full_batch_gradient(tmp_path, tiny_base, kind):
    """Every labelled word, or every row, has the same weight in every batch."""
    run = prepared_run(recipe_for(tmp_path, tiny_base, kind, training={"bf16": False}))
    trainer = _trainer(run, tmp_path / "run", Progress())
    run.model.eval()
    loader = trainer.get_train_dataloader()
    losses = [trainer.compute_loss(run.model, dict(batch)) for batch in loader]
    whole = run.task.head.collate(run.train_features, run.base.inputs)
    labels = whole.pop("labels")
    expected = run.task.head.loss(run.task.head.logits(run.model(**whole)), labels)
    assert len({len(batch["labels"]) for batch in loader}) > 1
    torch.testing.assert_close(torch.stack(losses).mean(), expected)


def test_random_sampling_uses_trainer_dataloader(tmp_path, tiny_base):
    recipe = recipe_for(tmp_path, tiny_base, "classes", training={"train_sampling_strategy": "random"})
    trainer = _trainer(prepared_run(recipe), tmp_path / "run", Progress())
    assert all("loss_weight" not in batch for batch in trainer.get_train_dataloader())
