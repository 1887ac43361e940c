"""LoRA for rows of several adapters in one product, against W x + b + scaling · B A x, computed row by row."""

import random

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.runtime import low_rank
from peftlab.runtime.low_rank import LowRankUpdate, _is_long, forward_with_updates, plain_lora

TOLERANCE = 1e-5
IN, OUT = 24, 40  # (IN + OUT) · tokens ≥ IN · OUT from 15 tokens on: then W + BA is made


@pytest.fixture(autouse=True)
def _inference_mode():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def linear(inputs=IN, outputs=OUT, *, bias=True, dtype=torch.float32):
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


class Lora:
    """An adapter's numbers, and what they do by hand to one Linear."""

    def __init__(self, base_layer, rank, scaling=1.5):
        wide, narrow = (
            getattr(base_layer, "in_features", None) or base_layer.nx,
            getattr(base_layer, "out_features", None) or base_layer.nf,
        )
        self.down, self.up, self.scaling = torch.randn(rank, wide) / 5, torch.randn(narrow, rank) / 5, scaling
        self.update = LowRankUpdate(base_layer, self.down, self.up, scaling)

    def delta(self, x):
        return self.scaling * (x.float() @ self.down.T) @ self.up.T


def parts_of(adapters, lengths):
    """(update, rows) that cover a batch in order."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    updates = [lora and lora.update for lora in adapters]
    return [(u, slice(start, start + n)) for u, start, n in zip(updates, starts, lengths, strict=True)]


def expected_output(base_layer, x, adapters, lengths):
    """One row at a time."""
    weight, bias = base_layer.weight.float(), 0 if base_layer.bias is None else base_layer.bias.float()
    whose = [lora for lora, count in zip(adapters, lengths, strict=True) for _ in range(count)]
    rows = [
        row.float() @ weight.T + bias + (lora.delta(row) if lora else 0) for row, lora in zip(x, whose, strict=True)
    ]
    return torch.stack(rows)


@pytest.fixture(autouse=True)
def low_merge_cost(monkeypatch):
    monkeypatch.setattr(low_rank, "MERGE_COST", 1)


def assert_matches_expected(base_layer, x, adapters, lengths, tolerance=TOLERANCE):
    given = forward_with_updates(base_layer, x, parts_of(adapters, lengths))
    assert given.dtype == x.dtype
    torch.testing.assert_close(given.float(), expected_output(base_layer, x, adapters, lengths), rtol=0, atol=tolerance)


def long_segments(adapters, lengths, tokens):
    return [_is_long(part, tokens, (OUT, IN)) for part in parts_of(adapters, lengths)]


# rows of each adapter, tokens, whether each segment is long
LENGTHS = {
    "long": ((4, 6), 8, [True, True]),
    "short and equal": ((2, 2, 2), 5, [False] * 3),
    "short and unequal": ((1, 3, 2), 4, [False] * 3),
    "long between short": ((1, 9, 2, 1), 4, [False, True, False, False]),
    "one row each": ((1,) * 7, 3, [False] * 7),
    "one row alone": ((1,), 3, [False]),
    "one long alone": ((3,), 20, [True]),
    "one token a row": ((1, 2, 16, 3), 1, [False, False, True, False]),
    "as many tokens as rows": ((2, 3), 5, [False, True]),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("ranks", [(4,), (4, 1, 8)], ids=["one rank", "several ranks"])
@pytest.mark.parametrize(("lengths", "tokens", "long"), LENGTHS.values(), ids=LENGTHS)
def test_each_row_uses_update_of_adapter(lengths, tokens, long, ranks, bias):
    base_layer = linear(bias=bias)
    adapters = [Lora(base_layer, ranks[i % len(ranks)], scaling=0.5 + i) for i in range(len(lengths))]
    assert long_segments(adapters, lengths, tokens) == long
    assert_matches_expected(base_layer, torch.randn(sum(lengths), tokens, IN), adapters, lengths)


@pytest.mark.parametrize("lengths", [(2, 1, 2), (1, 6, 1), (8, 1, 8), (3, 3, 3)])
@pytest.mark.parametrize("base_segments", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_base_rows_at_any_position(lengths, base_segments, bias):
    base_layer = linear(bias=bias)
    adapters = [None if i in base_segments else Lora(base_layer, 4) for i in range(3)]
    x = torch.randn(sum(lengths), 4, IN)
    assert_matches_expected(base_layer, x, adapters, lengths)
    if len(base_segments) == 3:
        assert torch.equal(forward_with_updates(base_layer, x, parts_of([None], [len(x)])), base_layer(x))


def test_random_shapes():
    choose = random.Random(0)
    for _ in range(60):
        base_layer = linear(choose.randint(1, 40), choose.randint(1, 40), bias=choose.random() < 0.5)
        lengths = choose.choices(range(1, 9), k=choose.randint(1, 6))
        ranks = choose.choices(range(9), k=len(lengths))
        adapters = [Lora(base_layer, rank, choose.uniform(0.1, 2)) if rank else None for rank in ranks]
        shape = [sum(lengths), *choose.choices(range(1, 7), k=choose.randint(0, 2)), base_layer.in_features]
        assert_matches_expected(base_layer, torch.randn(shape), adapters, lengths)


@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (2, 3, 2)], ids=["2-D", "3-D", "4-D", "5-D"])
@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 1, 4), (12, 1, 9)])
def test_output_shape_matches_input_shape(shape, lengths):
    base_layer = linear()
    x = torch.randn(sum(lengths), *shape, IN)
    adapters = [Lora(base_layer, rank) for rank in (4, 2, 4)]
    assert forward_with_updates(base_layer, x, parts_of(adapters, lengths)).shape == (*x.shape[:-1], OUT)
    assert_matches_expected(base_layer, x, adapters, lengths)


STRIDED = {
    "some tokens of more": lambda: torch.randn(6, 9, IN)[:, 2:6],
    "every other token": lambda: torch.randn(6, 8, IN)[:, ::2],
    "the first token": lambda: torch.randn(6, 8, IN)[:, 0],
    "tokens before rows": lambda: torch.randn(4, 6, IN).transpose(0, 1),
    "numbers before tokens": lambda: torch.randn(6, IN, 4).transpose(1, 2),
    "heads before tokens": lambda: torch.randn(6, 2, 4, IN).transpose(1, 2),
    "one row for all": lambda: torch.randn(1, 4, IN).expand(6, -1, -1),
}


@pytest.mark.parametrize("lengths", [(1,) * 6, (2, 2, 2), (1, 2, 3), (6,)], ids=str)
@pytest.mark.parametrize("made", STRIDED.values(), ids=STRIDED)
def test_noncontiguous_inputs(made, lengths):
    base_layer, x = linear(), made()
    before = x.clone()
    assert_matches_expected(base_layer, x, [Lora(base_layer, 4) for _ in lengths], lengths)
    assert torch.equal(x, before)


@pytest.mark.parametrize("lengths", [(1, 1), (2, 3), (20, 1), (20, 20)], ids=str)
def test_small_bf16_update_with_large_weight(lengths):
    base_layer = linear(dtype=torch.bfloat16)
    base_layer.weight.copy_(torch.full((OUT, IN), 4.0))  # of which W + BA would keep nothing below 1/64
    adapters = [Lora(base_layer, 4, scaling=0.01) for _ in lengths]
    assert long_segments(adapters, lengths, 4) == [False] * 2
    x = torch.randn(sum(lengths), 4, IN).bfloat16()
    x -= x.mean(-1, keepdim=True)
    for update, part in parts_of(adapters, lengths):
        assert update.down.dtype == update.up.dtype == torch.bfloat16
        exact = expected_output(
            base_layer, x[part], [lora for lora in adapters if lora.update is update], [part.stop - part.start]
        )
        given = forward_with_updates(base_layer, x, parts_of(adapters, lengths))[part].float()
        torch.testing.assert_close(given, exact, rtol=2**-7, atol=2**-7)


def test_base_dtype_different_from_input_dtype():
    base_layer = linear()
    with torch.autocast("cpu", torch.bfloat16):
        lora, x = Lora(base_layer, 4), torch.randn(3, 2, IN).bfloat16()
        given = forward_with_updates(base_layer, x, parts_of([lora], [3]))
    torch.testing.assert_close(given.float(), expected_output(base_layer, x, [lora], [3]), rtol=0, atol=0.05)


@pytest.mark.parametrize("lengths", [(1, 2), (30, 30)], ids=str)
@pytest.mark.parametrize("kind", [Linear8bitLt, Linear4bit])
def test_quantized_base_with_updates(kind, lengths):
    extra = {"has_fp16_weights": False} if kind is Linear8bitLt else {"quant_type": "nf4"}
    with torch.inference_mode(False), torch.no_grad():
        base_layer = kind(64, 64, **extra)
        base_layer.load_state_dict(nn.Linear(64, 64).state_dict())
        base_layer = base_layer.to("cpu")
    assert not base_layer.weight.is_floating_point()
    adapters, x = [Lora(base_layer, 4), Lora(base_layer, 2)], torch.randn(sum(lengths), 3, 64)
    alone = base_layer(x)
    whose = [lora for lora, count in zip(adapters, lengths, strict=True) for _ in range(count)]
    expected = torch.stack([y + lora.delta(row) for y, row, lora in zip(alone, x, whose, strict=True)])
    torch.testing.assert_close(
        forward_with_updates(base_layer, x, parts_of(adapters, lengths)), expected, rtol=0, atol=TOLERANCE
    )
    adapters[0].update.merge()  # there is no W to fold into
    assert adapters[0].update.merged_weight is None


def test_conv1d_base_with_updates():
    base_layer = Conv1D(OUT, IN)
    base_layer.bias.normal_()
    lora, x = Lora(base_layer, 4), torch.randn(5, 3, IN)
    given = forward_with_updates(base_layer, x, parts_of([lora, None], [3, 2]))
    torch.testing.assert_close(given[:3], base_layer(x[:3]) + lora.delta(x[:3]), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(given[3:], base_layer(x[3:]), rtol=0, atol=TOLERANCE)


# folded


def test_merged_long_segment_is_bitwise_equal():
    base_layer = linear()
    lora, x = Lora(base_layer, 4), torch.randn(4, 8, IN)
    before = base_layer.weight.clone(), base_layer.bias.clone()
    assert long_segments([lora], [4], 8) == [True]
    expected = forward_with_updates(base_layer, x, parts_of([lora], [4]))
    lora.update.merge()
    assert torch.equal(forward_with_updates(base_layer, x, parts_of([lora], [4])), expected)
    lora.update.unmerge()
    assert torch.equal(forward_with_updates(base_layer, x, parts_of([lora], [4])), expected)
    assert torch.equal(base_layer.weight, before[0])
    assert torch.equal(base_layer.bias, before[1])


def test_merged_short_segments():
    base_layer = linear()
    adapters, lengths = (
        [Lora(base_layer, 4), Lora(base_layer, 2), Lora(base_layer, 4), None, Lora(base_layer, 1)],
        (1, 2, 1, 1, 1),
    )
    adapters[1].update.merge()
    adapters[4].update.merge()
    assert long_segments(adapters, lengths, 3) == [False, True, False, True, True]
    assert_matches_expected(base_layer, torch.randn(6, 3, IN), adapters, lengths)


def test_unmerge_frees_memory():
    base_layer = linear()
    update = Lora(base_layer, 4).update
    small = update.num_bytes
    assert small == 4 * (4 * IN + 4 * OUT)
    update.merge()
    assert update.num_bytes == small + base_layer.weight.nbytes
    update.merge()  # folded already
    assert update.num_bytes == small + base_layer.weight.nbytes
    update.unmerge()
    assert update.num_bytes == small


@pytest.mark.parametrize("num_reads", [1, 2, 3])
def test_unmerge_during_forward(num_reads):
    """Another thread may unfold it between any two looks at it."""
    base_layer = linear()
    lora, x = Lora(base_layer, 4), torch.randn(4, 8, IN)
    left = [lora.update.merge_into(base_layer.weight)] * num_reads

    class UnmergeOnReadUpdate(LowRankUpdate):
        merged_weight = property(lambda self: left.pop() if left else None, lambda self, value: None)

    given = forward_with_updates(
        base_layer, x, [(UnmergeOnReadUpdate(base_layer, lora.down, lora.up, lora.scaling), slice(0, 4))]
    )
    torch.testing.assert_close(given, expected_output(base_layer, x, [lora], [4]), rtol=0, atol=TOLERANCE)


def test_call_applies_linear_with_update():
    base_layer = linear()
    lora, x = Lora(base_layer, 4), torch.randn(3, 2, IN)
    torch.testing.assert_close(lora.update(x), expected_output(base_layer, x, [lora], [3]), rtol=0, atol=TOLERANCE)


# which of PEFT's layers are that plain


def make_layer(**options):
    with torch.inference_mode(False):
        model = nn.Sequential(linear(), nn.Embedding(4, 8))
        options = {"r": 4, "lora_alpha": 12, "target_modules": ["0"], "init_lora_weights": False, **options}
        return get_peft_model(model, LoraConfig(**options)).base_model.model


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 3.0), (True, 6.0)])
def test_plain_lora_equals_update(rslora, scaling):
    layer = make_layer(use_rslora=rslora).eval()[0]
    assert plain_lora(layer) == ("default", scaling)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    update, x = LowRankUpdate(layer.base_layer, down, up, scaling), torch.randn(3, 5, IN)
    torch.testing.assert_close(update(x), layer(x), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_lora_options_are_not_plain(options):
    assert plain_lora(make_layer(**options)[0]) is None


def test_other_layers_are_not_plain():
    assert plain_lora(linear()) is None
    assert plain_lora(make_layer(target_modules=["1"])[1]) is None
