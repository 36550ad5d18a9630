"""Protocol `published`: the table of SCT's release, its schedule, and plans made from it."""

import dataclasses

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from harness.errors import USER_ERRORS
from harness.models import backbones
from harness.plans import experiment, plan
from harness.schema import protocol
from harness.schema.optimizers import make_optimizer
from harness.schema.preprocessing import STATISTICS, Preprocessing
from harness.schema.schedules import learning_rate
from harness.schema.spec import BackboneSpec, Recipe
from harness.training.trainer import images_per_epoch, total_steps
from methods.registry import get
from suites import SUITES, released_recipes
from suites.released_recipes import TABLES, table_with
from tests.conftest import make_context, small_vit

VIT = BackboneSpec(name="vit_base_patch16_224.orig_in21k", weights="ViT-B_16.npz", digest="0" * 64, image_size=224)
METHODS = ("sct", "lora_qv", "adapter_pfeiffer", "adaptformer")
MEAN, STD = STATISTICS["imagenet"]
TABLE = table_with("sct", "vtab1k")
TASKS = [task.name for task in SUITES["vtab1k"].tasks]


def select(*methods, **changes):
    selection = plan.Selection(
        suite=SUITES["vtab1k"],
        tasks=(),
        methods=tuple(plan.choose_method(*(m if isinstance(m, tuple) else (m, {}))) for m in methods),
        seeds=(0,),
        protocol="published",
        backbone=VIT,
        preprocessing=Preprocessing(image_size=224, mean=MEAN, std=STD),
    )
    return dataclasses.replace(selection, **changes)


def test_the_table_is_complete():
    assert set(TABLE.entries) == {(method, task) for method in METHODS for task in TASKS}
    assert len(TABLE.entries) == 19 * 4


def test_a_method_is_in_one_table_of_a_suite():
    places = [(table.suite, method) for table in TABLES for method in table.methods]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_every_table_gives_runs_for_its_tasks(table):
    specs = plan.expand(select(*table.methods, suite=SUITES[table.suite]))
    assert {(spec.method, spec.task) for spec in specs} == set(table.entries)
    for spec in specs:
        entry = table.entries[spec.method, spec.task]
        assert entry.config.items() <= spec.config.items() and spec.recipe.lr == entry.recipe["lr"]
    assert {spec.task for spec in specs} == set(TASKS)


@pytest.mark.parametrize(
    ("method", "task", "config", "recipe"),
    [
        ("fact_tk", "cifar100", {"rank": 32, "scale": 0.1, "variant": "released"}, {"lr": 1e-3, "weight_decay": 1e-4}),
        (
            "fact_tk",
            "svhn",
            {"rank": 32, "scale": 100.0, "dropout": 0.1},
            {"batch_size": 64, "schedule": "sct_release"},
        ),
        ("fact_tt", "clevr_dist", {"rank": 4, "scale": 10.0}, {"epochs": 100, "drop_path": 0.1}),
        ("hydra", "cifar100", {"scale": 0.1, "dropout": 0.2}, {"lr": 5e-4, "batch_size": 16}),
        ("rlrr", "clevr_count", {"branch_dropout": 0.5}, {"lr": 5e-3, "augmentation": "flip", "min_lr": 1e-8}),
        ("rlrr", "oxford_flowers102", {"branch_dropout": 0.3}, {"weight_decay": 5e-2, "augmentation": "none"}),
        ("snell", "dtd", {"sparsity": 0.995, "variant": "released"}, {"batch_size": 64, "epochs": 200}),
        ("snell", "patch_camelyon", {"sparsity": 0.15}, {"lr": 7e-4, "weight_decay": 5e-2, "epochs": 100}),
        ("hydra", "smallnorb_azi", {"scale": 3.0}, {"lr": 5e-3, "weight_decay": 1e-5, "schedule": "hydra_release"}),
    ],
)
def test_values_of_other_releases(method, task, config, recipe):
    (spec,) = plan.expand(select(method, tasks=(task,)))
    assert config.items() <= spec.config.items()
    assert recipe.items() <= dataclasses.asdict(spec.recipe).items()


def test_releases_that_normalise_differently_are_run_apart(monkeypatch):
    other = dataclasses.replace(table_with("hydra", "vtab1k"), statistics="half")
    monkeypatch.setattr(released_recipes, "TABLES", (TABLE, other))
    monkeypatch.setattr(backbones, "resolve", lambda *_: VIT)
    flags = {"suite": "vtab1k", "methods": ["sct", "hydra"], "backbone": VIT.name, "protocol": "published"}
    with pytest.raises(
        USER_ERRORS, match=r"SCT release with imagenet, Hydra release with half.*run their methods apart"
    ):
        experiment.select(flags)


@pytest.mark.parametrize(
    ("method", "task", "lr", "decay", "smoothing", "augmentation"),
    [
        ("sct", "cifar100", 0.013, 1.0, 0.1, "none"),
        ("sct", "svhn", 0.075, 0.03, 0.1, "train_aug"),
        ("lora_qv", "svhn", 0.001, 0.005, 0.1, "train_aug"),
        ("adapter_pfeiffer", "oxford_flowers102", 0.05, 0.11, 0.1, "train_aug"),
        ("sct", "oxford_flowers102", 0.05, 0.11, 0.1, "none"),
        ("sct", "clevr_dist", 0.0018, 0.005, 0.0, "train_aug"),
        ("adaptformer", "clevr_dist", 0.0018, 0.005, 0.0, "none"),
        ("sct", "kitti", 0.0072, 0.0001, 0.1, "train_aug"),
        ("sct", "smallnorb_ele", 0.0011, 0.0005, 0.0, "none"),
        ("adaptformer", "eurosat", 0.06, 0.001, 0.1, "train_aug"),
    ],
)
def test_values_of_the_release(method, task, lr, decay, smoothing, augmentation):
    (spec,) = plan.expand(select(method, tasks=(task,)))
    recipe = spec.recipe
    assert (recipe.lr, recipe.weight_decay, recipe.label_smoothing) == (lr, decay, smoothing)
    assert recipe.augmentation == augmentation
    assert (recipe.epochs, recipe.batch_size, recipe.drop_path, recipe.precision) == (100, 64, 0.1, "float32")


def test_the_plan_has_the_released_forms_of_the_methods():
    specs = plan.expand(select(*METHODS, tasks=("dtd",)))
    configs = {spec.method: spec.config for spec in specs}
    assert (configs["sct"]["mode"], configs["sct"]["channels"], configs["sct"]["scaling"]) == ("attn", 96, "none")
    assert (configs["lora_qv"]["rank"], configs["lora_qv"]["variant"]) == (8, "released")
    for adapter in ("adapter_pfeiffer", "adaptformer"):
        assert (configs[adapter]["bottleneck"], configs[adapter]["variant"]) == (96, "sct_release")
    assert len(plan.expand(select(*METHODS, seeds=(0, 1, 2)))) == 19 * 4 * 3
    assert protocol.get("published").final


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            lambda: select("bitfit"),
            "method 'bitfit' has no published recipe on 'vtab1k'.* SCT release: sct, lora_qv, ad",
        ),
        (lambda: select("sct", suite=SUITES["fewshot"]), "suite 'fewshot' has no published recipes; .* vtab1k"),
        (lambda: select(("sct", {"channels": 24})), "all settings from SCT release: leave out channels"),
        (lambda: select(("sct", {"lr": 1e-3})), "leave out lr"),
        (lambda: select("sct", recipe={"epochs": 2}), "leave out epochs"),
        (
            lambda: select("sct", backbone=dataclasses.replace(VIT, name="swin_base_patch4_window7_224.ms_in22k")),
            "are for 'vit_base_patch16_224', not 'swin_base",
        ),
    ],
)
def test_what_was_not_published_is_answered(selection, message):
    with pytest.raises(USER_ERRORS, match=message):
        plan.expand(selection())


def test_a_task_without_recipe_is_named():
    with pytest.raises(USER_ERRORS, match="task 'mnist' has no published recipe for method 'sct'"):
        TABLE.find("sct", "mnist")


def released(lr=0.01):
    return plan.make_recipe(TABLE.find("sct", "resisc45").recipe, {"lr": lr})


@pytest.mark.parametrize(("name", "length"), [("sct_release", 100), ("hydra_release", 500)])
def test_the_schedule_is_that_of_the_release(name, length):
    """Against timm's scheduler, driven as the release drives it: told of an epoch when it is over."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = CosineLRScheduler(optimizer, t_initial=length, warmup_t=10, lr_min=1e-5, warmup_lr_init=1e-6)
    recipe = dataclasses.replace(released(), schedule=name)
    for epoch in range(100):
        (rate,) = {learning_rate(15 * epoch + step, recipe, 15) for step in range(15)}
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        scheduler.step(epoch)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 1e-6), (1, 1e-6), (11, 0.009755), (99, 1.986e-5)])
def test_rates_seen_in_the_release(epoch, rate):
    assert learning_rate(15 * epoch, released(), 15) == pytest.approx(rate, rel=1e-3)
    assert max(learning_rate(15 * e, released(), 15) for e in range(100)) == learning_rate(15 * 11, released(), 15)


def test_fifteen_steps_of_sixty_four_images_per_epoch_and_everything_decayed():
    assert total_steps(1000, released()) == 1500
    assert images_per_epoch(1000, released()) == 960
    assert total_steps(1000, Recipe()) == 1600
    model = small_vit()
    get("sct").configure({}).attach(model, make_context())
    (group,) = make_optimizer(model, released()).param_groups
    assert group["weight_decay"] == 0.01
    assert any(p.ndim == 1 for p in group["params"])


def test_inputs_are_normalised_as_in_the_release(monkeypatch):
    monkeypatch.setattr(backbones, "resolve", lambda *_: VIT)
    flags = {"suite": "vtab1k", "methods": ["sct"], "backbone": VIT.name}
    assert experiment.select(flags).preprocessing.id == "224px-squash-bicubic-half"
    flags |= {"protocol": "published"}
    assert experiment.select(flags).preprocessing.id == "224px-squash-bicubic-imagenet"
    assert experiment.select(flags | {"statistics": "model"}).preprocessing.id == "224px-squash-bicubic-half"
