"""What a bank computes for features of its adapters, before it is decoded."""

import random

from peftlab.data import Row


def predict_each(bank, asked):
    """The logits of each (adapter's name, feature), all in one call."""
    with bank._request() as request:
        return request.forward([(request.key(name), feature) for name, feature in asked])


def build_feature(bank, name, row):
    """The features of one row of an adapter's task."""
    example = bank.task(name).read_input(Row(row, ""))
    with bank._request() as request:
        return request.encode(request.files(name), [example])[0]


def max_mixed_difference(bank, features, *, rounds, seed=0, rows=40):
    """The largest difference between logits of rows in random mixtures and of the same rows alone.

    `features` maps (adapter's name, anything) to a feature.
    """
    choose, worst = random.Random(seed), 0.0
    alone = {key: predict_each(bank, [(key[0], feature)])[0] for key, feature in features.items()}
    for _ in range(rounds):
        keys = choose.choices(list(features), k=choose.randint(2, rows))
        mixed = predict_each(bank, [(key[0], features[key]) for key in keys])
        worst = max([worst, *(float((alone[key] - row).abs().max()) for key, row in zip(keys, mixed, strict=True))])
    return worst
