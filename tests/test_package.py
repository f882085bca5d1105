"""What is published: the wheel and the source distribution install and run on their own."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import fewstep
from fewstep.recipes.config import built_in_recipes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the wheel and the source distribution; needs the package hatchling alone."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=ROOT, check=True)
    return out


def test_the_wheel_holds_the_whole_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    source = ROOT / "src"
    ours = {str(p.relative_to(source)) for p in source.rglob("*") if p.suffix not in (".pyc", "")}
    assert {name for name in names if ".dist-info/" not in name} == ours
    assert {"fewstep/py.typed", "fewstep/recipes/digits.yaml"} <= ours
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_distribution_can_be_tested(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "tests/conftest.py", "Makefile"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs/", "site/"))]


def test_the_wheel_runs_in_a_fresh_environment(built: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows the packages that fewstep needs."""
    (wheel,) = built.glob("*.whl")
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    place = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(place, capture_output=True, text=True, check=True).stdout.strip())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    install = [*pip, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    borrowed = Path(pytest.__file__).parents[1]
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    code = (
        "import fewstep; from fewstep.recipes.config import load_recipe; "
        "print(load_recipe('digits').name, fewstep.__file__)"
    )
    script = home / "bin" / "fewstep"
    for command, shown in (
        ([script, "--version"], f"fewstep {fewstep.__version__}"),
        ([script, "recipes"], f"{built_in_recipes()[0]} "),
        ([python, "-c", code], f"digits {site}"),
    ):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


def pins(file: str) -> dict[str, str]:
    """Return the version of every package in a file of constraints."""
    found = re.findall(r"^([\w.-]+)==([^ ;\n]+)", (ROOT / file).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_the_constraints_hold_the_lower_bounds_and_versions_above_them() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    del extras["docs"]
    dev = extras.pop("dev")
    lowest, pinned = pins("constraints-lowest.txt"), pins("constraints.txt")
    users = [Requirement(one) for one in sum(extras.values(), project["dependencies"])]
    assert set(lowest) | {"torch"} == {canonicalize_name(one.name) for one in users}
    for requirement in (*users, *map(Requirement, dev)):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pinned[name]), requirement
        if name in lowest:
            (bound,) = requirement.specifier
            assert (bound.operator, Version(bound.version)) == (">=", Version(lowest[name]))
