"""Tuned weights: a method's model comes back from its files as it was, or the reason is said why not."""

import dataclasses
import math

import pytest
import timm.data
import torch
from PIL import Image

import sctbench as sb
from harness.data import decoding
from harness.data.splits import TaskData
from harness.errors import HarnessError
from harness.execution.worker import execute_run
from harness.records import predictions
from harness.records.place import Place
from harness.records.store import PREDICTIONS_NAME, WEIGHTS_NAME, Store
from harness.schema.keeping import Keeping
from harness.schema.preprocessing import FITS, Preprocessing
from harness.training import cost, evaluation, weights
from tests import tiny
from tests.chosen_methods import WITH_OWN_CODE

pytestmark = pytest.mark.usefixtures("setup")


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    monkeypatch.setattr(cost, "LATENCY_SECONDS", 0.0)


def place_of(setup, method="lora", keeping=None, **choices):
    """Where a run of a method was done."""
    (spec,) = tiny.specs([method], **choices)
    record = execute_run(spec, dataclasses.replace(setup, keeping=keeping or Keeping()))
    assert record.status == "complete", record.reason
    return Place.of(record, setup.root)


def test_images(setup, place):
    spec = place.record.spec
    return TaskData(
        tiny.SUITE, tiny.SUITE.task(spec.task), Preprocessing.from_id(spec.preprocessing), setup.data
    ).open_test()["test"]


test_images.__test__ = False


@pytest.mark.parametrize("method", WITH_OWN_CODE)
def test_the_model_that_comes_back_predicts_what_was_recorded(setup, method):
    place = place_of(setup, method, epochs=1, lr=0.05)
    kept = predictions.read(place.folder, place.record)["test"]
    assert 100 * kept.correct.mean() == pytest.approx(place.record.metrics["test"].accuracy, abs=1e-12)
    assert -torch.tensor(kept.label_probability).log().mean() == pytest.approx(
        place.record.metrics["test"].loss, rel=1e-5
    )
    model, images = sb.load(place.folder), test_images(setup, place)
    preprocessing = Preprocessing.from_id(place.record.spec.preprocessing)
    again = evaluation.predictions_of(evaluation.predict(model, images, preprocessing, "float32"), images.labels)
    for name in ("labels", "predicted", "probability", "label_probability"):
        assert (getattr(again, name) == getattr(kept, name)).all(), name
    with torch.no_grad():
        logits = model(preprocessing.normalise(images.images))
    found = evaluation.predictions_of(logits, images.labels)
    torch.testing.assert_close(*(torch.tensor(p.probability) for p in (found, kept)), rtol=1e-4, atol=1e-6)


def test_two_runs_write_the_same_files(setup, tmp_path):
    first = place_of(setup, "sct")
    second = place_of(dataclasses.replace(setup, root=tmp_path / "again"), "sct")
    assert first.record.files == second.record.files
    assert list(first.record.files) == [PREDICTIONS_NAME, WEIGHTS_NAME]


def test_the_reported_epoch_is_predicted_and_the_last_ones_weights_are_kept(setup):
    place = place_of(setup, "lora", protocol="oracle", lr=0.1)
    kept = predictions.read(place.folder, place.record)["test"]
    assert 100 * kept.correct.mean() == pytest.approx(place.record.metrics["test"].accuracy)
    images = test_images(setup, place)
    preprocessing = Preprocessing.from_id(place.record.spec.preprocessing)
    logits = evaluation.predict(sb.load(place.folder), images, preprocessing, "float32")
    assert evaluation.score(logits, images.labels) == place.record.last_epoch["test"]
    assert place.record.last_epoch != place.record.metrics


class TestWhatIsKept:
    def test_on_request_none(self, setup):
        place = place_of(setup, "linear", Keeping(weights="none"))
        assert list(place.record.files) == [PREDICTIONS_NAME]
        with pytest.raises(HarnessError, match=r"kept no weights\.safetensors\. Runs keep .* --keep-weights all"):
            sb.load(place.folder)

    @pytest.mark.parametrize(("keep", "kept"), [("auto", False), ("all", True)])
    def test_large_ones_and_those_of_trials_only_on_request(self, setup, monkeypatch, keep, kept):
        trial = place_of(setup, "linear", Keeping(weights=keep), protocol="validation")
        monkeypatch.setattr(weights, "MOST", 10)
        large = place_of(setup, "linear", Keeping(weights=keep))
        assert [WEIGHTS_NAME in place.record.files for place in (trial, large)] == [kept, kept]
        assert list(predictions.read(trial.folder, trial.record)) == ["val"]

    def test_logits_on_request(self, setup):
        place = place_of(setup, "linear", Keeping(logits=True))
        kept = predictions.read(place.folder, place.record)["test"]
        assert kept.logits.shape == (len(kept), 3)
        assert (kept.logits.argmax(axis=1) == kept.predicted).all()

    def test_an_unknown_word_is_answered(self):
        with pytest.raises(HarnessError, match="--keep-weights 'al': Did you mean 'all'"):
            Keeping(weights="al")


class TestWhatIsRefused:
    @pytest.fixture
    def place(self, setup):
        return place_of(setup, "linear")

    def test_a_file_that_is_gone(self, place):
        (place.folder / WEIGHTS_NAME).unlink()
        with pytest.raises(HarnessError, match="the record names it, but it cannot be read"):
            sb.load(place.record, place.folder.parents[3])

    def test_a_file_that_was_altered(self, place):
        path = place.folder / WEIGHTS_NAME
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(HarnessError, match="altered"):
            sb.load(place.folder / "record.json")

    def test_the_file_of_another_run(self, setup, place):
        other = place_of(setup, "linear", lr=0.5)
        record = dataclasses.replace(place.record, files=other.record.files)
        (place.folder / WEIGHTS_NAME).write_bytes((other.folder / WEIGHTS_NAME).read_bytes())
        with pytest.raises(HarnessError, match="of another run"):
            weights.load(Place(place.folder, record), device="cpu")

    def test_a_model_that_is_not_the_recorded_one(self, place):
        record = dataclasses.replace(place.record, weights="0" * 64)
        with pytest.raises(HarnessError, match="is not the one in the record"):
            weights.load(Place(place.folder, record), device="cpu")

    def test_random_weights_that_are_drawn_differently(self, place, monkeypatch):
        monkeypatch.setattr("harness.training.attached_model.derived_seed", lambda seed, purpose: 7)
        with pytest.raises(HarnessError, match="random weights are not drawn here as they were"):
            sb.load(place.folder)

    def test_another_backbone(self, place):
        backbone = dataclasses.replace(place.record.spec.backbone, name="demo_vit", weights="pretrained", image_size=56)
        spec = dataclasses.replace(place.record.spec, backbone=backbone)
        with pytest.raises(HarnessError, match=r"the run had a checkpoint 'pretrained' with sha256 .*, not 1986"):
            weights.recorded.find_backbone(spec, None)

    def test_no_record(self, tmp_path):
        with pytest.raises(HarnessError, match="cannot be read"):
            sb.load(tmp_path)


@pytest.mark.parametrize("fit", FITS)
def test_timm_prepares_pictures_as_the_run_did(fit, tmp_path):
    noise = torch.randint(0, 256, (70, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "picture.png"
    Image.fromarray(noise.numpy()).save(path)
    for size in (32, 56, 224, 443):  # 443: a share that floats round the wrong way
        preprocessing = Preprocessing(image_size=size, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), fit=fit)
        config = weights.timm_config(preprocessing)
        transform = timm.data.create_transform(**config, is_training=False)
        with Image.open(path) as image:
            theirs = transform(image.convert("RGB"))
        ours = preprocessing.normalise(torch.from_numpy(decoding.decode(path, preprocessing).copy())[None])[0]
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
        assert math.isclose(config["crop_pct"], size / preprocessing.resized)


def test_a_store_refuses_a_record_without_its_files(setup):
    place = place_of(setup, "linear")
    with pytest.raises(ValueError, match="files"):
        Store(setup.root).write(place.record, {})
