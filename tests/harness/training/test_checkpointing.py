"""Exact resumption: whatever the method, a training that was stopped anywhere ends at the same bits."""

import dataclasses
import random
from types import SimpleNamespace

import pytest
import torch

from harness import device as devices
from harness import tensor_files
from harness.data.splits import Split
from harness.errors import Interrupted
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Fingerprint
from harness.schema.spec import Recipe
from harness.training import attached_model, checkpointing
from harness.training.attached_model import AttachedModel
from harness.training.checkpointing import Checkpointer, CheckpointStore, StopRequest
from harness.training.run import RunContext, RunData, _saved_state, attach
from harness.training.run import train as train_model
from harness.training.trainer import Trainer
from methods import registry
from methods.kept import all_tensors
from methods.testbed import CLASSES, batch, model_for, small_model, small_vit
from suites import SUITES
from suites.base import Suite, Task
from tests.examples import make_spec

CPU = torch.device("cpu")
NOISE = Suite(name="noise", title="Noise", about="", tasks=(Task(name="noise", group="all", num_classes=CLASSES),))
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


class StopAt(StopRequest):
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


def keeper(folder, stop=None, every=1e6):
    return Checkpointer(CheckpointStore(folder), stop or StopRequest(), every=every)


def spec_of(method, **changes):
    cls = registry.get(method)
    config = dataclasses.asdict(cls.configure(DROPOUT.get(method, {})).config)
    where = {"suite": "noise", "task": "noise", "preprocessing": HALF.id}
    return make_spec(**({"method": method, "config": config, "recipe": RECIPE} | where | changes))


@dataclasses.dataclass
class Trained:
    prepared: AttachedModel
    trainer: Trainer
    resumed: list


def train(spec, keep=None, data=None, lists="lists"):
    """Train as a run does, without scores and record."""
    ctx = RunContext(spec=spec, device=CPU, checkpointer=keep)
    fingerprint = Fingerprint(lists=lists, files="files", sizes={})
    saved = _saved_state(ctx, fingerprint)
    start = RunData(splits=None, train=data or images(), scores_val=False, fingerprint=fingerprint, saved=saved)
    model = attach(ctx, start)
    trainer = train_model(ctx, start, model, None)
    return Trained(model, trainer, keep.resumed_at if keep else [])


def bits(model):
    return {name: tensor.clone() for name, tensor in all_tensors(model).items()}


def same(first, second):
    one, two = first.prepared, second.prepared
    assert first.trainer.curve == second.trainer.curve
    mine, theirs = bits(one.model), bits(two.model)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    info = [{k: v for k, v in p.attachment.info.items() if "seconds" not in k} for p in (one, two)]
    assert str(info[0]) == str(info[1])


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    def build(backbone, classes, drop_path=0.0):
        model = small_vit(drop_path_rate=drop_path)
        torch.nn.init.normal_(model.head.weight, std=0.02)
        return model

    monkeypatch.setattr(attached_model.backbones, "build", build)
    monkeypatch.setitem(SUITES, "noise", NOISE)


TRAINED = ("adalora", "compose", "gps", "linear", "lora", "lora_ga", "mona", "sct", "vpt_deep")
"""A method of each kind: with state of its own, with choices from data, with changed frozen weights, with dropout, with
the head alone. The fault campaign trains more of them."""


@pytest.mark.parametrize("step", [2, 3])  # inside an epoch and at its end
@pytest.mark.parametrize("method", TRAINED)
def test_a_stopped_training_ends_at_the_same_bits(method, step, tmp_path):
    spec = spec_of(method)
    with pytest.raises(Interrupted):
        train(spec, keeper(tmp_path, StopAt(step)))
    torch.manual_seed(123)  # what the generators held before must not matter
    resumed = train(spec, keeper(tmp_path), images(Once))
    assert resumed.resumed == [step]
    same(resumed, train(spec))


@pytest.mark.parametrize("method", [*TRAINED, "adamss", "boft", "frod", "kasa", "shira"])
@torch.no_grad()
def test_what_is_kept_restores_the_model_whatever_the_seed_and_without_the_data(method, tmp_path, monkeypatch):
    spec, path = spec_of(method), tmp_path / "state.safetensors"
    monkeypatch.setattr(attached_model.backbones, "build", lambda *_: small_model(model_for(registry.get(method))))
    start = RunData(
        splits=None, train=images(), scores_val=False, fingerprint=Fingerprint(lists="", files="", sizes={}), saved=None
    )
    trained = attach(RunContext(spec=spec, device=CPU), start)
    noise = torch.Generator().manual_seed(0)
    for parameter in (p for p in trained.model.parameters() if p.requires_grad):
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    path.write_bytes(tensor_files.encode(trained.state_dict()))
    state = tensor_files.decode(path, CPU)
    monkeypatch.setattr(attached_model, "derived_seed", lambda seed, name: 4321)
    saved = {"callbacks": {"model": state}}
    restored = attach(RunContext(spec=spec, device=CPU), dataclasses.replace(start, train=images(Once), saved=saved))
    restored.load_state_dict(state)
    assert torch.equal(restored.model.eval()(batch()[0]), trained.model.eval()(batch()[0]))


def saved(folder):
    return sorted(path.name for path in (folder / "state").iterdir())


def test_two_states_are_kept_and_the_newest_good_one_is_taken(tmp_path):
    spec = spec_of("linear")
    with pytest.raises(Interrupted):
        train(spec, keeper(tmp_path, StopAt(5), every=0))
    assert saved(tmp_path) == ["000000004.safetensors", "000000005.safetensors"]
    newest = tmp_path / "state" / "000000005.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = train(spec, keeper(tmp_path))
    assert resumed.resumed == [4]
    assert saved(tmp_path) == ["000000004.safetensors"]
    same(resumed, train(spec))


def test_with_no_good_state_the_run_starts_from_the_beginning(tmp_path):
    spec = spec_of("linear")
    with pytest.raises(Interrupted):
        train(spec, keeper(tmp_path, StopAt(5), every=0))
    for path in (tmp_path / "state").iterdir():
        path.write_bytes(b"nothing")
    again = train(spec, keeper(tmp_path))
    assert again.resumed == []
    same(again, train(spec))


def test_a_state_made_with_other_data_is_not_used(tmp_path, capsys):
    spec = spec_of("linear")
    with pytest.raises(Interrupted):
        train(spec, keeper(tmp_path, StopAt(5)))
    assert train(spec, keeper(tmp_path), lists="other").resumed == []
    assert "000000005.safetensors: not used, made with other data\n" in capsys.readouterr().err


def test_a_state_of_another_layout_is_not_used(tmp_path, monkeypatch, capsys):
    spec = spec_of("linear")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(checkpointing, "FORMAT", checkpointing.FORMAT - 1)
        train(spec, keeper(tmp_path, StopAt(5)))
    again = train(spec, keeper(tmp_path))
    assert again.resumed == []
    assert "000000005.safetensors: not used, made with other format\n" in capsys.readouterr().err
    same(again, train(spec))


@pytest.mark.parametrize("was", [True, False])
def test_a_training_goes_on_in_the_precision_of_its_state(was, tmp_path, monkeypatch):
    spec = spec_of("lora", recipe=dataclasses.replace(RECIPE, precision="auto"))
    monkeypatch.setattr(devices, "fast_bf16", lambda device: was)
    with pytest.raises(Interrupted):
        train(spec, keeper(tmp_path, StopAt(4)))
    undisturbed = train(spec)
    monkeypatch.setattr(devices, "fast_bf16", lambda device: not was)
    resumed = train(spec, keeper(tmp_path))
    assert (resumed.resumed, resumed.trainer.precision) == ([4], "bf16" if was else "float32")
    same(resumed, undisturbed)


def test_a_training_that_cannot_go_on_in_that_precision_starts_from_the_beginning_and_says_so(
    tmp_path, monkeypatch, capsys
):
    spec = spec_of("linear", recipe=dataclasses.replace(RECIPE, precision="auto"))
    monkeypatch.setattr(devices, "fast_bf16", lambda device: True)
    with pytest.raises(Interrupted):
        train(spec, keeper(tmp_path, StopAt(4)))
    monkeypatch.setattr(devices, "fast_bf16", lambda device: False)
    monkeypatch.setattr(devices, "can", lambda precision, device: precision == "float32")
    resumed = train(spec, keeper(tmp_path))
    assert (resumed.resumed, resumed.trainer.precision) == ([], "float32")
    assert f"{spec.run_id}: starts from the beginning, cpu cannot go on in bf16" in capsys.readouterr().err
    same(resumed, train(spec))


def test_any_damage_to_a_state_is_noticed(tmp_path):
    value = {"a": torch.arange(6.0).view(2, 3), "b": [1, None, (torch.tensor(3), "x")], 7: {"c": torch.ones(0)}}
    whole, path = tensor_files.encode(value), tmp_path / "x.safetensors"
    path.write_bytes(whole)
    assert str(tensor_files.decode(path, torch.device("cpu"))) == str(value)
    rng = random.Random(0)
    for _ in range(400):
        content = bytearray(whole)
        at = rng.randrange(len(content))
        if rng.random() < 0.2:
            del content[at:]
        else:
            content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            found = tensor_files.decode(path, torch.device("cpu"))
        except tensor_files.BadTensorFile:
            continue
        assert str(found) == str(value)  # padding, or the case of a letter that JSON does not care for


def test_only_plain_values_and_tensors_are_kept():
    with pytest.raises(TypeError, match="a/0: a Recipe"):
        tensor_files.encode({"a": [Recipe()]})


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now[0])
    keep, saves = keeper(tmp_path, every=20.0), []
    monkeypatch.setattr(keep.states, "save", lambda step, state: (saves.append(step), now.__setitem__(0, now[0] + 2)))
    for step in range(1000):
        now[0] += 1
        keep.on_epoch_end(SimpleNamespace(step=step, state_dict=dict))
    assert saves[0] == 19
    assert len(saves) * 2 < 0.03 * now[0]
