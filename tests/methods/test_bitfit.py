"""BitFit: differences to biases learn what the biases themselves would."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from peftlab.methods.tuners.bias import BiasLayer, BitFitConfig

INPUTS = torch.randint(0, 50, (3, 6), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 1])


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    return BertForSequenceClassification(config).eval()


def with_bias(model):
    return [name for name, module in model.named_modules() if getattr(module, "bias", None) is not None]


def make_peft_model(*, seed=0):
    model = get_peft_model(bert(), BitFitConfig(target_modules=with_bias(bert()))).eval()
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, BiasLayer) and seed:
            layer.bitfit_delta["default"].data.normal_()
    return model


def learn(model, parameters):
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    for _ in range(5):
        torch.nn.functional.cross_entropy(model(INPUTS).logits, LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model(INPUTS).logits


def test_bitfit_matches_training_the_biases():
    plain, ours = bert(), make_peft_model()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith(".bias"))
    assert torch.equal(ours(INPUTS).logits, plain(INPUTS).logits)
    trained = [[p for p in model.parameters() if p.requires_grad] for model in (plain, ours)]
    assert sum(p.numel() for p in trained[0]) == sum(p.numel() for p in trained[1])
    torch.testing.assert_close(learn(ours, trained[1]), learn(plain, trained[0]), rtol=0, atol=1e-6)


def test_bitfit_merges_and_unmerges():
    model = make_peft_model(seed=2)
    expected = model(INPUTS).logits
    model.merge_adapter()
    torch.testing.assert_close(model(INPUTS).logits, expected, rtol=0, atol=1e-6)
    with model.disable_adapter():
        torch.testing.assert_close(model(INPUTS).logits, bert()(INPUTS).logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(INPUTS).logits, expected, rtol=0, atol=1e-6)
    merged = make_peft_model(seed=2).merge_and_unload()
    assert not any(isinstance(module, BiasLayer) for module in merged.modules())
    torch.testing.assert_close(merged(INPUTS).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_reloaded_bitfit_yields_equal_logits(tmp_path, low_cpu_mem_usage):
    model = make_peft_model(seed=2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(bert(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(again(INPUTS).logits, model(INPUTS).logits)
