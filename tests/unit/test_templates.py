"""Templates: paths are replaced, nothing else happens, and nothing takes long."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tessera import templates
from tessera.templates import TooLong, Unresolved, check, references, render

SCOPE = {
    "INPUT": {"q": "tents", "n": 3, "none": None, "yes": True, "list": [1, 2], "deep": {"a-b": {"c_d": 1.5}}},
    "STAGE": {"first": {"count": 7}},
}


@pytest.mark.parametrize(
    ("value", "filled"),
    [
        ("{{INPUT.q}}", "tents"),
        ("{{ inputs.q }}", "tents"),
        ("{{Input.n}}", 3),
        ("{{INPUT.list}}", [1, 2]),
        ("{{INPUT.none}}", None),
        ("{{INPUT.deep.a-b.c_d}}", 1.5),
        ("{{STAGE.first.count}}", 7),
        ("{{\tINPUT.q\n}}", "tents"),
        ("red {{INPUT.q}}, {{INPUT.n}} of them", "red tents, 3 of them"),
        ("{{INPUT.q}}{{INPUT.n}}", "tents3"),
        ("{{INPUT.yes}}/{{INPUT.none}}/", "true//"),
        ("no expression { } here", "no expression { } here"),
        ({"a": ["{{INPUT.n}}", {"b": "{{INPUT.q}}"}], "{{INPUT.q}}": 1}, {"a": [3, {"b": "tents"}], "{{INPUT.q}}": 1}),
        (5, 5),
    ],
)  # fmt: skip
def test_a_value_that_is_one_expression_keeps_its_type(value: Any, filled: Any) -> None:
    assert check(value, ()) == []
    assert render(value, SCOPE) == filled


@pytest.mark.parametrize(
    "value",
    [
        "{{INPUT.__class__}}",
        "{{INPUT.q.upper}}",
        "{{INPUT.list.0}}",
        "{{INPUT.absent}}",
        "{{DOC.q}}",
        "{{CONTEXT.q}}",
        "a {{STAGE.second.count}}",
    ],
)
def test_only_what_is_in_the_tree_is_found(value: str) -> None:
    with pytest.raises(Unresolved) as caught:
        render(value, SCOPE)
    assert caught.value.expression in value


@pytest.mark.parametrize(
    "value",
    [
        "{{INPUT.q | upper}}",
        "{{INPUT.q()}}",
        "{{INPUT['q']}}",
        "{{7*7}}",
        "{{INPUT}}",
        "{{INPUT.}}",
        "{{VAULT.q}}",
        "{{}}",
        "{{INPUT.q",
        "INPUT.q}}",
        "{{{{INPUT.q}}}}",
        "{{INPUT.q\x00}}",
    ],
)
def test_any_other_syntax_is_a_problem_that_shows_the_forms(value: str) -> None:
    (problem, *_) = check({"a": [value]}, ("body",))
    assert problem.location == ("body", "a", 0)
    assert "{{INPUT.name}}" in problem.message


def test_what_an_input_holds_is_never_read_as_a_template() -> None:
    scope = {"INPUT": {"q": "{{INPUT.secret}}", "secret": "s"}}
    assert render("{{INPUT.q}}", scope) == "{{INPUT.secret}}"
    assert render("a {{INPUT.q}}", scope) == "a {{INPUT.secret}}"


def test_references_are_told_by_their_root() -> None:
    value = {"a": "{{inputs.x.y}} {{ DOC.z }}", "b": ["{{STAGE.s.count}}"], "c": "{{bad}}"}
    assert references(value) == {("INPUT", ("x", "y")), ("DOC", ("z",)), ("STAGE", ("s", "count"))}


def test_a_text_that_grows_too_long_is_refused_instead_of_cut() -> None:
    scope = {"INPUT": {"q": "x" * 60_000}}
    assert len(render("{{INPUT.q}} ", scope)) == 60_001
    for value in ("{{INPUT.q}}{{INPUT.q}}", "{{INPUT.q}}" + "y" * 60_000):
        with pytest.raises(TooLong):
            render(value, scope)


@pytest.mark.parametrize("text", ["{{" + " " * 200_000, "{{" * 100_000, "{{ a" * 50_000, "}}" * 100_000])
def test_time_is_linear_in_the_text(text: str) -> None:
    """2,000 blanks behind two braces took seven seconds, with the interpreter's lock held."""
    begun = time.perf_counter()
    check(text, ())
    templates.is_template(text)
    references(text)
    assert time.perf_counter() - begun < 2
