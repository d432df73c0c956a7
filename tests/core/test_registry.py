import pytest

import fsframework.models  # fills the registries
import fsframework.policies  # noqa: F401
from fsframework.core import ADAPTERS, POLICIES, Registry
from fsframework.core.registry import nearest


def test_an_unknown_name_gets_the_nearest_one_and_the_list():
    registry = Registry("policy")
    registry.register("foresight")(int)
    registry.register("static")(str)
    with pytest.raises(
        ValueError, match=r"unknown policy 'foresigth'. Did you mean 'foresight'\? Known: foresight, static"
    ):
        registry["foresigth"]


def test_of_many_names_the_nearest_are_shown_and_how_to_list_the_rest():
    names = ["foresight", "foresight_release", *(f"other_{i}" for i in range(7))]
    assert nearest("foresigth", names, "fsf list policies") == (
        "Did you mean 'foresight'? Known: foresight, foresight_release and 7 more; `fsf list policies` shows all."
    )
    assert nearest("qqq", names) == "Known: foresight, foresight_release, other_0 and 6 more."
    assert nearest("qqq", names[:8]) == f"Known: {', '.join(names[:8])}."  # few enough
    assert nearest("x", []) == "Known: none."


def test_the_registries_of_policies_and_models_say_how_to_list_them():
    for registry, listing in ((POLICIES, "fsf list policies"), (ADAPTERS, "fsf list models")):
        with pytest.raises(ValueError, match=f"more; `{listing}` shows all") as error:
            registry["qqq"]
        assert len(str(error.value)) < 160


def test_a_name_is_taken_once_and_the_error_names_both():
    registry = Registry("policy")
    registry.register("x")(int)
    with pytest.raises(ValueError, match="'x' is already builtins.int; give builtins.str another name"):
        registry.register("x")(str)


def test_the_same_class_may_be_registered_again():
    registry = Registry("policy")
    registry.register("x")(int)
    registry.register("x")(int)
    assert registry["x"] is int
    assert list(registry) == ["x"]
