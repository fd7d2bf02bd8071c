import re
from pathlib import Path

import pytest

from ddbench.contract.spec import Choice
from ddbench.discovery.catalog import Catalog
from ddbench.errors import PluginError, UsageError

GOOD = '''
"""A plugin."""
import ddbench
from ddbench import DistilledSet

@ddbench.method
def first_images(task, run, *, skip: int = 0):
    """The first images."""
    n = task.budget.images_per_class * len(task.info.classes)
    return DistilledSet(task.train.inputs[None, skip:skip + n], task.train.labels[None, skip:skip + n])

@ddbench.hookimpl
def ddbench_methods():
    return [first_images]
'''


@pytest.fixture
def write(tmp_path: Path):
    def plugin(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return plugin


def test_installed_plugins_are_found_with_their_distribution(catalog: Catalog):
    assert {"unrolled_gd", "random_subset", "herding", "k_center"} <= {c.name for c in catalog.components("method")}
    assert catalog.get("method", "unrolled_gd").distribution.startswith("ddbench ")
    assert catalog.get("dataset", "digits").facts["network"] == "mlp"
    assert catalog.broken == []


def test_files_and_package_folders(write):
    file = write("mine.py", GOOD)
    folder = write("pack/__init__.py", "from pack.inner import ddbench_methods\n").parent
    write("pack/inner.py", GOOD.replace("first_images", "packed"))
    catalog = Catalog([file, folder])
    assert catalog.broken == []
    version = catalog.get("method", "first_images").distribution
    assert re.fullmatch(rf"{re.escape(file.name)}@[0-9a-f]{{8}}", version)
    file.write_text(GOOD + "# edited\n")
    assert Catalog([file]).get("method", "first_images").distribution != version
    assert Catalog([file, file]).get("method", "first_images")
    assert catalog.get("method", "packed").options.model_fields.keys() == {"skip"}


def test_modules_are_named_with_a_digest_and_installed_ones_are_loaded_once(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(tmp_path)
    inner = write("some_pack/inner.py", GOOD)
    write("some_pack/__init__.py", "")
    catalog = Catalog(["some_pack.inner", "ddbench_unrolled_gd"])
    assert catalog.broken == []
    version = catalog.get("method", "first_images").distribution
    assert re.fullmatch(r"some_pack\.inner@[0-9a-f]{8}", version)
    assert catalog.get("method", "unrolled_gd").distribution.startswith("ddbench ")
    assert [str(path) for path in catalog.named] == ["some_pack.inner"]
    inner.write_text(GOOD + "# edited\n")
    assert Catalog(["some_pack.inner"]).get("method", "first_images").distribution != version
    assert "there is no plugin file and no module some_pack.other" in str(Catalog(["some_pack.other"]).broken[0])
    write("raising_pack/__init__.py", "raise RuntimeError('no licence')")
    write("raising_pack/inner.py", GOOD)
    [broken] = Catalog(["raising_pack.inner"]).broken
    assert "RuntimeError: no licence (raising_pack/__init__.py, line 1)" in str(broken)


def test_environment_and_config_name_plugins(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDBENCH_PLUGINS", str(write("one.py", GOOD.replace("first_images", "one"))))
    write("two.py", GOOD.replace("first_images", "two"))
    write("ddbench.toml", 'plugins = ["two.py"]')
    monkeypatch.chdir(tmp_path)
    catalog = Catalog()
    assert catalog.get("method", "one")
    assert catalog.get("method", "two")
    write("ddbench.toml", "plugins = 3")
    with pytest.raises(UsageError, match="must be a list of paths"):
        Catalog()
    write("ddbench.toml", "plugins = [")
    with pytest.raises(UsageError, match="not valid TOML"):
        Catalog()


def test_nothing_in_the_current_directory_is_imported_unasked(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write("stray.py", "raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert Catalog().broken == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import module_that_is_not_there", "ModuleNotFoundError: No module named 'module_that_is_not_there'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError"),
        (GOOD.replace("def ddbench_methods", "def ddbench_method"), "no hook 'ddbench_method'. Did you mean 'ddbench_methods'?"),
        (GOOD.replace("@ddbench.hookimpl", ""), "'ddbench_methods' looks like a hook but is not marked"),
        (GOOD.replace("return [first_images]", "return 3"), "ddbench_methods returned int instead of a list"),
        (GOOD.replace("@ddbench.method\n", ""), "first_images is not a method. Decorate the function with @ddbench.method"),
        (GOOD.replace('    """The first images."""\n', ""), "method 'first_images' has no docstring"),
        (GOOD.replace("return [first_images]", "raise ValueError('no')"), "ValueError: no"),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_set_aside_and_named(write, text, told):
    path = write("broken.py", text)
    fine = write("fine.py", GOOD.replace("first_images", "fine"))
    catalog = Catalog([path, fine])
    assert [b.name for b in catalog.broken] == ["broken"]
    assert told in str(catalog.broken[0])
    assert path.name in str(catalog.broken[0])
    assert catalog.get("method", "fine")
    with pytest.raises(PluginError, match="there is no method 'first_images', and plugin 'broken'"):
        catalog.get("method", "first_images")


def test_a_missing_plugin_file(tmp_path: Path):
    assert "there is no plugin file" in str(Catalog([tmp_path / "nothing.py"]).broken[0])


def test_two_that_claim_a_name(write):
    catalog = Catalog([write("mine.py", GOOD.replace("first_images", "unrolled_gd")), write("other.py", GOOD)])
    with pytest.raises(PluginError, match=r"'unrolled_gd' is registered by both ddbench .* and .*mine\.py"):
        catalog.get("method", "unrolled_gd")
    assert catalog.get("method", "first_images")


def test_unknown_names_suggest_the_nearest(catalog: Catalog):
    with pytest.raises(UsageError) as error:
        catalog.get("method", "unroled_gd")
    assert "Did you mean 'unrolled_gd'?" in error.value.message
    assert "random_subset" in error.value.hint
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        catalog.get("dataset", "digit")


def test_resolving_spells_options_out(catalog: Catalog):
    _, choice = catalog.resolve("network", Choice(name="convnet", options={"width": 8}))
    assert choice.options == {"width": 8, "depth": 3}


def test_a_crashing_tracker_is_named_once_and_switched_off(write, tmp_path: Path):
    text = f'''
"""A tracker."""
from pathlib import Path
import ddbench

@ddbench.hookimpl
def ddbench_run_started(spec):
    with open({str(tmp_path / "seen")!r}, "a") as stream:
        stream.write("x")
    raise RuntimeError("server gone")
'''
    catalog = Catalog([write("tracker.py", text)])
    first = catalog.notify("ddbench_run_started", spec=None, run_dir="runs/x")
    [line] = first
    assert line.startswith("plugin 'tracker' (")
    assert line.endswith("failed in ddbench_run_started and is switched off for this run: RuntimeError: server gone")
    assert catalog.notify("ddbench_run_started", spec=None, run_dir="runs/x") == []
    assert (tmp_path / "seen").read_text() == "x"


def test_experiments_are_named_by_their_file(write, tmp_path: Path):
    write("a.toml", 'name = "mine/a"\nmethod = "random_subset"\n')
    text = f"""
import ddbench
from pathlib import Path

@ddbench.hookimpl
def ddbench_experiments():
    return [Path({str(tmp_path / "a.toml")!r})]
"""
    found = Catalog([write("exp.py", text)]).experiment("mine/a")
    assert (found.spec, found.published) == ({"method": "random_subset"}, None)
    write("a.toml", 'name = "mine/a"\n[published]\nmean = "high"\n')
    assert "experiment" in str(Catalog([write("exp.py", text)]).broken[0])
