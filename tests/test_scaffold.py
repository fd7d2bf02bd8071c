"""New packages: their files are sound, their plugin conforms and runs, and they install."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ddbench.contract.component import KINDS
from ddbench.contract.task import cross_entropy
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.scaffold import FAMILIES, new_plugin
from ddbench.testing import conform, find
from tests.test_features import golden, network_at, relative

ROOT = Path(__file__).parent.parent
PUBLIC = {f"ddbench{module}" for module in ("", ".augment", ".cache", ".decoders", ".networks", ".testing", ".unroll")}


def rendered(family: str, folder: Path) -> Path:
    """Return the file of a new method of a family."""
    return new_plugin("my_own", "method", folder, family).folder / "ddbench_my_own" / "__init__.py"


def module_of(family: str, folder: Path) -> ModuleType:
    """Return the module of a new method of a family."""
    spec = importlib.util.spec_from_file_location("my_own", rendered(family, folder))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "tracker"])
def test_a_new_plugin_conforms_and_runs(ddbench, tmp_path, kind):
    written = new_plugin("my_own", kind, tmp_path)
    package = written.folder / "ddbench_my_own"
    catalog = Catalog([package])
    assert not catalog.broken
    registered = {"tracker": "ddbench_my_own", "decoder": "my_own/v1"}
    thing = find(kind, registered.get(kind, "my_own"), catalog)
    assert [o for o in conform(thing, catalog) if o.status == "failed"] == []
    done = ddbench(*written.commands[2].split()[1:], "--plugin", package)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_a_package_is_extended_by_modules(ddbench, tmp_path):
    assert ddbench("new-plugin", "one").code == 0
    project = tmp_path / "ddbench-one" / "pyproject.toml"
    # Formatting and comments of the author stay.
    project.write_text(project.read_text() + "# by hand\n")
    for name, kind in (("two", "method"), ("three", "network")):
        done = ddbench("new-plugin", name, "--kind", kind, "--into", "ddbench-one")
        assert done.code == 0, done.err
    points = tomllib.loads(project.read_text())["project"]["entry-points"]["ddbench"]
    assert points == {"one": "ddbench_one", "two": "ddbench_one.two", "three": "ddbench_one.three"}
    assert project.read_text().endswith("# by hand\n")
    assert "MethodTests" in (tmp_path / "ddbench-one/tests/test_two.py").read_text()
    assert sorted(path.name for path in tmp_path.glob("ddbench-*")) == ["ddbench-one"]
    listed = ddbench(
        "list",
        "methods",
        "--plugin",
        "ddbench_one",
        "--plugin",
        "ddbench_one.two",
        PYTHONPATH=os.pathsep.join(["ddbench-one", os.environ.get("PYTHONPATH", "")]),
    ).out
    assert "one " in listed and "two " in listed
    again = ddbench("new-plugin", "two", "--into", "ddbench-one")
    assert again.code == 2 and "two.py exists already" in again.message()


def test_a_folder_that_is_not_a_plugin_package_gets_a_new_one(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    assert new_plugin("one", "method", tmp_path).folder == tmp_path / "ddbench-one"


@pytest.mark.parametrize("name", ["My_method", "1st", "class", "a-b", "../up", ""])
def test_names_that_no_plugin_can_have(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be the name"):
        new_plugin(name, "method", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken(tmp_path):
    with pytest.raises(UsageError, match=r"there is a method 'herding' already \(ddbench "):
        new_plugin("herding", "method", tmp_path)
    assert new_plugin("herding", "init", tmp_path).folder.is_dir()


def test_nothing_is_overwritten(ddbench, tmp_path):
    first = ddbench("new-plugin", "mine", "--json")
    assert first.code == 0
    assert [Path(file).exists() or (tmp_path / file).exists() for file in first.json()["files"]] == [True] * 5
    (tmp_path / "ddbench-mine" / "README.md").write_text("my own words")
    again = ddbench("new-plugin", "mine")
    assert again.code == 2 and "exists already" in again.message()
    assert (tmp_path / "ddbench-mine" / "README.md").read_text() == "my own words"
    assert ddbench("new-plugin", "mine", "--kind", "thing").code == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_conforms(tmp_path, family):
    path = rendered(family, tmp_path)
    # The published number of steps would fill the time that the check of the accuracy grants.
    text, changed = re.subn(r"(outer_steps: .* = )\d+", r"\g<1>30", path.read_text())
    assert changed == 1
    path.write_text(text)
    catalog = Catalog([path.parent])
    outcomes = list(conform(find("method", "my_own", catalog), catalog))
    assert [o for o in outcomes if o.status != "passed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_of_a_family_runs(ddbench, tmp_path, family):
    written = new_plugin("my_own", "method", tmp_path, family)
    command = written.commands[2].split()[1:]
    assert command[-2:] == ["--protocol", FAMILIES[family]]
    done = ddbench(*command, "--plugin", written.folder / "ddbench_my_own")
    assert done.code == 0, done.err


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_short_and_imports_public_modules(tmp_path, family):
    path = rendered(family, tmp_path)
    text = path.read_text()
    assert len(text.splitlines()) < 120
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {module for module in modules if module.startswith("ddbench")} <= PUBLIC
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [*ruff, *command, "--config", ROOT / "pyproject.toml", path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_families_are_typed(tmp_path):
    paths = [rendered(family, tmp_path / family) for family in FAMILIES]
    copies = [path.rename(tmp_path / f"my_own_{number}.py") for number, path in enumerate(paths)]
    # The settings of this project are strict, and share its cache.
    done = subprocess.run([sys.executable, "-m", "mypy", *copies], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_families_that_do_not_exist(ddbench, tmp_path):
    unknown = ddbench("new-plugin", "mine", "--family", "gradient-macthing")
    assert unknown.code == 2
    assert "no family 'gradient-macthing'. Did you mean 'gradient-matching'?" in unknown.message()
    other = ddbench("new-plugin", "mine", "--kind", "network", "--family", "gradient-matching")
    assert other.code == 2 and "--family is for methods" in other.message()
    assert list(tmp_path.iterdir()) == []


def test_gradient_matching_is_that_of_the_paper(tmp_path):
    module, numbers = module_of("gradient-matching", tmp_path), golden("dc")
    network, state = network_at(numbers["w0"], 4)
    images, losses = numbers["syn_images"].requires_grad_(), []
    for label, real in enumerate(numbers["real_images"]):
        chosen = numbers["syn_labels"] == label
        synthetic = images[chosen], numbers["syn_labels"][chosen]
        pair = real, torch.full((len(real),), label)
        losses.append(module.matching_loss(network, state, pair, synthetic, cross_entropy))
    loss = torch.stack(losses)
    assert relative(loss, numbers["loss_per_class_ours"]) < 1e-8
    assert relative(torch.autograd.grad(loss.sum(), images)[0], numbers["grad_images_ours"]) < 1e-8


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_distribution_matching_is_that_of_the_paper(tmp_path, norm):
    module, numbers = module_of("distribution-matching", tmp_path), golden("dm")
    suffix = "_batchnorm" if norm == "batch" else ""
    network, state = network_at(numbers[f"w0{suffix}"], 10, norm)
    images = numbers["syn_images"].requires_grad_()
    loss = module.matching_loss(network, state, list(numbers["real_images"]), images.split(2))
    assert relative(loss, numbers[f"loss{suffix}"]) < 1e-8
    assert relative(torch.autograd.grad(loss, images)[0], numbers[f"grad_images{suffix}"]) < 1e-8


def test_trajectory_matching_is_that_of_the_paper(tmp_path):
    module, numbers = module_of("trajectory-matching", tmp_path), golden("mtt")
    network, start = network_at(numbers["w0"], 5, width=8)
    _, target = network_at(numbers["target"], 5, width=8)
    images, rate = numbers["syn_images"], numbers["syn_lr"]
    labels, indices = numbers["hard_labels"], numbers["batch_indices_hard"]
    gradient = module.match(network, start, target, images, labels, rate, indices, cross_entropy)
    assert relative(gradient.loss, numbers["loss_hard"][None]) < 1e-8
    assert relative(gradient.inputs, numbers["grad_images_hard"]) < 1e-8
    assert relative(gradient.lrs, numbers["grad_lr_hard"]) < 1e-8


def test_inner_steps_take_shuffled_passes(tmp_path):
    module = module_of("trajectory-matching", tmp_path)
    indices = module.batch_indices(10, 4, 7, torch.Generator().manual_seed(0))
    assert indices.shape == (7, 4)
    for first in (0, 3):
        assert indices[first : first + 3].flatten().sort().values.tolist() == [-1, -1, *range(10)]
    assert not torch.equal(indices[:3], indices[3:6])
