"""What is found out of packages, their bounds and the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.commands.environment import find_machine, find_packages, find_places, fits
from exporter.formats import FORMATS

ROOT = Path(__file__).parents[2]
EXTRAS = {fmt.extra.name for fmt in FORMATS.values()}


@pytest.mark.parametrize(
    ("version", "bounds", "fit"),
    [
        ("2.21.0", ">=2.21,<2.22", True),
        ("2.21", ">=2.21.0", True),
        ("2.20.9", ">=2.21,<2.22", False),
        ("2.22.0", ">=2.21,<2.22", False),
        ("2.22.0rc1", ">=2.21,<2.22", False),
        ("2.21.0rc1", ">=2.21,<2.22", False),
        ("2.21.0.post1", ">=2.21,<2.22", True),
        ("2.21.0+cpu", "<2.22,>=2.21", True),
        ("10.0", ">=9.2", True),
        ("0.11.0a3", "<0.12,>=0.11.0a2", True),
        ("0.dev20261023182759", ">=0.dev20261023182759,<1", True),
        ("0.dev20251023182759", ">=0.dev20261023182759,<1", False),
        ("3.14.0", ">=3.11,<3.14", False),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_pip_compares_them(version, bounds, fit):
    assert fits(version, bounds) is fit


@pytest.mark.parametrize("version", ["2.21.0", "2.20rc1", "2.22.0", "0.1.dev3", "3", "2.21.post2"])
@pytest.mark.parametrize("bounds", [">=2.21,<2.22", ">=0.1.dev2", "<3", ">=2.20,<2.21.1"])
def test_the_comparison_agrees_with_that_of_packaging(version, bounds):
    specifiers = pytest.importorskip("packaging.specifiers")
    expected = specifiers.SpecifierSet(bounds, prereleases=True).contains(version)
    assert fits(version, bounds) is expected


@pytest.mark.parametrize("bounds", ["~=1.0", ">=new"])
def test_a_bound_that_cannot_be_compared_is_an_error(bounds):
    with pytest.raises(ValueError, match="Received"):
        fits("1.0", bounds)


def test_the_packages_here_are_found_and_fit():
    packages = {package.name: package for package in find_packages(EXTRAS)}
    assert {"Python", "numpy", "keras", "tensorflow", "tflite-micro"} <= set(packages)
    assert not {"exporter", "pytest", "ruff"} & set(packages)
    assert all(package.fits for package in packages.values())
    assert packages["tflite-micro"].extra == "micro"
    assert packages["numpy"].installed == __import__("numpy").__version__


@pytest.mark.parametrize(
    ("requirements", "told"),
    [
        (["numpy<3,>=99", 'tflite-micro<1; extra == "micro"', 'ruff; extra == "dev"'], "numpy"),
        (None, "None"),
    ],
)
def test_a_package_that_is_installed_is_known_by_its_metadata(requirements, told, tmp_path):
    (tmp_path / "exporter").symlink_to(ROOT / "exporter")
    if requirements is not None:
        described = tmp_path / "exporter-0.1.0.dist-info"
        described.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: exporter", "Version: 0.1.0"]
        lines += ["Requires-Python: >=3.11", *(f"Requires-Dist: {each}" for each in requirements)]
        (described / "METADATA").write_text("\n".join(lines))
    code = """
from exporter.commands.environment import find_packages
found = find_packages({"micro"})
print([p.name for p in found], *(p.name for p in found if not p.fits), None if not found else "")
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    names = [] if requirements is None else ["Python", "numpy", "tflite-micro"]
    assert done.stdout.strip() == f"{names} {told}"


def test_the_machine_and_its_disks_are_described():
    machine = find_machine()
    assert machine.cores >= 1
    assert machine.system.split()[0]
    if sys.platform == "linux":
        assert machine.memory and machine.memory > 2**20
        flags = Path("/proc/cpuinfo").read_text().split()
        assert machine.features.get("AVX2", "avx2" in flags) == ("avx2" in flags)
    assert all(place.free > 0 for place in find_places())
