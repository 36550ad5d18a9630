"""A run's model for others: the code in each model card loads it, and it gives the same logits."""

import re
from types import SimpleNamespace

import peft
import pytest
import torch
import yaml

import sctbench as sb
from harness.data import decoding
from harness.errors import HarnessError
from harness.execution.worker import execute_run
from harness.models import backbones
from harness.records.place import Place
from harness.schema.preprocessing import Preprocessing
from harness.training import cost
from harness.training.attached_model import untouched
from harness.training.export import check_timm_loads_its_own, export
from methods.peft_library.adapters import ADAPTER_FILES
from tests import layouts, tiny
from tests.command import sctbench

METHODS = ("lora", "sct", "ssf", "bitfit", "vpt_deep", "full")


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    monkeypatch.setattr(cost, "LATENCY_SECONDS", 0.0)


@pytest.fixture
def place(setup, request):
    (spec,) = tiny.specs([getattr(request, "param", "lora")], epochs=1, lr=0.05)
    return Place.of(execute_run(spec, setup), setup.root)


IMAGES = torch.rand(5, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(3))


def by_its_card(folder):
    """The model that the code in the card makes."""
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    exec(code.replace("FOLDER", str(folder)), names)
    return names["model"], yaml.safe_load(card.split("---")[1])


@pytest.mark.parametrize("form", ["trained", "merged", "timm"])
@pytest.mark.parametrize("place", METHODS, indirect=True)
def test_the_code_in_the_card_loads_the_model(place, form, tmp_path):
    attached, to = sb.load(place.folder), tmp_path / "to"
    if form != "trained" and place.record.spec.method in ("sct", "vpt_deep"):
        refusal = sctbench("export", place.folder, "--to", to, "--form", form, cwd=tmp_path, ok=False)
        assert "cannot be folded into the backbone's weights: take --form trained" in refusal
        assert not to.exists()
        return
    sctbench("export", place.folder, "--to", to, "--form", form, cwd=tmp_path)
    model, front = by_its_card(to)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), attached(IMAGES), rtol=1e-4, atol=1e-5)
    (result,) = front["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == place.record.metrics["test"].values
    assert "base_model" not in front  # its weights are random


@pytest.mark.parametrize("place", ["lora", "pissa"], indirect=True)
def test_peft_loads_the_adapter_by_itself(place, tmp_path):
    sctbench("export", place.folder, "--to", "to", "--form", "peft", cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["README.md", *ADAPTER_FILES]
    base = untouched(place.record.spec, 3)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "to")).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), sb.load(place.folder)(IMAGES), rtol=1e-4, atol=1e-5)
    assert "PeftModel.from_pretrained(base" in (tmp_path / "to" / "README.md").read_text()


@pytest.mark.parametrize("place", ["sct"], indirect=True)
def test_what_peft_does_not_know_is_refused(place, tmp_path):
    refusal = sctbench("export", place.folder, "--to", "to", "--form", "peft", cwd=tmp_path, ok=False)
    assert "method 'sct' cannot be exported as a peft adapter" in refusal
    assert not (tmp_path / "to").exists()


def test_the_config_for_timm_knows_size_classes_and_statistics(place, tmp_path):
    export(place, tmp_path / "to", "timm")
    model, _ = by_its_card(tmp_path / "to")
    preprocessing = Preprocessing.from_id(place.record.spec.preprocessing)
    config = model.pretrained_cfg
    assert (tuple(config["mean"]), tuple(config["std"])) == (preprocessing.mean, preprocessing.std)
    assert (tuple(config["input_size"]), model.num_classes) == ((3, tiny.SIDE, tiny.SIDE), 3)


def test_an_adapter_for_weights_that_timm_would_not_load_is_refused():
    """Of these models the harness builds pointwise layers, or positions, in another way than timm."""
    for name, size, refused in [
        ("convnext_atto", 224, "conv_mlp=False"),
        ("convnext_tiny", 224, ""),
        ("naflexvit_base_patch16_gap", 224, r"pos_embed_grid_size=\(14, 14\)"),
        ("naflexvit_base_patch16_gap", 256, ""),
    ]:
        name, arguments = backbones.timm_call(name, size)
        source = SimpleNamespace(timm_call=(name, {**arguments, "num_classes": 3}))
        if refused:
            with pytest.raises(HarnessError, match=f"own weights of {name} into the model with {refused} that was"):
                check_timm_loads_its_own(source)
        else:
            check_timm_loads_its_own(source)


def test_a_place_that_is_taken_and_an_unknown_form_are_refused(place, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    assert "not an empty folder" in sctbench("export", place.folder, "--to", tmp_path / "taken", cwd=tmp_path, ok=False)
    refusal = sctbench("export", place.folder, "--to", "new", "--form", "merge", cwd=tmp_path, ok=False)
    assert "Did you mean 'merged'" in refusal


class TestPredict:
    @pytest.fixture
    def pictures(self, tmp_path):
        for number in range(3):
            layouts.image(tmp_path / "pictures" / f"{number}.png", number)
        return tmp_path / "pictures"

    def test_classes_and_probabilities_of_a_folder_and_of_files(self, place, pictures, tmp_path):
        shown = sctbench("predict", place.folder, "pictures", "pictures/1.png", "--json", cwd=tmp_path)
        rows = yaml.safe_load(shown)
        assert [row["image"] for row in rows] == [f"pictures/{number}.png" for number in (0, 1, 2, 1)]
        model = sb.load(place.folder)
        preprocessing = Preprocessing.from_id(place.record.spec.preprocessing)
        pixels = torch.from_numpy(decoding.decode(pictures / "1.png", preprocessing).copy())
        with torch.no_grad():
            chances = model(preprocessing.normalise(pixels[None])).softmax(dim=1)[0]
        for row in (rows[1], rows[3]):
            assert row["class"] == int(chances.argmax())
            assert row["probability"] == pytest.approx(float(chances.max()), rel=1e-4)

    def test_several_classes_in_a_csv_file(self, place, pictures, tmp_path):
        sctbench("predict", place.folder, "pictures", "--top", "9", "--csv", "table.csv", cwd=tmp_path)
        header, *lines = (tmp_path / "table.csv").read_text().splitlines()
        assert header == "image,rank,class,probability"
        assert len(lines) == 3 * 3  # there are three classes
        first = [float(line.split(",")[3]) for line in lines[:3]]
        assert sum(first) == pytest.approx(1)
        assert first == sorted(first, reverse=True)

    @pytest.mark.parametrize(
        ("name", "message"), [("none.png", "no such file or folder"), ("empty", "no pictures"), ("text.png", "decoded")]
    )
    def test_what_is_no_picture_is_named(self, place, tmp_path, name, message):
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.png").write_text("text")
        refusal = sctbench("predict", place.folder, name, cwd=tmp_path, ok=False)
        assert name in refusal and message in refusal
