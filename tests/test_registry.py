"""Components are found in their folders and described from their source."""

import importlib
import inspect
import sys

import pytest

from fusionbench import config, registry
from fusionbench.errors import UserError, nearest

ALL = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]


def test_every_kind_has_components():
    assert {"early_intervention", "unimodal", "concat", "mean"} <= set(registry.names("fusion"))
    assert {"timm_vit", "timm_cnn", "hf_text", "table", "table_mlp"} <= set(registry.names("encoder"))
    assert {"full", "frozen", "lora", "lora_moe", "mor"} <= set(registry.names("adapt"))
    assert {"lidc", "csv", "mmc_amd", "derm7pt", "mrnet"} <= set(registry.names("data"))
    assert {"sgd", "adamw"} <= set(registry.names("optimizer"))
    assert {"cyclic", "cosine", "constant"} <= set(registry.names("scheduler"))


def test_what_is_no_component_is_not_listed():
    assert not {"base", "__init__", "criterion", "module", "views", "weights"} & {name for _, name in ALL}


@pytest.mark.parametrize(("kind", "name"), ALL, ids=["-".join(pair) for pair in ALL])
def test_the_description_from_the_source_is_the_truth(kind, name):
    described = registry.describe(kind, name)
    loaded = described.load()
    called = loaded.__init__ if inspect.isclass(loaded) else loaded
    keywords = [p for p in inspect.signature(called).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert list(described.options) == [p.name for p in keywords]
    for parameter in keywords:
        option = described.options[parameter.name]
        assert option.required == (parameter.default is parameter.empty)
        assert option.required or option.default == parameter.default
    for constant, value in described.constants.items():
        assert getattr(loaded, constant) == value
    assert described.summary == inspect.getdoc(loaded).splitlines()[0]


@pytest.mark.parametrize(("kind", "name"), ALL, ids=["-".join(pair) for pair in ALL])
def test_every_option_is_documented_and_its_default_has_its_type(kind, name):
    described = registry.describe(kind, name)
    for option in described.options.values():
        assert f"    {option.name}: " in described.doc, f"'{option.name}' is missing in the docstring's Args"
        if not option.required:
            default = list(option.default) if isinstance(option.default, tuple) else option.default
            config.check_node(kind, kind, {"name": name} | _required(described) | {option.name: default})


def _required(described):
    examples = {"str": "x", "Mapping[str, Any]": {}, "Mapping[str, Mapping[str, Any]]": {}}
    return {o.name: examples[o.annotation] for o in described.options.values() if o.required}


def test_an_unknown_name_is_answered_with_the_nearest_or_with_all():
    with pytest.raises(UserError, match=r"unknown fusion 'concatenate'; did you mean 'concat'\?"):
        registry.describe("fusion", "concatenate")
    with pytest.raises(UserError, match="possible are: adam, adamw, sgd"):
        registry.describe("optimizer", "qqqq")
    assert nearest("x", []) == "; there are none"


PLUGIN = '''
"""A plugin."""
from fusionbench.registry import register

@register
class Mine:
    """My own fusion."""

    adds_tokens = True

    def __init__(self, problem, pool, *, strength: float = 0.5) -> None:
        self.strength = strength
'''


def test_a_package_outside_adds_a_component_by_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "outside_plugin.py").write_text(PLUGIN)
    folder = tmp_path / "outside_plugin-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-plugin\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[fusionbench.fusion]\nmy_fusion = outside_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    registry._modules.cache_clear()
    try:
        described = registry.describe("fusion", "my_fusion")
        assert (described.summary, described.constants) == ("My own fusion.", {"adds_tokens": True})
        assert described.options["strength"].default == 0.5
        assert "outside_plugin" not in sys.modules
        assert described.load().__name__ == "Mine"
        node = config.check_node("fusion", "fusion", {"name": "my_fusion", "strength": 1})
        assert node == {"name": "my_fusion", "strength": 1.0}
    finally:
        registry._modules.cache_clear()
        sys.modules.pop("outside_plugin", None)
    monkeypatch.undo()
    assert "my_fusion" not in registry.names("fusion")


def test_a_file_without_a_registered_class_is_no_component(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("# @register is mentioned, and no more\nclass Other:\n    pass\n")
    with pytest.raises(UserError, match="has no class with @register"):
        registry._describe("fusion", "empty", "empty", path)
