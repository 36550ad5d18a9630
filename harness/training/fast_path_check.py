"""A conformance check of the harness: what a training leaves out changes nothing for a method, whoever wrote it."""

import torch
from torch import Tensor

from harness.data.splits import Split
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import Recipe
from harness.training import evaluation
from harness.training.fast_path import ForwardPlan
from harness.training.trainer import Trainer
from methods import testbed
from methods.base import Method
from methods.conformance_tools import on_main_models, relative_gap, require

PREPROCESSING = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
EPOCHS, BATCH = 4, 8


@on_main_models
def check_shortcuts(method: type[Method], name: str) -> None:
    """Trained and tested with and without shortcuts: the same losses and the same logits."""
    (losses, logits), (plain_losses, plain_logits) = _trained(method, name, True), _trained(method, name, False)
    gap = max(relative_gap(losses, plain_losses), relative_gap(logits, plain_logits))
    require(
        gap <= 1e-3,
        f"a training that leaves out what changes nothing ends {gap:.1e} (relative) apart from the plain one: a module "
        f"that declares `stateless = True` keeps something from call to call, or reads what others kept",
    )


def _trained(method: type[Method], name: str, shortcuts: bool) -> tuple[Tensor, Tensor]:
    """Losses of the epochs, and logits after them."""
    attached = testbed.attach(method, name)
    attached.model.get_classifier().requires_grad_(True)
    noise = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (2 * BATCH, 32, 32, 3), dtype=torch.uint8, generator=noise)
    data = Split(pixels, torch.arange(len(pixels)) % testbed.CLASSES)
    recipe = Recipe(epochs=EPOCHS, warmup_epochs=0, batch_size=BATCH, lr=attached.lr, precision="float32")
    with torch.random.fork_rng(devices=[]):
        trainer = Trainer(attached.model, attached.attachment, data, PREPROCESSING, recipe, seed=0)
        if shortcuts:
            trainer.fit()
            logits = evaluation.predict(attached.model, data, PREPROCESSING, "float32")
        else:
            trainer.fit(ForwardPlan(forward=attached.model))
            with torch.no_grad():
                logits = attached.model(PREPROCESSING.normalise(pixels))
    return torch.tensor([epoch.train_loss for epoch in trainer.curve]), logits
