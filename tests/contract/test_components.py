"""What every component's source must tell, for all kinds; ``list`` and ``show`` know each of them."""

from __future__ import annotations

import ast
import inspect

import pytest

from fusionbench import registry
from fusionbench.__main__ import main
from fusionbench.data.base import Dataset

ALL = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]


@pytest.fixture(params=ALL, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def component(request: pytest.FixtureRequest) -> registry.Component:
    """Go through the components of all kinds."""
    return registry.describe(*request.param)


def test_every_kind_has_components() -> None:
    assert all(registry.names(kind) for kind in registry.KINDS)


def test_the_first_line_says_what_it_is(component: registry.Component) -> None:
    assert component.summary.endswith((".", ":"))
    assert len(component.summary) <= 120


def test_every_option_is_typed_and_documented(component: registry.Component) -> None:
    names_are_torchs = component.kind in ("optimizer", "scheduler")
    for option in component.options.values():
        assert option.annotation != "Any", f"{option.name} has no type"
        ast.parse(option.annotation, mode="eval")
        documented = names_are_torchs or f"{option.name}:" in component.doc
        assert documented, f"the docstring does not say what '{option.name}' is"


def test_the_options_are_those_of_the_constructor(component: registry.Component) -> None:
    parameters = inspect.signature(component.load()).parameters.values()
    keyword_only = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert set(keyword_only) == set(component.options)
    for name, option in component.options.items():
        assert option.required == (keyword_only[name] is inspect.Parameter.empty)
        assert option.required or option.default == keyword_only[name]


def test_show_prints_docstring_and_options(component: registry.Component, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", component.kind, component.name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert " ".join(component.doc.split())[:60] in printed
    assert all(name in printed for name in component.options)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_list_names_all(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in registry.names(kind))


@pytest.mark.parametrize("kind", registry.KINDS)
def test_an_unknown_name_is_answered_with_the_nearest(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = registry.names(kind)[-1]
    assert main(["show", kind, known + "x"]) == 2
    assert f"did you mean '{known}'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", registry.names("data"))
def test_a_dataset_says_what_it_holds_and_where_it_is_requested(name: str) -> None:
    dataset = registry.describe("data", name).load()
    assert issubclass(dataset, Dataset)
    assert dataset.version
    if dataset.folder:
        assert dataset.holds
        assert dataset.request
