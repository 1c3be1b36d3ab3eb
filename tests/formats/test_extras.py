import pytest

from exporter.errors import RecipeError
from exporter.formats.extras import NO_EXTRA, Extra


def test_names_what_is_missing_and_how_to_install_it():
    extra = Extra("some", ("pytest", "no-such-distribution"))
    assert extra.missing == ("no-such-distribution",)
    words = r"It needs the extra 'some', which is not installed\. Run: .* install no-such-dist"
    with pytest.raises(RecipeError, match=words):
        extra.require("It")


@pytest.mark.parametrize("extra", [NO_EXTRA, Extra("some", ("pytest",))])
def test_accepts_what_is_installed(extra):
    extra.require("It")
