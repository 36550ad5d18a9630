"""Exact resumption: whatever the method, a training that was stopped anywhere ends at the same bits."""

import dataclasses

import pytest
import torch
from examples import make_spec

from harness import prepared
from harness.data import Split
from harness.errors import Interrupted
from harness.preprocessing import Preprocessing
from harness.resume import Keeper, States, Stop
from harness.run import _train
from harness.spec import Recipe
from methods import registry
from methods.testbed import CLASSES, kind_of, small_model

HALF = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
RECIPE = Recipe(epochs=3, warmup_epochs=1, batch_size=10, lr=1e-2, drop_path=0.2, precision="float32")
"""Nine steps: 24 images."""

DROPOUT = {"lora": {"dropout": 0.2}, "mona": {"dropout": 0.2}, "vpt_deep": {"dropout": 0.2}}


class Once(Split):
    """Images that are trained on, but may not be looked through by a method."""

    def batches(self, size, device):
        raise AssertionError("a resumed run looked at the data again")


def images(kind=Split):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return kind(pixels, torch.arange(24) % CLASSES)


class StopAt(Stop):
    """A stop that is requested when it has been asked for so often, once per step."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    @property
    def reason(self):
        self.left -= 1
        return "enough" if self.left <= 0 else ""

    @reason.setter
    def reason(self, value):
        pass


def keeper(folder, stop=None, identity="run", every=1e6):
    return Keeper(States(folder, {"run_id": identity}), stop or Stop(), every=every)


def spec_of(method, **changes):
    cls = registry.get(method)
    config = dataclasses.asdict(cls.configure(DROPOUT.get(method, {})).config)
    return make_spec(**({"method": method, "config": config, "recipe": RECIPE} | changes))


def train(spec, keep=None, data=None):
    return _train(spec, data or images(), CLASSES, HALF, None, keep)


def bits(model):
    return {name: tensor.clone() for name, tensor in prepared._tensors(model).items()}


def same(first, second):
    (one, left, _), (two, right, _) = first, second
    assert left.curve == right.curve
    mine, theirs = bits(one.model), bits(two.model)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    info = [{k: v for k, v in p.attachment.info.items() if "seconds" not in k} for p in (one, two)]
    assert str(info[0]) == str(info[1])


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    def build(backbone, classes, drop_path=0.0):
        model = small_model(backbone.name)
        torch.nn.init.normal_(model.head.weight if backbone.name == "vit" else model.head.fc.weight, std=0.02)
        for number, path in enumerate(m for m in model.modules() if type(m).__name__ == "DropPath"):
            path.drop_prob = drop_path * number / 4
        return model

    monkeypatch.setattr(prepared.backbones, "build", build)


@pytest.mark.parametrize("method", sorted(registry.all_methods()))
def test_every_method_resumes_exactly_and_does_not_look_at_the_data_again(method, tmp_path):
    cls = registry.get(method)
    spec = spec_of(method, backbone=dataclasses.replace(make_spec().backbone, name=kind_of(cls)))
    with pytest.raises(Interrupted):
        train(spec, keeper(tmp_path, StopAt(5)))
    torch.manual_seed(123)  # what the generators held before must not matter
    resumed = train(spec, keeper(tmp_path), images(Once))
    assert resumed[2] == [5]
    same(resumed, train(spec))
