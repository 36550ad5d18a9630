"""Corrupted test images: what is done to pixels, the suites derived with them, and a whole run on one."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import arrays
from harness.data.check import check
from harness.data.lists import Roots
from harness.data.splits import TaskData
from harness.errors import HarnessError
from harness.execution.overview import overview
from harness.plans.experiment import find_suite, select
from harness.plans.plan import expand
from harness.records import predictions
from harness.records.store import PREDICTIONS_NAME
from harness.training.run import RunContext, run
from suites import SUITES, corruptions, known, packages
from suites.corruptions import KINDS, STRENGTHS, corrupt, corrupted
from tests import layouts

DERIVED = corrupted(layouts.TOYS)
NAMES = [f"{kind}-{strength}" for kind in KINDS for strength in STRENGTHS]
PHOTO = list(packages.photos().values())[4].convert("RGB").crop((0, 0, 250, 250))


def photo(side):
    return np.asarray(PHOTO.resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture
def roots(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SUITES, "toys", layouts.TOYS)
    layouts.toy(tmp_path / "root", test=8)
    return Roots(data=tmp_path / "root")


@pytest.mark.parametrize("side", [56, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_each_strength_takes_more_of_the_image_than_the_one_before(kind, side):
    clean = photo(side)
    images = [corrupt(clean, (kind, strength), 0) for strength in STRENGTHS]
    assert all(image.shape == clean.shape and image.dtype == np.uint8 for image in images)
    off = [np.abs(image.astype(int) - clean).mean() for image in images]
    assert off == sorted(off) and 0.1 < off[0] < off[-1] < 80


def test_noise_is_of_the_image_s_number_and_of_the_stated_strength():
    grey = np.full((224, 224, 3), 128, np.uint8)
    first, again, second = (corrupt(grey, ("noise", 2), number) for number in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    assert (first.astype(int) - 128).std() == pytest.approx(0.12 * 255, rel=0.01)
    half = corrupt(grey[:56, :56], ("noise", 2), 0)
    assert (half.astype(int) - 128).std() == pytest.approx(0.12 * 255 / 2, rel=0.03)


def test_the_pixels_are_the_same_on_every_machine():
    ramp = (np.arange(56 * 56 * 3) * 7919 % 256).astype(np.uint8).reshape(56, 56, 3)
    digests = {}
    for kind in ("noise", "contrast", "blur", "pixelate"):
        sha = hashlib.sha256(b"".join(corrupt(ramp, (kind, strength), 5).tobytes() for strength in STRENGTHS))
        digests[kind] = sha.hexdigest()[:12]
    assert digests == {
        "noise": "e7575bb61253",
        "contrast": "14d447ad84a9",
        "blur": "ec0dd02a63c7",
        "pixelate": "6dbf3b2c615a",
    }


def test_every_suite_has_a_derived_one_with_the_same_data():
    for base in SUITES.values():
        suite = find_suite(f"{base.name}+corruptions")
        assert suite == known(suite.name) == corrupted(base)
        assert (suite.name, suite.data_name) == (f"{base.name}+corruptions", base.name)
        for task, own in zip(suite.tasks, base.tasks, strict=True):
            assert dataclasses.replace(task, targets=own.targets) == own
            assert [target.name for target in task.targets] == NAMES
            assert {target.size for target in task.targets} == {own.sizes.get("test")}


def test_a_suite_of_one_s_own_has_one_too_and_an_unknown_one_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine-corrupted\ntasks:\n  - {name: birds, group: natural, num_classes: 3}\n")
    try:
        assert find_suite(f"{file}+corruptions").name == "mine-corrupted+corruptions"
    finally:
        SUITES.pop("mine-corrupted", None)
    with pytest.raises(HarnessError, match="unknown suite 'dmo'"):
        find_suite("dmo+corruptions")
    with pytest.raises(HarnessError, match="unknown suite"):
        find_suite("demo+corruptions+corruptions")


def test_a_plan_scores_all_and_stores_the_clean_images_alone():
    flags = {"methods": ["linear"], "tasks": ["kitti"]}
    (base,) = overview(select({"suite": "vtab1k", **flags}), lambda _: None).lines
    (line,) = overview(select({"suite": "vtab1k+corruptions", **flags}), lambda _: None).lines
    assert line.test_images == 26 * base.test_images == 26 * 711
    assert line.array_bytes == base.array_bytes


def test_published_recipes_are_those_of_the_base_suite():
    flags = {
        "methods": ["sct"],
        "tasks": ["kitti"],
        "protocol": "published",
        "backbone": "vit_base_patch16_224.orig_in21k",
    }
    base, derived = (
        expand(select({"suite": name, **flags, "weights": "random"})) for name in ("vtab1k", "vtab1k+corruptions")
    )
    assert [dataclasses.replace(spec, suite="vtab1k") for spec in derived] == base


def test_a_run_trains_as_on_the_base_suite_and_scores_every_corruption_once(roots):
    flags = {"methods": ["linear"], "backbone": "test_vit", "weights": "random", "image_size": 32}
    done = {}
    for name in ("toys", "toys+corruptions"):
        (spec,) = expand(select({"suite": name, **flags}))
        done[name] = run(RunContext(spec=spec, device=torch.device("cpu"), roots=roots))
    base, derived = (one.record for one in done.values())
    assert derived.weights == base.weights and derived.metrics["test"] == base.metrics["test"]
    assert list(derived.metrics) == ["test", *NAMES] and derived.test_looks == 1
    assert derived.data.sizes == base.data.sizes and derived.data.lists != base.data.lists
    assert {array.path.name.split("-")[1] for array in arrays.cached()} == {"toy"} and len(arrays.cached()) == 2
    kept = predictions.decode(done["toys+corruptions"].files[PREDICTIONS_NAME])
    assert list(kept) == list(derived.metrics) and len({one.list_digest for one in kept.values()}) == 1
    assert len(done["toys+corruptions"].files[PREDICTIONS_NAME]) < 26 * (12 * 8 + 600)


def test_a_corrupted_split_gives_the_test_images_corrupted_in_order(roots):
    data = TaskData(DERIVED, DERIVED.tasks[0], layouts.HALF, roots)
    splits = data.open_test()
    clean = splits["test"]
    for name in ("noise-3", "jpeg-5"):
        batches = list(splits[name].batches(3, torch.device("cpu")))
        assert [len(images) for images, _ in batches] == [3, 3, 2]
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        kind, strength = name.split("-")
        expected = [corrupt(image.numpy(), (kind, int(strength)), i) for i, image in enumerate(clean.images)]
        assert np.array_equal(images.numpy(), np.stack(expected)) and torch.equal(labels, clean.labels)
    with pytest.raises(HarnessError, match="already opened"):
        data.open_test()
    with pytest.raises(HarnessError, match="opened only by"):
        data.train("noise-3")


def test_the_fingerprint_names_the_corruptions_their_version_and_what_they_give(roots, monkeypatch):
    def taken():
        return TaskData(DERIVED, DERIVED.tasks[0], layouts.HALF, roots).fingerprint()

    before = taken()
    assert before == taken()
    monkeypatch.setattr(corruptions, "VERSION", corruptions.VERSION + 1)
    assert taken().lists != before.lists and taken().pixels == before.pixels
    monkeypatch.setattr(corruptions, "digest", lambda side: "another library")
    assert taken().pixels != before.pixels


def test_data_are_checked_and_exported_once(roots):
    report = check(DERIVED, roots)
    assert [row.split for row in report.lists] == ["train", "val", "trainval", "test"] and report.images == 17
