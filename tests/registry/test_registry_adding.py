"""What is added comes back as it was, under the right version, or is refused with nothing left behind."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attempt_registry import Attention, Backbone, Prompt, Registry, RegistryError

FINGERPRINT = "f" * 64
Add = Callable[..., Prompt]


def objects(registry: Registry) -> list[Path]:
    return [path for path in registry.folder.rglob("*") if path.is_file() and "objects" in path.parts]


def test_a_prompt_comes_back_as_it_was(registry: Registry, add: Add) -> None:
    tensor = np.array([[1, 2, 3], [-0.5, 0, 1e-30]], np.float32)
    added = add(
        "sst2",
        tensor,
        settings={"steps": 200, "lr": 0.03, "device": None},
        numbers={"accuracy": np.float32(0.75), "by_seed": [0.7, 0.8]},
        note="Grüße: 'quotes', \"more\"\nand a second line",
        tags=["paper", "best", "paper"],
        seed=7,
    )
    again = Registry.open(registry.folder).prompt("sst2@1")
    assert again == added
    assert again.ref == "sst2@1"
    assert (again.length, again.width, again.dtype, again.embedding_scale) == (2, 3, "float32", 0.1)
    assert again.settings == {"steps": 200, "lr": 0.03, "device": None}
    assert again.numbers == {"accuracy": 0.75, "by_seed": [0.7, 0.8]}
    assert again.note == "Grüße: 'quotes', \"more\"\nand a second line"
    assert again.tags == ("paper", "best")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", again.created)
    back = registry.prompt_tensor(again)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, tensor)
    back += 1  # the caller's own copy
    np.testing.assert_array_equal(registry.prompt_tensor(again), tensor)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensor=arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_any_finite_matrix_comes_back_bit_for_bit(registry: Registry, add: Add, tensor: np.ndarray) -> None:
    assert registry.prompt_tensor(add("any", tensor)).tobytes() == tensor.tobytes()


def test_the_object_is_named_by_the_hash_of_its_file_and_equal_tensors_share_it(registry: Registry, add: Add) -> None:
    # the same values in other memory orders and precisions: one file
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
    prompts = [add("a", tensor), add("b", np.asfortranarray(tensor)), add("c", tensor.astype(np.float64))]
    (file,) = objects(registry)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert [prompt.sha256 for prompt in prompts] == [sha256] * 3
    assert file == registry.folder / "objects" / sha256[:2] / f"{sha256[2:]}.safetensors"
    assert registry.tensor_path(prompts[0]) == file


def test_versions_count_up_by_name_and_are_never_given_twice(registry: Registry, add: Add) -> None:
    assert [add("rte").version, add("rte").version, add("sst2").version] == [1, 2, 1]
    registry.remove("rte@2")
    assert registry.prompt("rte").ref == "rte@1"
    assert add("rte").ref == "rte@3"


@pytest.mark.parametrize(
    "name", ["", "a b", "a@1", "a,b", "a:b", "a/b", "../a", "-a", ".a", "x" * 101, "all", "None", "a\n"]
)
def test_names_that_could_not_be_typed_back_are_refused(registry: Registry, add: Add, name: str) -> None:
    with pytest.raises(RegistryError, match="cannot be a name"):
        add(name, task="t")
    assert not registry.folder.exists()


@pytest.mark.parametrize("name", ["rte", "wsc.fixed", "yelp_polarity", "paws-wiki", "c++", "Übung1", "x" * 100])
def test_names_of_tasks_are_fine(registry: Registry, add: Add, name: str) -> None:
    added = add(name)
    assert registry.prompt(f"{name}@1") == added


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.ones(3, np.float32), r"not a tensor of shape \[3\]"),
        (np.ones((1, 2, 3), np.float32), r"not a tensor of shape \[1, 2, 3\]"),
        (np.ones((0, 3), np.float32), r"not a tensor of shape \[0, 3\]"),
        (np.array([[1, np.nan, np.inf]], np.float32), "2 values that are not finite"),
        (np.array([[1e300]]), "1 values that are not finite"),
        (np.array([[1, 2]]), "int64, not floating-point"),
    ],
)
def test_what_is_no_prompt_is_refused(registry: Registry, add: Add, tensor: np.ndarray, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        add("x", tensor)
    assert not registry.folder.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "other"}, "'other' is not a kind of prompt"),
        ({"embedding_scale": 0.0}, "scale 0.0 is not a positive number"),
        ({"embedding_scale": float("nan")}, "scale nan is not a positive number"),
        ({"settings": {"model": object()}}, "cannot record the settings: object has no JSON form"),
        ({"tags": ["a,b"]}, "'a,b' cannot be a tag"),
        ({"tags": [" "]}, "' ' cannot be a tag"),
        ({"parents": ["nobody"]}, "no prompt named 'nobody'"),
        ({"seed": 2**70}, "too large"),
        ({"note": "\udc80"}, "not valid Unicode"),
    ],
)
def test_bad_fields_are_refused_and_add_nothing(registry: Registry, add: Add, fields: dict, message: str) -> None:
    add("there")
    with pytest.raises(RegistryError, match=message):
        add("x", **fields)
    assert [prompt.ref for prompt in registry.prompts()] == ["there@1"]
    assert add("x").version == 1


def test_numbers_that_json_does_not_know_become_null(registry: Registry, add: Add) -> None:
    add("x", numbers={"loss": float("nan"), "by_seed": [np.float32("inf"), 1.0], "all": np.array([1.0, np.nan])})
    assert registry.prompt("x").numbers == {"loss": None, "by_seed": [None, 1.0], "all": [1.0, None]}


def test_numpy_paths_and_sets_become_plain_values(registry: Registry, add: Add, backbone: Backbone) -> None:
    add("x", settings={"path": Path("a/b"), "rows": np.arange(3), "set": {"b", "a"}}, seed=np.int64(7))
    assert registry.prompt("x").settings == {"path": "a/b", "rows": [0, 1, 2], "set": ["a", "b"]}
    assert registry.prompt("x").seed == 7
    registry.remember_backbone(replace(backbone, embedding_rms=np.float32(0.25), width=np.int64(3)))
    assert (registry.backbone("tiny").embedding_rms, registry.backbone("tiny").width) == (0.25, 3)


def test_parents_are_pinned_to_the_version_of_now(registry: Registry, add: Add, add_attention: Callable) -> None:
    add("sst2")
    child = add("rte", parents=["sst2"])
    add("sst2")
    assert child.parents == ("sst2@1",)
    attention = add_attention(parents=["sst2", "rte@1"])
    assert attention.parents == ("sst2@2", "rte@1")
    assert add("mrpc", parents=["prompt:sst2@1", "attention:glue"]).parents == ("sst2@1", "attention:glue@1")


def test_an_attention_comes_back_as_it_was(registry: Registry, add_attention: Callable[..., Attention]) -> None:
    added = add_attention(level="token", settings={"prior": True}, note="n", seed=3)
    assert registry.attention("glue") == added
    assert (added.rank, added.level, added.temperature, added.width) == (2, "token", 4.7, 3)
    tensors = registry.attention_tensors(added)
    assert sorted(tensors) == ["down", "up"]
    np.testing.assert_array_equal(tensors["up"], np.full((3, 2), 0.5, np.float32))


def test_bad_attentions_are_refused(registry: Registry, add_attention: Callable[..., Attention]) -> None:
    with pytest.raises(RegistryError, match="'word' is not a level"):
        add_attention(level="word")
    with pytest.raises(RegistryError, match="tensor 'up' has 1 values that are not finite"):
        registry.add_attention(
            {"up": np.array([np.nan])},
            name="g",
            backbone="tiny",
            fingerprint=FINGERPRINT,
            rank=1,
            level="token",
            temperature=1.0,
            width=1,
            settings={},
            seed=0,
        )
    assert registry.attentions() == []


def test_a_composition_pins_its_parts_in_order(registry: Registry, add: Add, add_attention: Callable) -> None:
    add("sst2"), add("qnli"), add("rte", kind="target"), add_attention()
    made = registry.add_composition(
        name="reviews",
        backbone="tiny",
        fingerprint=FINGERPRINT,
        sources=["sst2", "qnli@1"],
        attention="glue",
        targets=["rte"],
        settings={"drop": []},
    )
    add("sst2")
    assert made == registry.composition("reviews")
    assert (made.sources, made.attention, made.targets) == (("sst2@1", "qnli@1"), "glue@1", ("rte@1",))


def test_a_composition_of_parts_that_do_not_fit_is_refused(registry: Registry, add: Add) -> None:
    add("sst2"), add("other", fingerprint="e" * 64), add("wide", np.ones((2, 4), np.float32))
    common = {"name": "c", "backbone": "tiny", "fingerprint": FINGERPRINT}
    for parts, message in [
        (
            {"sources": ["sst2", "other"]},
            r"other@1 belongs to the backbone tiny \(eeeeeeeeeeee, width 3\), not to tiny",
        ),
        ({"sources": ["sst2", "wide"]}, r"wide@1 belongs .* width 4\), not to tiny \(ffffffffffff, width 3\)"),
        ({"sources": ["sst2", "sst2@1"]}, "named twice in sst2@1, sst2@1"),
        ({"sources": []}, "would be empty"),
        ({"sources": ["sts2"]}, "no prompt named 'sts2'"),
        ({"sources": ["sst2"], "attention": "glue"}, "no attention named 'glue'"),
    ]:
        with pytest.raises(RegistryError, match=message):
            registry.add_composition(**common, **parts)
    assert registry.compositions() == []


def test_a_run_comes_back_as_it_was(registry: Registry, add: Add) -> None:
    add("sst2"), add("rte")
    made = registry.add_run(
        command="attempt train-target rte --sources sst2",
        settings={"lr": 0.03},
        rows={"train": 200, "sha256": "ab"},
        seed=1,
        budget={"steps": 300},
        numbers={"accuracy": 0.61},
        versions={"torch": "2.13"},
        duration=12.5,
        artefacts=["rte", "file:predictions.jsonl"],
        inputs=["prompt:sst2@1", "gone@4"],
    )
    assert made == registry.run(made.id) == registry.runs()[0]
    assert made.artefacts == ("prompt:rte@1", "file:predictions.jsonl")
    assert made.inputs == ("prompt:sst2@1", "prompt:gone@4")
    assert (made.rows, made.budget, made.duration) == ({"train": 200, "sha256": "ab"}, {"steps": 300}, 12.5)


def test_backbones_are_found_by_name_and_fingerprint(registry: Registry, backbone: Backbone) -> None:
    first = registry.remember_backbone(backbone)
    assert first.created
    assert registry.remember_backbone(first) == first
    newer = Backbone("tiny", "e" * 64, "decoder-only", 3, 0.2, 1000, first.source, "2999-01-01T00:00:00Z")
    registry.remember_backbone(newer)
    assert registry.backbones() == [first, newer]
    assert registry.backbone("tiny") == newer
    assert registry.backbone(FINGERPRINT) == first
    other = Backbone("tiny", "d" * 64, "decoder-only", 3, 0.2, 1000, "elsewhere", "2999-01-01T00:00:01Z")
    registry.remember_backbone(other)  # of two places none is meant
    with pytest.raises(RegistryError, match="'tiny' is the name of 3 recorded backbones") as failure:
        registry.backbone("tiny")
    assert f"{'d' * 64} (elsewhere)" in str(failure.value.hint)
    assert registry.backbone(FINGERPRINT) == first
    with pytest.raises(RegistryError, match="no backbone named 'tinny'") as failure:
        registry.backbone("tinny")
    assert failure.value.hint == "Did you mean tiny? `attempt backbone show tinny` records it."


def test_a_transaction_shows_everything_at_its_end_or_nothing(registry: Registry, add: Add) -> None:
    other = Registry.open(registry.folder)
    with registry.transaction():
        add("a")
        with registry.transaction():
            add("b", parents=["a"])
        assert other.prompts() == []
    assert [prompt.ref for prompt in other.prompts()] == ["a@1", "b@1"]
    with pytest.raises(RegistryError, match="not a tensor"), registry.transaction():
        add("c"), add("d", np.ones(3))
    assert [prompt.ref for prompt in other.prompts()] == ["a@1", "b@1"]


def test_a_failure_that_is_caught_inside_a_transaction_undoes_only_its_part(registry: Registry, add: Add) -> None:
    with registry.transaction():
        add("a")
        with pytest.raises(RegistryError):
            add("b", seed=2**70)
        add("c")
    assert [prompt.ref for prompt in registry.prompts()] == ["a@1", "c@1"]
    assert add("b").version == 1


def test_equal_tensors_have_equal_bytes_in_every_process() -> None:
    import subprocess
    import sys

    program = (
        "import numpy as np; from attempt_registry.objects import to_safetensors; "
        "print(to_safetensors({'up': np.ones((2, 3)), 'down': np.zeros(4, np.float16), 'norm': np.ones(1)})[1])"
    )
    hashes = {subprocess.check_output([sys.executable, "-c", program]) for _ in range(3)}
    assert len(hashes) == 1
