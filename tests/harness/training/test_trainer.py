"""The trainer: what it trains on, and bit-for-bit repetition on CPU."""

import random

import numpy as np
import pytest
import torch

from harness.data import augmentation
from harness.data.splits import Split
from harness.errors import HarnessError
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import Recipe
from harness.training.callbacks import Callback
from harness.training.trainer import Diverged, Trainer
from methods.base import Attachment
from methods.registry import get
from tests.conftest import CLASSES, make_context, small_vit

HALF = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def toy_split(count=24):
    """Each class has a colour of its own, under noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 120, (count, 32, 32, 3), generator=generator)
    return Split((noise + 30 * labels[:, None, None, None]).to(torch.uint8), labels)


def train(method="lora", seed=3, callbacks=(), **recipe):
    model = small_vit(drop_path_rate=0.1)
    attachment = get(method).configure({}).attach(model, make_context())
    model.head.requires_grad_(True)
    recipe = Recipe(**({"epochs": 3, "warmup_epochs": 1, "batch_size": 10, "lr": 1e-2} | recipe))
    trainer = Trainer(model, attachment, toy_split(), HALF, recipe, seed, callbacks)
    return model, trainer.fit(), trainer


def test_all_images_are_used_in_every_epoch():
    _, _, trainer = train()
    seen = [sorted(labels.tolist()) for labels in [torch.cat([y for _, y in trainer._batches(e)]) for e in (1, 2)]]
    assert seen[0] == seen[1] == sorted(toy_split().labels.tolist())
    assert trainer.step == trainer.steps == 9  # 24 images in batches of 10: the small last batch counts


def test_drop_last_leaves_out_the_small_batch():
    _, curve, trainer = train(drop_last=True)
    assert trainer.step == trainer.steps == 6
    assert sum(len(y) for _, y in trainer._batches(1)) == 20
    assert len(curve) == 3
    with pytest.raises(HarnessError, match="no batch of 25 from 24 training images"):
        train(drop_last=True, batch_size=25)


def test_loss_falls_and_the_frozen_backbone_stays():
    before = {k: v.clone() for k, v in small_vit().state_dict().items()}
    model, curve, _ = train(epochs=8)
    assert curve[-1].train_loss < 0.7 * curve[0].train_loss
    after = model.state_dict()
    assert torch.equal(after["blocks.0.mlp.fc1.weight"], before["blocks.0.mlp.fc1.weight"])
    assert not torch.equal(after["head.weight"], before["head.weight"])


@pytest.mark.parametrize("method", ["lora", "sct", "vpt_deep", "adaptformer", "full"])
@pytest.mark.parametrize(
    ("precision", "augmentation"),
    [("float32", "flip"), ("bf16", "flip"), ("float32", "train_aug"), ("float32", "fewshot")],
)
def test_the_same_training_twice_gives_the_same_bits(method, precision, augmentation):
    runs = [train(method, precision=precision, augmentation=augmentation) for _ in range(2)]
    # What the global generators held before must not matter.
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    runs.append(train(method, precision=precision, augmentation=augmentation))
    (first, curve, _), *others = runs
    for model, other_curve, _ in others:
        assert curve == other_curve
        assert all(
            torch.equal(a, b) for a, b in zip(first.state_dict().values(), model.state_dict().values(), strict=True)
        )


def test_another_seed_gives_another_result():
    assert train(seed=1)[1] != train(seed=2)[1]


def test_flip_mirrors_half_of_the_images():
    *_, trainer = train(augmentation="flip")
    plain = {HALF.normalise(image[None]).numpy().tobytes() for image in trainer.data.images}
    images = torch.cat([x for x, _ in trainer._batches(1)])
    kept = sum(image[None].numpy().tobytes() in plain for image in images)
    mirrored = sum(image.flip(2)[None].contiguous().numpy().tobytes() in plain for image in images)
    assert kept + mirrored == 24
    assert kept > 4 and mirrored > 4


@pytest.mark.parametrize("augmentation", ["flip", "train_aug", "fewshot"])
def test_an_epoch_can_be_repeated_alone(augmentation):
    *_, trainer = train(augmentation=augmentation)
    second = [list(trainer._batches(epoch)) for epoch in (1, 2)][1]
    alone = list(trainer._batches(2))
    assert all(torch.equal(a, b) for x, y in zip(second, alone, strict=True) for a, b in zip(x, y, strict=True))


def test_augmenting_ahead_changes_nothing(monkeypatch):
    plain, curve, _ = train(augmentation="train_aug")
    monkeypatch.setattr(augmentation, "workers_for", lambda device, augment: 2)
    ahead, same, trainer = train(augmentation="train_aug")
    assert curve == same and trainer.loader is None
    assert all(map(torch.equal, plain.state_dict().values(), ahead.state_dict().values()))


class Log(Callback):
    """What a callback sees."""

    name = "log"

    def __init__(self):
        self.seen = []

    def on_step(self, trainer):
        self.seen.append((trainer.step, trainer.batch, len(trainer.curve)))

    def on_epoch_end(self, trainer):
        self.seen.append((trainer.curve[-1].epoch, trainer.batch))

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_a_callback_sees_every_step_and_epoch_and_its_state_is_kept():
    log, other = Log(), Log()
    *_, trainer = train(callbacks=[log], epochs=2)
    assert log.seen == [(1, 1, 0), (2, 2, 0), (3, 3, 0), (1, 0), (4, 1, 1), (5, 2, 1), (6, 3, 1), (2, 0)]
    trainer.callbacks, state = [Callback(), other], trainer.state_dict()
    trainer.load_state_dict(state)
    assert other.seen == log.seen
    trainer.callbacks = [Callback()]
    trainer.load_state_dict(state)  # it goes on without the log


def test_what_a_callback_raises_stops_the_training():
    class Stop(Callback):
        def on_step(self, trainer):
            if trainer.step == 4:
                raise KeyboardInterrupt

    stop = Stop()
    with pytest.raises(KeyboardInterrupt):
        train(callbacks=[stop])


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(Diverged, match="epoch 1"):
        train(lr=1e30, warmup_epochs=0, optimizer="sgd", method="full")


def test_penalty_and_after_step_are_called():
    model, steps = small_vit(), []
    model.head.requires_grad_(True)

    def after_step(step):
        steps.append((step, model.head.weight.grad is not None))

    attachment = Attachment(penalty=lambda batch: 1e3 * model.head.weight.square().sum(), after_step=after_step)
    recipe = Recipe(epochs=4, warmup_epochs=0, batch_size=12, lr=1e-2)
    norm = float(model.head.weight.detach().norm())
    Trainer(model, attachment, toy_split(), HALF, recipe, 0).fit()
    assert steps == [(i, True) for i in range(1, 9)]
    assert float(model.head.weight.detach().norm()) < norm
