"""Names of option files: looked up lazily, near misses, a user's own parts."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sam4ir.registry import Registry, UnknownNameError, near_miss


def table() -> Registry:
    return Registry("arch", {"NAFNet": "fractions:Fraction", "HINet": "no_such_module:HINet"}, handed=("scale",))


def test_a_name_is_imported_when_it_is_looked_up() -> None:
    registry = table()
    assert registry.names() == ["HINet", "NAFNet"]
    assert "HINet" in registry
    assert registry.get("NAFNet") is Fraction
    with pytest.raises(ModuleNotFoundError):
        registry.get("HINet")


def test_an_unknown_name_gets_the_near_miss_and_the_known_names() -> None:
    with pytest.raises(UnknownNameError) as error:
        table().get("NafNet")
    assert str(error.value) == "no arch is called 'NafNet'; did you mean 'NAFNet'? known: HINet, NAFNet"
    with pytest.raises(UnknownNameError) as error:
        table().get("x")
    assert str(error.value) == "no arch is called 'x'; known: HINet, NAFNet"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("widht", "width"), ("WIDTH", "width"), ("calculate_psnr", "psnr"), ("calculate_ssim", "ssim"), ("qqqq", None)],
)
def test_the_near_miss_is_the_closest_name(name: str, meant: str | None) -> None:
    expected = "" if meant is None else f"; did you mean {meant!r}?"
    assert near_miss(name, ["psnr", "ssim", "width", "lr"]) == expected


def test_own_parts_join_under_their_own_or_a_given_name() -> None:
    registry = table()

    @registry.register()
    class Mine:
        pass

    @registry.register("other")
    def function() -> None:
        pass

    assert registry.get("Mine") is Mine
    assert registry.get("other") is function
    assert registry.names() == ["HINet", "Mine", "NAFNet", "other"]


def test_a_taken_name_is_an_error_and_the_same_part_again_is_not() -> None:
    registry = table()

    class Mine:
        pass

    registry.register("Mine")(Mine)
    registry.register("Mine")(Mine)
    registry.register("NAFNet")(Fraction)
    assert registry.get("Mine") is Mine
    with pytest.raises(ValueError, match="arch 'NAFNet' is registered already; give yours another name"):
        registry.register("NAFNet")(Mine)
    assert registry.get("NAFNet") is Fraction
