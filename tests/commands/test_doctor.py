"""A diagnosis of the environment of the tests, in which all that is installed works."""

import pytest

import exporter
from exporter.formats import FORMATS
from exporter.targets import TARGETS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def diagnosis():
    return exporter.doctor()


def test_all_formats_that_are_installed_are_proven(diagnosis):
    assert diagnosis.passed
    assert [trial.name for trial in diagnosis.formats] == list(FORMATS)
    for trial in diagnosis.formats:
        fmt = FORMATS[trial.name]
        assert trial.state == ("missing" if fmt.extra.missing else "works"), trial.told
        assert fmt.extra.missing or all(backend in trial.told for backend in fmt.backends)


def test_targets_tell_what_they_need(diagnosis):
    assert [trial.name for trial in diagnosis.targets] == list(TARGETS)
    for trial in diagnosis.targets:
        assert trial.state == "works" or "Run" in trial.told


def test_there_is_nothing_to_install(diagnosis):
    assert (diagnosis.advice, diagnosis.install) == ((), None)
    assert diagnosis.version == exporter.__version__
