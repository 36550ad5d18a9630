"""One configuration has one run id, whether its values were given or are what the backbone makes of them."""

import pytest

from analysis.figures.ablation import ablation_points, varied_fields
from analysis.figures.data import run_frame
from analysis.tables.settings import ablation_table, settings_table
from analysis.tables.tasks import task_table
from harness.errors import USER_ERRORS
from harness.plans import plan
from harness.plans.experiment import select
from methods.registry import get
from tests.examples import make_record
from tests.table_records import only_set

DEMO = {"suite": "demo", "tasks": ["digits"]}  # demo_vit has six blocks of 384 channels
SWIN = DEMO | {"backbone": "swin_base_patch4_window7_224", "weights": "random"}

SAME = {
    "sct": ["sct:channels=48", "sct:blocks=0+1+2+3+4+5", "sct:blocks=5+0+1+2+3+4:channels=48", "sct:scaling=output"],
    "sct:selection=fixed:channels=2:indices=[[0,1],[0,1],[0,1],[0,1],[0,1],[0,1]]": [
        "sct:selection=fixed:channels=2:indices=[[1,0],[0,1],[0,1],[0,1],[0,1],[1,0]]"
    ],
    "adapter_pfeiffer": ["adapter_pfeiffer:bottleneck=8"],
    "adapter_houlsby:variant=sct_release": ["adapter_houlsby:variant=sct_release:bottleneck=96"],
    "adaptformer": ["adaptformer:bottleneck=8", "adaptformer:scale=0.1"],
    "adaptformer:variant=sct_release": ["adaptformer:variant=sct_release:scale=1"],
    "consolidator": ["consolidator:groups=192"],
    "vblora": ["vblora:length=128"],
    "dtl": ["dtl:start=0.6"],
    "lorand:reduction=150": ["lorand:reduction=180"],
    "lora_qv:variant=released": ["lora_qv:variant=released:alpha=16"],
    "compose:parts=lora+vpt_deep": ["compose:parts=vpt_deep+lora"],
}


def runs(*methods, selection=DEMO, **changes):
    return plan.expand(select(selection | {"methods": list(methods)} | changes))


@pytest.mark.parametrize("first", SAME)
def test_two_names_of_one_configuration_are_one_run(first):
    (spec,) = runs(first)
    for other in SAME[first]:
        assert runs(other) == [spec], other
    method = get(spec.method)
    assert method.configure(spec.config).config == method.configure(dict(spec.config)).config
    with pytest.raises(USER_ERRORS, match=f"the same run twice: a seed or one of the methods {spec.method} "):
        runs(first, SAME[first][0])


def test_a_value_that_no_single_number_says_stays_open():
    (spec,) = runs("sct", selection=SWIN)
    assert (spec.config["channels"], spec.config["blocks"]) == (None, (11, *range(12, 20), 20, 21, 22, 23)[-11:])
    (spec,) = runs("sct:blocks=5+6", selection=SWIN)
    assert spec.config["channels"] == 512 // 8


def test_an_open_setting_and_its_value_are_one_trial():
    (*trials,) = runs("adaptformer", protocol="tuned", trials=100)
    assert {spec.config["scale"] for spec in trials} == {0.1, 1.0}
    grid = len(get("adaptformer").search_space["lr"]) * len(get("adaptformer").search_space["weight_decay"]) * 2
    assert len(trials) == len({spec.run_id for spec in trials}) == grid


def test_tables_and_figures_print_the_value_and_an_ablation_has_no_point_twice():
    specs = [spec for text in ("sct", *(f"sct:channels={k}" for k in (12, 24, 48, 96))) for spec in runs(text)]
    distinct = {spec.run_id: spec for spec in specs}
    assert len(distinct) == 4
    given = [make_record(spec=spec, accuracy=float(spec.config["channels"])) for spec in distinct.values()]
    chosen = only_set(given)
    assert set(task_table(chosen).rows) == {f"SCT (channels={k})" for k in (12, 24, 48, 96)}
    assert list(ablation_table(chosen, "channels").rows) == [f"SCT (channels={k})" for k in (12, 24, 48, 96)]
    own = [row["", "method's own"].text for row in settings_table(chosen).rows.values()]
    assert own and not any("channels=None" in text for text in own)
    frame = run_frame(chosen)
    points, _ = ablation_points(frame, "channels", varied_fields(frame))
    assert sorted(points["setting"]) == [12, 24, 48, 96]
