"""Where adapters are: the shelf by itself, and banks with less room than adapters."""

import gc
import itertools
import shutil
import time
import weakref

import pytest
import torch

import peftlab
from peftlab.errors import AdapterNotFoundError, IntegrityError, MemoryBudgetError
from peftlab.runtime import Bank
from peftlab.runtime.adapter_template import LoadedAdapter
from peftlab.runtime.lru_cache import LRUCache
from peftlab.store import CONFIG_FILE, WEIGHTS_FILE, Store
from tests.architectures import build
from tests.methods.test_method_matrix import METHODS, enlarge_weights
from tests.serving import build_feature, predict_each
from tests.task_stores import recipe_for
from tests.untrained import damage, perturbed, publish_changed, publish_constant_label, publish_untrained

NAMES = ("lora", "lora-2", "lora-3", "pfeiffer", "prompt")
TEXTS = ("the train was late , it rained .", "nobody came .")
MISSING = "was not loaded"

# the shelf


def make_cache(budget, **values):
    cache = LRUCache(budget, len)
    for key, value in values.items():
        cache.put(key, value)
    return cache


def keys_of(cache):
    return "".join(key for key in "abcdefgh" if key in cache)


def test_cache_without_capacity_evicts_no_entry():
    cache = make_cache(None, a="x" * 1000, b="y")
    assert (keys_of(cache), cache.total_size, len(cache)) == ("ab", 1001, 2)
    cache.pin("a")
    assert cache.unpin("a") == []


def test_least_recently_used_entry_is_evicted_first():
    cache = make_cache(6, a="xx", b="xx", c="xx")
    assert cache.get("a") == "xx"
    assert cache.put("d", "xx") == ["b"]
    assert cache.put("e", "xxxx") == ["c", "a"]
    assert (keys_of(cache), cache.total_size) == ("de", 6)


def test_exact_fit_evicts_no_entry():
    cache = make_cache(4, a="xx")
    assert cache.put("b", "xx") == []
    assert cache.put("c", "") == []
    assert (keys_of(cache), cache.total_size) == ("abc", 4)


def test_contains_does_not_update_recency():
    cache = make_cache(4, a="xx", b="xx")
    assert "a" in cache
    assert cache.put("c", "xx") == ["a"]


def test_miss_returns_none():
    cache = make_cache(4, a="xx")
    assert cache.get("b") is None
    cache.pop("b")
    assert (keys_of(cache), cache.total_size) == ("a", 2)


def test_replacing_value_updates_total_size():
    cache = make_cache(4, a="xx", b="xx")
    assert cache.put("a", "x") == []
    assert (keys_of(cache), cache.total_size, cache.get("a")) == ("ab", 3, "x")


def test_pinned_entry_exceeds_capacity_until_unpin():
    cache = make_cache(4, a="xx", b="xx")
    cache.pin("a")
    cache.pin("b")
    assert cache.put("c", "xx") == []
    assert (keys_of(cache), cache.total_size) == ("abc", 6)
    assert cache.unpin("b") == ["b"]
    assert (keys_of(cache), cache.total_size) == ("ac", 4)
    assert cache.unpin("a") == []
    assert cache.put("d", "xx") == ["a"]


def test_entry_is_pinned_until_last_unpin():
    cache = make_cache(2, a="xx")
    for key in "aab":
        cache.pin(key)
    cache.put("b", "xx")
    assert (cache.unpin("a"), cache.is_pinned("a")) == ([], True)
    assert (cache.unpin("a"), cache.is_pinned("a")) == (["a"], False)
    assert keys_of(cache) == "b"


def test_missing_key_can_be_pinned():
    cache = make_cache(2)
    cache.pin("a")
    cache.put("a", "xx")
    cache.put("b", "xx")
    assert keys_of(cache) == "ab"
    assert cache.unpin("a") == ["a"]


def test_pop_of_pinned_entry_updates_total_size():
    cache = make_cache(2, a="xx")
    cache.pin("a")
    cache.pop("a")
    assert (keys_of(cache), cache.total_size, cache.is_pinned("a")) == ("", 0, True)
    assert cache.unpin("a") == []
    assert not cache.is_pinned("a")


def test_single_large_value_remains_until_next_put():
    cache = make_cache(4, a="xx")
    assert cache.put("b", "xxxxx") == ["a"]
    assert (keys_of(cache), cache.total_size) == ("b", 5)
    assert cache.put("c", "x") == ["b"]
    assert (keys_of(cache), cache.total_size) == ("c", 1)


# banks


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return enlarge_weights(build("bert", tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def common_store(base, tmp_path_factory):
    """Three LoRAs of one size, and two of other methods. Read only."""
    folder = tmp_path_factory.mktemp("tiers")
    recipe = recipe_for(folder / "rows", base, "classes")
    for name in ("lora", "pfeiffer", "prompt"):
        publish_untrained(folder / "store", recipe, {"name": name, "method": METHODS[name]})
    for number in (2, 3):
        publish_changed(folder / "store", "lora", lambda t, seed=number: perturbed(t, seed), name=f"lora-{number}")
    return folder / "store"


@pytest.fixture
def store(common_store, tmp_path):
    """The same, free to be changed."""
    return shutil.copytree(common_store, tmp_path / "store")


@pytest.fixture(scope="module")
def expected(common_store):
    """What each adapter answers where there is room for all."""
    bank = peftlab.load(*NAMES, store=common_store, device="cpu")
    return {name: answers(bank, name) for name in NAMES}


def make_features(bank, name):
    return [(name, feature) for text in TEXTS for feature in build_feature(bank, name, {"text": text})]


def answers(bank, *names):
    """Logits of TEXTS by each of `names`, in one call."""
    return torch.stack(predict_each(bank, [one for name in names for one in make_features(bank, name)]))


def size_of(store, name):
    return peftlab.load(name, store=store, device="cpu").num_bytes


def assert_answers_match(bank, expected, *names):
    wanted = torch.cat([expected[name.partition("@")[0]] for name in names])
    torch.testing.assert_close(answers(bank, *names), wanted, rtol=0, atol=1e-5)


def slot_names(bank):
    return sorted(edition.name for edition in bank._cache._slots._entries)


def memory_names(bank):
    return sorted(edition.name for edition in bank._cache._files._entries)


def state(bank):
    return bank.names, bank.num_bytes, slot_names(bank), memory_names(bank), list(bank.warnings)


def test_num_bytes_equals_tensor_bytes(common_store):
    files = [common_store / name / "1" / WEIGHTS_FILE for name in NAMES]
    bank = peftlab.load(*NAMES, store=common_store, device="cpu")
    header = 20_000  # at most
    assert (
        sum(file.stat().st_size - header for file in files)
        < bank.num_bytes
        < sum(file.stat().st_size for file in files)
    )
    assert Bank(Store(common_store)).num_bytes == 0


def test_three_adapters_in_memory_of_two(common_store, expected):
    size = size_of(common_store, "lora")
    bank = peftlab.load("lora", "lora-2", "lora-3", store=common_store, device="cpu", memory=2 * size)
    for order in itertools.permutations(bank.names):
        for name in order:
            assert_answers_match(bank, expected, name)
            assert bank.num_bytes <= 2 * size
            assert name in slot_names(bank) == memory_names(bank)
    assert bank.num_bytes == 2 * size


def test_batch_can_exceed_memory_temporarily(common_store, expected):
    size = size_of(common_store, "lora")
    bank = peftlab.load("lora", "lora-2", "lora-3", store=common_store, device="cpu", memory=size)
    assert_answers_match(bank, expected, *bank.names)
    assert bank.num_bytes == size
    assert len(slot_names(bank)) == 1
    assert slot_names(bank) == memory_names(bank)


def test_adapters_of_different_sizes_share_memory(common_store, expected):
    sizes = {name: size_of(common_store, name) for name in NAMES}
    budget = max(sizes.values()) + min(sizes.values())
    bank = peftlab.load(*NAMES, store=common_store, device="cpu", memory=budget)
    for name in (*NAMES, *reversed(NAMES), *NAMES[::2], *NAMES):
        assert_answers_match(bank, expected, name)
        assert bank.num_bytes == sum(sizes[one] for one in memory_names(bank)) <= budget


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_batch_with_more_adapters_than_slots(common_store, expected, slots):
    bank = peftlab.load(*NAMES, store=common_store, device="cpu", slots=slots)
    for names in (NAMES, NAMES[::-1], NAMES * 3):
        assert_answers_match(bank, expected, *names)
        assert len(slot_names(bank)) == slots
    assert memory_names(bank) == sorted(NAMES)


def test_forward_pass_has_at_most_slots_adapters(common_store, monkeypatch):
    bank = peftlab.load(*NAMES, store=common_store, device="cpu", slots=2)
    pinned, counts = bank._cache.pinned, []
    monkeypatch.setattr(bank._cache, "pinned", lambda keys: counts.append(len(keys)) or pinned(keys))
    bank.predict([TEXTS[0]] * 10, adapters=NAMES * 2)
    assert max(counts) == 2


def test_zero_slots_raises_value_error(common_store):
    with pytest.raises(ValueError, match="slots must be at least 1, not 0"):
        peftlab.load("lora", store=common_store, slots=0)


def test_adapter_larger_than_memory_raises_error(common_store, expected):
    sizes = {name: size_of(common_store, name) for name in ("lora", "pfeiffer")}
    small, large = sorted(sizes, key=sizes.get)
    bank = peftlab.load(small, store=common_store, device="cpu", memory=sizes[large] - 1)
    before = state(bank)
    with pytest.raises(MemoryBudgetError) as error:
        bank.add(large)
    assert str(error.value) == (
        f"{large}@1 takes {sizes[large]:,} bytes, and all adapters together may take {sizes[large] - 1:,}."
        " Give them more: --memory, or load(…, memory=…)."
    )
    assert error.value.exit_code == 5
    assert state(bank) == before
    assert_answers_match(bank, expected, small)


def test_removed_adapter_is_missing_until_next_add(common_store, expected):
    bank = peftlab.load("lora", "lora-2", "prompt", store=common_store, device="cpu")
    before = bank.num_bytes
    for name in ("lora-2", "prompt"):
        bank.remove(name)
    assert bank.names == ["lora"]
    assert slot_names(bank) == memory_names(bank) == ["lora"]
    for use in (
        lambda: bank.predict(TEXTS, adapters="lora-2"),
        lambda: list(bank.stream([("lora-2", TEXTS[0])])),
        *(
            lambda use=use: use("lora-2")
            for use in (bank.remove, bank.prefetch, bank.merge, bank.unmerge, bank.is_routed)
        ),
        *(lambda use=use: use("lora-2") for use in (bank.adapter, bank.task, bank.model, bank.full_precision_copy)),
    ):
        with pytest.raises(AdapterNotFoundError, match=f"'lora-2' {MISSING}. Did you mean 'lora'"):
            use()
    for name in ("lora-2", "prompt"):
        bank.add(name)
    assert_answers_match(bank, expected, "prompt", "lora-2", "lora")
    assert (bank.names, bank.num_bytes) == (["lora", "lora-2", "prompt"], before)


def test_empty_bank_error_and_new_adapters(common_store, expected):
    bank = peftlab.load("lora", store=common_store, device="cpu")
    bank.remove("lora")
    assert (bank.names, bank.num_bytes) == ([], 0)
    with pytest.raises(AdapterNotFoundError, match=f"{MISSING}. Loaded: none."):
        bank.predict(TEXTS, adapters="lora")
    bank.add("lora-3")
    assert_answers_match(bank, expected, "lora-3")
    with pytest.raises(AdapterNotFoundError, match=r"no adapter was added\. Available: lora, lora-2, lora-3, pf"):
        _ = Bank(Store(common_store)).base


def set_wrong_base(manifest):
    manifest["base"]["fingerprint"] = "0" * 64


def set_wrong_tokenizer(manifest):
    manifest["base"]["tokenizer_sha256"] = "0" * 64


def write_invalid_tensors(folder):
    (folder / WEIGHTS_FILE).write_bytes(b"no tensors")


def truncate_tensors(folder):
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-40])


def write_invalid_json(folder):
    (folder / CONFIG_FILE).write_text("{")


def set_unknown_method(folder):
    (folder / CONFIG_FILE).write_text((folder / CONFIG_FILE).read_text().replace('"LORA"', '"LORRA"'))


def remove_method(folder):
    (folder / CONFIG_FILE).write_text("{}")


def remove_config(folder):
    (folder / CONFIG_FILE).unlink()


WRONG = {
    "a flipped bit": ({}, rf"wrong@1 is not what was published:\n  {WEIGHTS_FILE}: changed"),
    "another base": ({"told": set_wrong_base}, "wrong@1 was tuned on .* with weights 000000000000…"),
    "another tokenizer": ({"told": set_wrong_tokenizer}, "wrong@1 was tuned on .* with tokenizer 000000000000…"),
    "no tensors": ({"finish": write_invalid_tensors}, f"wrong@1: {WEIGHTS_FILE} cannot be read: "),
    "cut short": ({"finish": truncate_tensors}, f"wrong@1: {WEIGHTS_FILE} cannot be read: "),
    "no JSON": ({"finish": write_invalid_json}, f"wrong@1: {CONFIG_FILE} cannot be read: "),
    "an unknown method": (
        {"finish": set_unknown_method},
        f"wrong@1: {CONFIG_FILE} names a method .*: peft_type is 'LORRA'",
    ),
    "no method": ({"finish": remove_method}, f"wrong@1: {CONFIG_FILE} names a method .*: peft_type is None"),
    "no configuration": (
        {"finish": remove_config},
        f"wrong@1 was published without {CONFIG_FILE}, so there is nothing",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_failed_add_does_not_change_bank(store, expected, changes, message):
    wrong = publish_changed(store, "lora-2", name="wrong", **changes)
    if not changes:
        damage(wrong)
    for names in (["lora", "pfeiffer"], ["pfeiffer"]):  # with a mould of its kind, and without
        bank = peftlab.load(*names, store=store, device="cpu", memory=size_of(store, "lora"))  # others would go for it
        before = state(bank)
        with pytest.raises(IntegrityError, match=message):
            bank.add("wrong")
        assert state(bank) == before
        assert_answers_match(bank, expected, *names)
    with pytest.raises(IntegrityError, match=message):
        peftlab.load("wrong", store=store, device="cpu")


def test_bank_accepts_adapters_after_first_add_failed(store, expected):
    damage(publish_changed(store, "lora", name="wrong"))
    bank = Bank(Store(store), device="cpu")
    for name, error in (("wrong", IntegrityError), ("absent", AdapterNotFoundError)):
        with pytest.raises(error):
            bank.add(name)
    assert (bank.names, bank.num_bytes) == ([], 0)
    bank.add("lora")
    assert_answers_match(bank, expected, "lora")


def test_damaged_evicted_adapter_raises_error(store, expected):
    bank = peftlab.load("lora", "lora-2", store=store, device="cpu", memory=size_of(store, "lora"))
    assert_answers_match(bank, expected, "lora-2")
    damage(Store(store).resolve("lora"))
    with pytest.raises(IntegrityError, match="lora@1 is not what was published"):
        answers(bank, "lora", "lora-2")
    assert_answers_match(bank, expected, "lora-2")
    assert bank.num_bytes == size_of(store, "lora-2")
    assert not any(cache._pins for cache in (bank._cache._files, bank._cache._slots))


def wait_for(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in five seconds")


def test_prefetch_loads_adapter(common_store, expected):
    bank = peftlab.load("lora", "lora-2", "lora-3", store=common_store, device="cpu", slots=1)
    assert slot_names(bank) == ["lora-3"]
    bank.prefetch("lora")
    wait_for(lambda: slot_names(bank) == ["lora"])
    bank.prefetch("lora")  # which it is already
    assert_answers_match(bank, expected, "lora")


def test_prefetch_error_is_raised_on_predict(store):
    bank = peftlab.load("lora", "lora-2", store=store, device="cpu", memory=size_of(store, "lora"))
    damage(Store(store).resolve("lora"))
    bank.prefetch("lora")
    bank._cache._prefetch_pool.submit(int).result()  # it has been tried by now
    with pytest.raises(IntegrityError, match="lora@1 is not what was published"):
        bank.predict(TEXTS, adapters="lora")


def test_two_names_share_one_version(common_store, expected):
    bank = peftlab.load("lora", "lora@1", store=common_store, device="cpu")
    assert bank.num_bytes == size_of(common_store, "lora")
    assert slot_names(bank) == ["lora"]
    for gone, left in (("lora", "lora@1"), ("lora@1", "lora")):
        bank.remove(gone)
        assert bank.names == [left]
        assert slot_names(bank) == ["lora"]
        assert_answers_match(bank, expected, left)
        with pytest.raises(AdapterNotFoundError, match=f"'{gone}' {MISSING}"):
            bank.predict(TEXTS, adapters=gone)
        bank.add(gone)


def test_new_version_replaces_current_but_not_pinned_version(store, expected):
    bank = peftlab.load("lora", "lora@1", "lora-2", store=store, device="cpu")
    publish_constant_label(store, "lora", "answer 7")
    assert bank.predict(TEXTS[0], adapters="lora")[0].prediction.label == "answer 7"
    assert_answers_match(bank, expected, "lora@1", "lora-2")
    assert str(bank.adapter("lora")) == "lora@2"
    assert str(bank.adapter("lora@1")) == "lora@1"


def alive_objects(references):
    gc.collect()
    return [reference() for reference in references if reference() is not None]


def references_to(bank, name):
    """Weak ones to all that is there of an adapter."""
    edition = bank._registry.resolve(name)
    with bank._cache.pinned([edition]) as adapters_by_key:
        loaded, read = adapters_by_key[edition], bank._cache.files(edition)
        tensors = [*read.tensors.values(), *(update.up for update in loaded.updates)]
        return [weakref.ref(thing) for thing in (loaded, read, *loaded.modules.values(), *tensors)]


@pytest.mark.parametrize("name", ["lora", "pfeiffer", "prompt", "lora@1"])
def test_removed_adapter_is_released(common_store, name):
    bank = peftlab.load("lora-2", "pfeiffer", "prompt", "lora", "lora@1", store=common_store, device="cpu")
    bank.predict([TEXTS[0]] * 5, adapters=bank.names)
    for twin in {name, name.replace("lora@1", "lora")}:
        references = references_to(bank, twin)
        bank.remove(twin)
    if name == "lora":
        assert alive_objects(references)  # for the other name
        bank.remove("lora@1")
    assert alive_objects(references) == []


def test_previous_version_is_released(store):
    bank = peftlab.load("lora", store=store, device="cpu")
    count = len([thing for thing in gc.get_objects() if isinstance(thing, LoadedAdapter)])
    for number in range(4):
        references = references_to(bank, "lora")
        publish_constant_label(store, "lora@1", f"answer {number}")
        assert bank.predict(TEXTS[0])[0].prediction.label == f"answer {number}"
        assert alive_objects(references) == []
    assert len([thing for thing in gc.get_objects() if isinstance(thing, LoadedAdapter)]) == count
    Store(store).rollback("lora@2")
    assert bank.predict(TEXTS[0])[0].prediction.label == "answer 0"


def test_evicted_adapter_is_released(common_store, expected):
    bank = peftlab.load("lora", "lora-2", store=common_store, device="cpu", memory=size_of(common_store, "lora"))
    references = references_to(bank, "lora")
    assert_answers_match(bank, expected, "lora-2")
    assert alive_objects(references) == []


def test_failed_add_is_released(store):
    bank = peftlab.load("lora", store=store, device="cpu")
    publish_changed(store, "lora", lambda tensors: dict(list(tensors.items())[1:]), name="wrong")
    for _ in range(3):
        with pytest.raises(IntegrityError, match="does not fit its base"):
            bank.add("wrong")
    gc.collect()
    assert bank.num_bytes == sum(t.nbytes for t in bank._files("lora").tensors.values())
    assert slot_names(bank) == memory_names(bank) == ["lora"]


def test_request_keeps_removed_adapter(common_store, expected):
    bank = peftlab.load("lora", "lora-2", store=common_store, device="cpu")
    edition, features = bank._registry.resolve("lora"), make_features(bank, "lora")
    with bank._cache.pinned([edition]) as adapters_by_key:
        references = [weakref.ref(adapters_by_key[edition]), weakref.ref(bank._cache.files(edition))]
        with bank._request() as request:
            key = request.key("lora")
            bank.remove("lora")
            given = torch.stack(request.forward([(key, feature) for _, feature in features]))
        torch.testing.assert_close(given, expected["lora"], rtol=0, atol=1e-5)
        assert len(alive_objects(references)) == 2
    del adapters_by_key
    assert alive_objects(references) == []
    assert slot_names(bank) == memory_names(bank) == ["lora-2"]


def test_deleted_bank_is_released(common_store):
    bank = peftlab.load("lora", "prompt", store=common_store, device="cpu")
    bank.prefetch("lora")
    bank._cache._prefetch_pool.submit(int).result()
    references = [*references_to(bank, "lora"), *map(weakref.ref, (bank, bank._cache, bank.base, bank.base.backbone))]
    del bank
    assert alive_objects(references) == []
