"""Names to methods, settings to configs, and what is refused with the backbone's shapes alone, before any data."""

import re
import sys
import warnings

import pytest
from typer.testing import CliRunner

from harness.commands.main import app
from harness.errors import USER_ERRORS
from harness.models.backbones import skeleton
from harness.plans.experiment import select
from harness.records.store import Store
from methods import registry
from methods.base import MethodError, PluginWarning
from methods.testbed import small_swin, small_vit
from tests.examples import make_record

DEMO = {"suite": "demo", "tasks": ["digits"]}

MISFITS = {  # demo_vit has six blocks of 384 channels with 6 heads
    "sct:channels=385": "channels=385",
    "sct:blocks=6": "blocks=",
    "sct:selection=fixed:indices=0": "indices=",
    "partial:blocks=7": "blocks=7",
    "gps:connections=385": "connections=385",
    "repadapter:groups=5:bottleneck=10": "groups=5",
    "consolidator:groups=5": "groups=5",
    "compacter:products=5:bottleneck=5": "products=5",
    "lorand:reduction=385": "reduction=385",
    "lst:reduction=5": "reduction=5",
    "lora:rank=385": "rank=385",
    "pissa:rank=385": "rank=385",
    "oft:block=7": "block=7",
    "boft:block=7": "block=7",
    "bone:rank=7": "rank=7",
    "psoft:rank=385": "rank=385",
    "adamss:rank=385": "rank=385",
    "tinylora:rank=385": "rank=385",
    "gralora:cuts=5:rank=10": "cuts=5",
    "bdlora:parts=5:rank=10": "parts=5",
    "road:group=10": "group=10",
    "c3a:parts=5": "parts=5",
    "vblora:length=7": "length=7",
    "fourierft:frequencies=9000000": "frequencies=9000000",
    "waveft:coefficients=9000000": "coefficients=9000000",
}


@pytest.mark.parametrize("text", MISFITS)
def test_settings_that_do_not_fit_the_backbone_are_refused_in_the_plan(text):
    with pytest.raises(USER_ERRORS, match=rf"method '{text.partition(':')[0]}': {MISFITS[text]}"):
        select(DEMO | {"methods": ["linear", text]})


def test_a_method_that_does_not_serve_the_backbone_is_refused_in_the_plan_and_left_out_of_all():
    swin = DEMO | {"backbone": "swin_tiny_patch4_window7_224", "weights": "random"}
    with pytest.raises(
        USER_ERRORS, match="method 'vpt_deep' needs one sequence of tokens of one width, which swin has not"
    ):
        select(swin | {"methods": ["vpt_deep"]})
    with pytest.raises(
        USER_ERRORS, match="method 'compose' needs one sequence of tokens of one width, which swin has not"
    ):
        select(swin | {"methods": ["compose"]})
    select(swin | {"methods": ["compose:parts=lora+adaptformer"]})
    chosen = {choice.method.name for choice in select(swin | {"methods": ["all"]}).methods}
    serving = {name for name, method in registry.all_methods().items() if method().can_serve("swin")}
    assert chosen == serving != set(registry.all_methods())


def test_every_method_counts_on_vit_b_and_swin_b_without_being_attached():
    for name in ("vit_base_patch16_224", "swin_base_patch4_window7_224"):
        model = skeleton(name)
        for method in registry.all_methods().values():
            found = registry.describe(method, model)["parameters"]
            assert isinstance(found, int) or found.startswith(("serves vit", "needs one sequence")), (
                method.name,
                found,
            )


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("lora", {"rank": "eight"}, "rank='eight' must be of type int"),
        ("lora", {"rank": 8.0}, "rank=8.0 must be of type int"),
        ("lora", {"rank": True}, "rank=True must be of type int"),
        ("lora", {"targets": [3]}, "targets=3 must be of type str"),
        ("sct", {"channels": "many"}, "channels='many' must be of type int"),
        ("sct", {"mode": 1}, "mode=1 must be of type str"),
        ("gps", {"biases": 1}, "biases=1 must be of type bool"),
        ("sct", {"blocks": [0.5]}, "blocks=0.5 must be of type int"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(name, values, message):
    with pytest.raises(MethodError, match=f"method '{name}': {message}"):
        registry.get(name).configure(values)


def test_settings_are_held_in_the_type_of_their_field_so_that_equal_runs_are_one():
    lora = registry.get("lora")
    assert lora.configure({"alpha": 8, "targets": "qkv"}).config == lora.configure({"targets": ["qkv"]}).config
    assert type(lora.configure({"alpha": 8}).config.alpha) is float
    fixed = registry.get("sct").configure({"selection": "fixed", "channels": 2, "indices": [[1, 2], [3, 4]]})
    assert fixed.config.indices == ((1, 2), (3, 4))
    assert registry.get("sct").configure({"channels": None, "blocks": 3}).config.blocks == (3,)


METHOD = """
from methods.linear import Linear

class Mine(Linear):
    "The same as Linear."
    name, title = "{name}", "{title}"
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts a package with an entry point on the path, as an installation does."""

    def install(code, value="my_package:Mine"):
        module = value.partition(":")[0]
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        name = module.replace("_", "-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\nmine = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)
        registry.all_methods.cache_clear()

    yield install
    monkeypatch.undo()
    for module in ("my_package", "your_package"):
        sys.modules.pop(module, None)
    registry.all_methods.cache_clear()


def test_a_method_of_another_package_is_listed_planned_and_checked(installed):
    installed(METHOD.format(name="installed_one", title="Installed"))
    assert "installed_one" in registry.all_methods()
    assert [choice.method.title for choice in select(DEMO | {"methods": ["installed_one"]}).methods] == ["Installed"]
    result = CliRunner().invoke(app, ["check", "installed_one"])
    assert result.exit_code == 0, result.output


BROKEN = {
    METHOD.format(name="lora", title="Mine"): "a method named 'lora' exists already",
    "Mine = 3": "not a class derived from methods.base.Method",
    "import no_such_thing": "cannot be loaded: ModuleNotFoundError: No module named 'no_such_thing'",
    "raise SystemExit(3)": "cannot be loaded: SystemExit: 3",
    METHOD.format(name="mine", title=""): "Mine: class attribute 'title' is missing or empty",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_entry_point_is_a_warning_and_only_asking_for_its_method_fails(installed, code):
    installed(code)
    said = f"package my-package 1.0, entry point mine = my_package:Mine: {BROKEN[code]}"
    with pytest.warns(PluginWarning, match=re.escape(said)):
        known = registry.all_methods()
    assert {"linear", "lora", "sct"} <= set(known) and "mine" not in known
    assert registry.get("lora").__module__ == "methods.peft_library.lora"
    assert [choice.method.name for choice in select(DEMO | {"methods": ["linear"]}).methods] == ["linear"]
    with pytest.raises(MethodError, match=re.escape(said)):
        registry.get("mine")


def test_of_two_packages_with_one_method_name_neither_is_taken(installed):
    installed(METHOD.format(name="twin", title="One"))
    installed(METHOD.format(name="twin", title="Other"), "your_package:Mine")
    with pytest.warns(PluginWarning) as warned:
        known = registry.all_methods()
    packages = {
        name for name in ("my-package", "your-package") for w in warned if f"package {name} 1.0" in str(w.message)
    }
    assert packages == {"my-package", "your-package"} and "twin" not in known
    with pytest.raises(MethodError, match="a method named 'twin' exists already"):
        registry.get("twin")


def test_commands_go_on_and_say_which_package_is_broken(installed, tmp_path):
    Store(tmp_path).write(make_record(method_family=""))  # the report asks the registry what the method is
    installed("import no_such_thing")
    for command in (["methods"], ["check", "linear"], ["report", "--out", str(tmp_path)]):
        registry.all_methods.cache_clear()
        with warnings.catch_warnings():  # pytest shows warnings in a way of its own
            warnings.resetwarnings()
            result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "warning: package my-package 1.0" in result.output, command


def test_a_plugin_that_cannot_count_is_listed_with_the_reason(installed):
    counting = "    def expected_parameters(self, backbone):\n        return backbone.no_such_layer\n"
    installed(METHOD.format(name="cannot_count", title="Cannot count") + counting)
    found = registry.describe(registry.get("cannot_count"), small_vit())["parameters"]
    assert found.startswith("AttributeError") and "no_such_layer" in found
    with pytest.raises(USER_ERRORS, match="method 'cannot_count': AttributeError"):
        select(DEMO | {"methods": ["cannot_count"]})


def test_a_method_that_does_not_say_its_title_is_refused_in_the_plan(tmp_path):
    (tmp_path / "bare.py").write_text(METHOD.format(name="bare", title=""))
    with pytest.raises(USER_ERRORS, match="class attribute 'title' is missing or empty"):
        select(DEMO | {"methods": [f"{tmp_path}/bare.py:Mine"]})


def test_two_files_of_one_name_are_two_methods(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "method.py").write_text(METHOD.format(name=f"from_{folder}", title=folder))
    first, second = (registry.get(f"{tmp_path}/{folder}/method.py:Mine") for folder in ("one", "two"))
    assert (first.name, second.name) == ("from_one", "from_two")
    assert first.__module__ != second.__module__


def test_a_file_with_an_error_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("class Mine(\n")
    with pytest.raises(MethodError, match=r"broken\.py cannot be loaded: SyntaxError"):
        registry.get(f"{tmp_path}/broken.py:Mine")


def test_counts_of_the_small_models_are_those_of_the_formula():
    assert registry.parameters_on(registry.get("lora").configure({"rank": 2}), small_vit()) == 3 * 2 * (32 + 96)
    assert registry.parameters_on(registry.get("linear")(), small_swin()) == 0
