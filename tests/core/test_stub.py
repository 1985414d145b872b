# SPDX-License-Identifier: Apache-2.0
"""The stub says what the module has: every name, method, argument and default, both ways."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from core_harness import MakeCache

import vt_sglang
from vt_sglang import _core

STUB = Path(vt_sglang.__file__).with_name("_core.pyi")
ONLY_FOR_TYPES = {"Tokens", "Counters", "Usage", "RequestCosts", "PlanFacts"}  # a protocol and typed dictionaries

Arguments = tuple[list[str], list[str], dict[str, Any]]  # positional, keyword-only, defaults


def arguments_of(function: ast.FunctionDef) -> Arguments:
    spec = function.args
    positional = [it.arg for it in spec.args]
    keyword_only = [it.arg for it in spec.kwonlyargs]
    defaults = dict(zip(positional[len(positional) - len(spec.defaults) :], spec.defaults, strict=True))
    defaults |= {name: it for name, it in zip(keyword_only, spec.kw_defaults, strict=True) if it is not None}
    return positional, keyword_only, {name: ast.literal_eval(value) for name, value in defaults.items()}


def stub_members(nodes: list[ast.stmt]) -> dict[str, ast.stmt]:
    members: dict[str, ast.stmt] = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            members[node.name] = node
    return members


MODULE = stub_members(ast.parse(STUB.read_text()).body)
CLASSES = {name: stub_members(MODULE[name].body) for name in ("KVCache", "SharePlan")}  # type: ignore[attr-defined]
PROPERTIES = {
    (owner, name)
    for owner, members in CLASSES.items()
    for name, node in members.items()
    if any(it.id == "property" for it in node.decorator_list)  # type: ignore
}
METHODS = sorted({(owner, name) for owner, members in CLASSES.items() for name in members} - PROPERTIES)


def signature_of(function: Any) -> Arguments:
    """nanobind keeps the signature as text, in which \\N stands for the Nth default."""
    ((text, _, defaults),) = function.__nb_signature__
    for number, value in enumerate(defaults or ()):
        text = text.replace(f"\\{number}", repr(value))
    text = re.sub(r"\b(ndarray|ArrayLike)\[[^\]]*\]", r"\1", text)  # no Python, and no concern of this test
    (node,) = ast.parse(f"{text}: ...").body
    assert isinstance(node, ast.FunctionDef)
    return arguments_of(node)


def public_names(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_names_of_the_module() -> None:
    assert public_names(_core) == set(MODULE) - ONLY_FOR_TYPES


@pytest.mark.parametrize("owner", CLASSES)
def test_members_of_classes(owner: str) -> None:
    built = getattr(_core, owner)
    assert public_names(built) == set(CLASSES[owner]) - {"__init__"}
    for name in public_names(built):
        assert isinstance(getattr(built, name), property) == ((owner, name) in PROPERTIES), name


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_arguments_of_methods(owner: str, name: str) -> None:
    assert arguments_of(CLASSES[owner][name]) == signature_of(getattr(getattr(_core, owner), name))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, node in MODULE.items() if isinstance(node, ast.FunctionDef)])
def test_arguments_of_functions(name: str) -> None:
    assert arguments_of(MODULE[name]) == signature_of(getattr(_core, name))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", [name for name in MODULE if name.endswith(("Error", "OutOfMemory", "OutOfPages", "SlotsBusy"))]
)
def test_bases_of_errors(name: str) -> None:
    (base,) = MODULE[name].bases  # type: ignore[attr-defined]
    assert [it.__name__ for it in getattr(_core, name).__bases__] == [base.id]


@pytest.mark.parametrize(("name", "method"), [("Counters", "counters"), ("Usage", "usage")])
def test_keys_of_dictionaries(make_cache: MakeCache, name: str, method: str) -> None:
    declared = [it.target.id for it in MODULE[name].body if isinstance(it, ast.AnnAssign)]  # type: ignore
    assert list(getattr(make_cache(), method)()) == declared


def test_keys_of_costs(make_cache: MakeCache) -> None:
    declared = [it.target.id for it in MODULE["RequestCosts"].body if isinstance(it, ast.AnnAssign)]  # type: ignore
    cache = make_cache()
    assert list(cache.costs(cache.bind(None, 0, 1)[0])) == declared


def test_keys_of_a_plans_facts(make_cache: MakeCache) -> None:
    declared = [it.target.id for it in MODULE["PlanFacts"].body if isinstance(it, ast.AnnAssign)]  # type: ignore
    plan = _core.SharePlan(make_cache(), max_batch=1, max_workers=1, members_per_task=2)
    assert list(plan.facts()) == declared
