import pytest

from fsframework.core import Registry


def test_an_unknown_name_gets_the_nearest_one_and_the_list():
    registry = Registry("policy")
    registry.register("foresight")(int)
    registry.register("static")(str)
    with pytest.raises(
        ValueError, match=r"unknown policy 'foresigth'. Did you mean 'foresight'\? Known: foresight, static"
    ):
        registry["foresigth"]


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
