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
from tests.serving import features_of, served
from tests.task_stores import recipe_for
from tests.untrained import damage, publish_changed, publish_fresh, publish_saying, stirred

NAMES = ("lora", "lora-2", "lora-3", "pfeiffer", "prompt")
TEXTS = ("the train was late , it rained .", "nobody came .")
MISSING = "was not loaded"

# the shelf


def shelf_of(budget, **values):
    shelf = LRUCache(budget, len)
    for key, value in values.items():
        shelf.put(key, value)
    return shelf


def keys_of(shelf):
    return "".join(key for key in "abcdefgh" if key in shelf)


def test_without_a_budget_nothing_goes():
    shelf = shelf_of(None, a="x" * 1000, b="y")
    assert (keys_of(shelf), shelf.total_size, len(shelf)) == ("ab", 1001, 2)
    shelf.pin("a")
    assert shelf.unpin("a") == []


def test_what_was_used_longest_ago_goes_first():
    shelf = shelf_of(6, a="xx", b="xx", c="xx")
    assert shelf.get("a") == "xx"
    assert shelf.put("d", "xx") == ["b"]
    assert shelf.put("e", "xxxx") == ["c", "a"]
    assert (keys_of(shelf), shelf.total_size) == ("de", 6)


def test_what_only_just_fits_puts_nothing_out():
    shelf = shelf_of(4, a="xx")
    assert shelf.put("b", "xx") == []
    assert shelf.put("c", "") == []
    assert (keys_of(shelf), shelf.total_size) == ("abc", 4)


def test_whether_it_is_there_is_no_use_of_it():
    shelf = shelf_of(4, a="xx", b="xx")
    assert "a" in shelf
    assert shelf.put("c", "xx") == ["a"]


def test_a_miss_is_none_and_changes_nothing():
    shelf = shelf_of(4, a="xx")
    assert shelf.get("b") is None
    shelf.pop("b")
    assert (keys_of(shelf), shelf.total_size) == ("a", 2)


def test_a_value_in_the_place_of_another_takes_its_own_size():
    shelf = shelf_of(4, a="xx", b="xx")
    assert shelf.put("a", "x") == []
    assert (keys_of(shelf), shelf.total_size, shelf.get("a")) == ("ab", 3, "x")


def test_what_is_in_use_stays_beyond_the_budget_and_goes_when_it_is_let_go():
    shelf = shelf_of(4, a="xx", b="xx")
    shelf.pin("a")
    shelf.pin("b")
    assert shelf.put("c", "xx") == []
    assert (keys_of(shelf), shelf.total_size) == ("abc", 6)
    assert shelf.unpin("b") == ["b"]
    assert (keys_of(shelf), shelf.total_size) == ("ac", 4)
    assert shelf.unpin("a") == []
    assert shelf.put("d", "xx") == ["a"]


def test_it_is_in_use_until_the_last_of_its_users_lets_go():
    shelf = shelf_of(2, a="xx")
    for key in "aab":
        shelf.pin(key)
    shelf.put("b", "xx")
    assert (shelf.unpin("a"), shelf.is_pinned("a")) == ([], True)
    assert (shelf.unpin("a"), shelf.is_pinned("a")) == (["a"], False)
    assert keys_of(shelf) == "b"


def test_it_may_be_taken_before_it_is_there():
    shelf = shelf_of(2)
    shelf.pin("a")
    shelf.put("a", "xx")
    shelf.put("b", "xx")
    assert keys_of(shelf) == "ab"
    assert shelf.unpin("a") == ["a"]


def test_taken_out_by_force_it_leaves_its_users_and_the_count_right():
    shelf = shelf_of(2, a="xx")
    shelf.pin("a")
    shelf.pop("a")
    assert (keys_of(shelf), shelf.total_size, shelf.is_pinned("a")) == ("", 0, True)
    assert shelf.unpin("a") == []
    assert not shelf.is_pinned("a")


def test_a_single_value_that_is_too_large_stays_until_another_comes():
    shelf = shelf_of(4, a="xx")
    assert shelf.put("b", "xxxxx") == ["a"]
    assert (keys_of(shelf), shelf.total_size) == ("b", 5)
    assert shelf.put("c", "x") == ["b"]
    assert (keys_of(shelf), shelf.total_size) == ("c", 1)


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
        publish_fresh(folder / "store", recipe, {"name": name, "method": METHODS[name]})
    for number in (2, 3):
        publish_changed(folder / "store", "lora", lambda t, seed=number: stirred(t, seed), name=f"lora-{number}")
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


def asked(bank, name):
    return [(name, feature) for text in TEXTS for feature in features_of(bank, name, {"text": text})]


def answers(bank, *names):
    """Logits of TEXTS by each of `names`, in one call."""
    return torch.stack(served(bank, [one for name in names for one in asked(bank, name)]))


def size_of(store, name):
    return peftlab.load(name, store=store, device="cpu").num_bytes


def assert_right(bank, expected, *names):
    wanted = torch.cat([expected[name.partition("@")[0]] for name in names])
    torch.testing.assert_close(answers(bank, *names), wanted, rtol=0, atol=1e-5)


def in_slots(bank):
    return sorted(edition.name for edition in bank._cache._slots._entries)


def in_memory(bank):
    return sorted(edition.name for edition in bank._cache._files._entries)


def state(bank):
    return bank.names, bank.num_bytes, in_slots(bank), in_memory(bank), list(bank.warnings)


def test_bytes_are_those_of_the_tensors(common_store):
    files = [common_store / name / "1" / WEIGHTS_FILE for name in NAMES]
    bank = peftlab.load(*NAMES, store=common_store, device="cpu")
    header = 20_000  # at most
    assert (
        sum(file.stat().st_size - header for file in files)
        < bank.num_bytes
        < sum(file.stat().st_size for file in files)
    )
    assert Bank(Store(common_store)).num_bytes == 0


def test_three_adapters_in_the_memory_of_two_answer_right_in_any_order(common_store, expected):
    size = size_of(common_store, "lora")
    bank = peftlab.load("lora", "lora-2", "lora-3", store=common_store, device="cpu", memory=2 * size)
    for order in itertools.permutations(bank.names):
        for name in order:
            assert_right(bank, expected, name)
            assert bank.num_bytes <= 2 * size
            assert name in in_slots(bank) == in_memory(bank)
    assert bank.num_bytes == 2 * size


def test_one_batch_may_need_more_than_the_memory_and_gives_it_back(common_store, expected):
    size = size_of(common_store, "lora")
    bank = peftlab.load("lora", "lora-2", "lora-3", store=common_store, device="cpu", memory=size)
    assert_right(bank, expected, *bank.names)
    assert bank.num_bytes == size
    assert len(in_slots(bank)) == 1
    assert in_slots(bank) == in_memory(bank)


def test_adapters_of_other_sizes_share_the_memory(common_store, expected):
    sizes = {name: size_of(common_store, name) for name in NAMES}
    budget = max(sizes.values()) + min(sizes.values())
    bank = peftlab.load(*NAMES, store=common_store, device="cpu", memory=budget)
    for name in (*NAMES, *reversed(NAMES), *NAMES[::2], *NAMES):
        assert_right(bank, expected, name)
        assert bank.num_bytes == sum(sizes[one] for one in in_memory(bank)) <= budget


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_batches_of_more_adapters_than_slots_answer_right(common_store, expected, slots):
    bank = peftlab.load(*NAMES, store=common_store, device="cpu", slots=slots)
    for names in (NAMES, NAMES[::-1], NAMES * 3):
        assert_right(bank, expected, *names)
        assert len(in_slots(bank)) == slots
    assert in_memory(bank) == sorted(NAMES)


def test_no_pass_has_more_adapters_than_slots(common_store, monkeypatch):
    bank = peftlab.load(*NAMES, store=common_store, device="cpu", slots=2)
    pinned, counts = bank._cache.pinned, []
    monkeypatch.setattr(bank._cache, "pinned", lambda keys: counts.append(len(keys)) or pinned(keys))
    bank.predict([TEXTS[0]] * 10, adapters=NAMES * 2)
    assert max(counts) == 2


def test_slots_are_at_least_one(common_store):
    with pytest.raises(ValueError, match="slots must be at least 1, not 0"):
        peftlab.load("lora", store=common_store, slots=0)


def test_an_adapter_larger_than_the_memory_is_refused_in_words(common_store, expected):
    sizes = {name: size_of(common_store, name) for name in ("lora", "pfeiffer")}
    small, large = sorted(sizes, key=sizes.get)
    bank = peftlab.load(small, store=common_store, device="cpu", memory=sizes[large] - 1)
    before = state(bank)
    with pytest.raises(MemoryBudgetError) as told:
        bank.add(large)
    assert str(told.value) == (
        f"{large}@1 takes {sizes[large]:,} bytes, and all adapters together may take {sizes[large] - 1:,}."
        " Give them more: --memory, or load(…, memory=…)."
    )
    assert told.value.exit_code == 5
    assert state(bank) == before
    assert_right(bank, expected, small)


def test_a_removed_adapter_is_not_found_until_it_is_added_again(common_store, expected):
    bank = peftlab.load("lora", "lora-2", "prompt", store=common_store, device="cpu")
    before = bank.num_bytes
    for name in ("lora-2", "prompt"):
        bank.remove(name)
    assert bank.names == ["lora"]
    assert in_slots(bank) == in_memory(bank) == ["lora"]
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
    assert_right(bank, expected, "prompt", "lora-2", "lora")
    assert (bank.names, bank.num_bytes) == (["lora", "lora-2", "prompt"], before)


def test_without_any_adapter_left_the_bank_says_so_and_takes_new_ones(common_store, expected):
    bank = peftlab.load("lora", store=common_store, device="cpu")
    bank.remove("lora")
    assert (bank.names, bank.num_bytes) == ([], 0)
    with pytest.raises(AdapterNotFoundError, match=f"{MISSING}. Loaded: none."):
        bank.predict(TEXTS, adapters="lora")
    bank.add("lora-3")
    assert_right(bank, expected, "lora-3")
    with pytest.raises(AdapterNotFoundError, match=r"no adapter was added\. Available: lora, lora-2, lora-3, pf"):
        _ = Bank(Store(common_store)).base


def another_base(manifest):
    manifest["base"]["fingerprint"] = "0" * 64


def another_tokenizer(manifest):
    manifest["base"]["tokenizer_sha256"] = "0" * 64


def not_tensors(folder):
    (folder / WEIGHTS_FILE).write_bytes(b"no tensors")


def cut_short(folder):
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-40])


def not_json(folder):
    (folder / CONFIG_FILE).write_text("{")


def of_an_unknown_method(folder):
    (folder / CONFIG_FILE).write_text((folder / CONFIG_FILE).read_text().replace('"LORA"', '"LORRA"'))


def without_a_method(folder):
    (folder / CONFIG_FILE).write_text("{}")


def no_configuration(folder):
    (folder / CONFIG_FILE).unlink()


WRONG = {
    "a flipped bit": ({}, rf"wrong@1 is not what was published:\n  {WEIGHTS_FILE}: changed"),
    "another base": ({"told": another_base}, "wrong@1 was tuned on .* with weights 000000000000…"),
    "another tokenizer": ({"told": another_tokenizer}, "wrong@1 was tuned on .* with tokenizer 000000000000…"),
    "no tensors": ({"finish": not_tensors}, f"wrong@1: {WEIGHTS_FILE} cannot be read: "),
    "cut short": ({"finish": cut_short}, f"wrong@1: {WEIGHTS_FILE} cannot be read: "),
    "no JSON": ({"finish": not_json}, f"wrong@1: {CONFIG_FILE} cannot be read: "),
    "an unknown method": (
        {"finish": of_an_unknown_method},
        f"wrong@1: {CONFIG_FILE} is of a method .*: peft_type is 'LORRA'",
    ),
    "no method": ({"finish": without_a_method}, f"wrong@1: {CONFIG_FILE} is of a method .*: peft_type is None"),
    "no configuration": (
        {"finish": no_configuration},
        f"wrong@1 was published without {CONFIG_FILE}, so there is nothing",
    ),
}


@pytest.mark.parametrize(("how", "message"), WRONG.values(), ids=WRONG)
def test_a_failed_add_changes_nothing(store, expected, how, message):
    wrong = publish_changed(store, "lora-2", name="wrong", **how)
    if not how:
        damage(wrong)
    for names in (["lora", "pfeiffer"], ["pfeiffer"]):  # with a mould of its kind, and without
        bank = peftlab.load(*names, store=store, device="cpu", memory=size_of(store, "lora"))  # others would go for it
        before = state(bank)
        with pytest.raises(IntegrityError, match=message):
            bank.add("wrong")
        assert state(bank) == before
        assert_right(bank, expected, *names)
    with pytest.raises(IntegrityError, match=message):
        peftlab.load("wrong", store=store, device="cpu")


def test_a_first_adapter_that_fails_leaves_a_bank_that_takes_others(store, expected):
    damage(publish_changed(store, "lora", name="wrong"))
    bank = Bank(Store(store), device="cpu")
    for name, error in (("wrong", IntegrityError), ("absent", AdapterNotFoundError)):
        with pytest.raises(error):
            bank.add(name)
    assert (bank.names, bank.num_bytes) == ([], 0)
    bank.add("lora")
    assert_right(bank, expected, "lora")


def test_an_adapter_whose_files_are_gone_when_they_are_asked_for_again_is_told(store, expected):
    bank = peftlab.load("lora", "lora-2", store=store, device="cpu", memory=size_of(store, "lora"))
    assert_right(bank, expected, "lora-2")
    damage(Store(store).resolve("lora"))
    with pytest.raises(IntegrityError, match="lora@1 is not what was published"):
        answers(bank, "lora", "lora-2")
    assert_right(bank, expected, "lora-2")
    assert bank.num_bytes == size_of(store, "lora-2")
    assert not any(cache._pins for cache in (bank._cache._files, bank._cache._slots))


def wait_for(what):
    for _ in range(500):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in five seconds")


def test_what_is_prefetched_is_ready_before_it_is_asked_for(common_store, expected):
    bank = peftlab.load("lora", "lora-2", "lora-3", store=common_store, device="cpu", slots=1)
    assert in_slots(bank) == ["lora-3"]
    bank.prefetch("lora")
    wait_for(lambda: in_slots(bank) == ["lora"])
    bank.prefetch("lora")  # which it is already
    assert_right(bank, expected, "lora")


def test_what_cannot_be_prefetched_is_told_when_it_is_asked_for(store):
    bank = peftlab.load("lora", "lora-2", store=store, device="cpu", memory=size_of(store, "lora"))
    damage(Store(store).resolve("lora"))
    bank.prefetch("lora")
    bank._cache._prefetch_pool.submit(int).result()  # it has been tried by now
    with pytest.raises(IntegrityError, match="lora@1 is not what was published"):
        bank.predict(TEXTS, adapters="lora")


def test_two_names_of_one_version_share_it_and_removing_one_keeps_the_other(common_store, expected):
    bank = peftlab.load("lora", "lora@1", store=common_store, device="cpu")
    assert bank.num_bytes == size_of(common_store, "lora")
    assert in_slots(bank) == ["lora"]
    for gone, left in (("lora", "lora@1"), ("lora@1", "lora")):
        bank.remove(gone)
        assert bank.names == [left]
        assert in_slots(bank) == ["lora"]
        assert_right(bank, expected, left)
        with pytest.raises(AdapterNotFoundError, match=f"'{gone}' {MISSING}"):
            bank.predict(TEXTS, adapters=gone)
        bank.add(gone)


def test_a_new_version_takes_the_place_of_the_old_but_for_those_who_name_it(store, expected):
    bank = peftlab.load("lora", "lora@1", "lora-2", store=store, device="cpu")
    publish_saying(store, "lora", "answer 7")
    assert bank.predict(TEXTS[0], adapters="lora")[0].prediction.label == "answer 7"
    assert_right(bank, expected, "lora@1", "lora-2")
    assert str(bank.adapter("lora")) == "lora@2"
    assert str(bank.adapter("lora@1")) == "lora@1"


def alive(references):
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
def test_a_removed_adapter_leaves_nothing_in_memory(common_store, name):
    bank = peftlab.load("lora-2", "pfeiffer", "prompt", "lora", "lora@1", store=common_store, device="cpu")
    bank.predict([TEXTS[0]] * 5, adapters=bank.names)
    for twin in {name, name.replace("lora@1", "lora")}:
        references = references_to(bank, twin)
        bank.remove(twin)
    if name == "lora":
        assert alive(references)  # for the other name
        bank.remove("lora@1")
    assert alive(references) == []


def test_nothing_stays_of_the_version_before(store):
    bank = peftlab.load("lora", store=store, device="cpu")
    count = len([thing for thing in gc.get_objects() if isinstance(thing, LoadedAdapter)])
    for number in range(4):
        references = references_to(bank, "lora")
        publish_saying(store, "lora@1", f"answer {number}")
        assert bank.predict(TEXTS[0])[0].prediction.label == f"answer {number}"
        assert alive(references) == []
    assert len([thing for thing in gc.get_objects() if isinstance(thing, LoadedAdapter)]) == count
    Store(store).rollback("lora@2")
    assert bank.predict(TEXTS[0])[0].prediction.label == "answer 0"


def test_nothing_stays_of_what_went_out_of_memory(common_store, expected):
    bank = peftlab.load("lora", "lora-2", store=common_store, device="cpu", memory=size_of(common_store, "lora"))
    references = references_to(bank, "lora")
    assert_right(bank, expected, "lora-2")
    assert alive(references) == []


def test_nothing_stays_of_a_failed_add(store):
    bank = peftlab.load("lora", store=store, device="cpu")
    publish_changed(store, "lora", lambda tensors: dict(list(tensors.items())[1:]), name="wrong")
    for _ in range(3):
        with pytest.raises(IntegrityError, match="does not fit its base"):
            bank.add("wrong")
    gc.collect()
    assert bank.num_bytes == sum(t.nbytes for t in bank._files("lora").tensors.values())
    assert in_slots(bank) == in_memory(bank) == ["lora"]


def test_a_request_that_is_at_it_keeps_what_is_removed_meanwhile(common_store, expected):
    bank = peftlab.load("lora", "lora-2", store=common_store, device="cpu")
    edition, features = bank._registry.resolve("lora"), asked(bank, "lora")
    with bank._cache.pinned([edition]) as adapters_by_key:
        references = [weakref.ref(adapters_by_key[edition]), weakref.ref(bank._cache.files(edition))]
        with bank._request() as request:
            key = request.key("lora")
            bank.remove("lora")
            given = torch.stack(request.forward([(key, feature) for _, feature in features]))
        torch.testing.assert_close(given, expected["lora"], rtol=0, atol=1e-5)
        assert len(alive(references)) == 2
    del adapters_by_key
    assert alive(references) == []
    assert in_slots(bank) == in_memory(bank) == ["lora-2"]


def test_a_dropped_bank_leaves_nothing(common_store):
    bank = peftlab.load("lora", "prompt", store=common_store, device="cpu")
    bank.prefetch("lora")
    bank._cache._prefetch_pool.submit(int).result()
    references = [*references_to(bank, "lora"), *map(weakref.ref, (bank, bank._cache, bank.base, bank.base.backbone))]
    del bank
    assert alive(references) == []
