import re
from pathlib import Path

import pytest

from ddbench.contract.observer import Silent
from ddbench.contract.spec import Choice
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.observers import observers
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
    ("text", "reason"),
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
def test_a_broken_plugin_is_disabled_and_named(write, text, reason):
    path = write("broken.py", text)
    fine = write("fine.py", GOOD.replace("first_images", "fine"))
    catalog = Catalog([path, fine])
    assert [b.name for b in catalog.broken] == ["broken"]
    assert reason in str(catalog.broken[0])
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
    assert "or load the plugin that offers it: --plugin PATH." in error.value.hint
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        catalog.get("dataset", "digit")


def test_resolving_spells_options_out(catalog: Catalog):
    _, choice = catalog.resolve("network", Choice(name="convnet", options={"width": 8}))
    assert choice.options == {"width": 8, "depth": 3}


TRACKER = '''
"""A tracker."""
import ddbench

class Watching(ddbench.Observer):
    """Keeps what it sees."""
    def __init__(self, folder):
        self.folder, self.steps = folder, []
    def progress(self, step, total, values):
        self.steps.append(step)
        FAULT
    def finished(self, result):
        (self.folder / "NAME").write_text(f"{self.steps} {result}")

@ddbench.hookimpl
def ddbench_observe(folder):
    return Watching(folder)
'''


class Said(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_each_run_has_observers_of_its_own(write, tmp_path: Path):
    catalog, said = Catalog([write("tracker.py", TRACKER.replace("FAULT", "").replace("NAME", "seen"))]), Said()
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (observers(catalog, None, folder, said) for folder in folders)
    one.progress(1, 2, {"loss": 0.5})
    two.progress(7, 9, {})
    one.progress(2, 2, {})
    one.finished("ok")
    two.finished("failed")
    assert [(folder / "seen").read_text() for folder in folders] == ["[1, 2] ok", "[7] failed"]
    assert said.lines == []


def test_a_failing_observer_is_reported_once_and_disabled_for_its_run(write, tmp_path: Path):
    fault = TRACKER.replace("FAULT", "raise RuntimeError('server gone')").replace("NAME", "faulty")
    sound = TRACKER.replace("FAULT", "").replace("NAME", "sound")
    catalog, said = Catalog([write("faulty.py", fault), write("sound.py", sound)]), Said()
    watching = observers(catalog, None, tmp_path, said)
    for step in (1, 2):
        watching.progress(step, 2, {})
    watching.finished("ok")
    [line] = said.lines
    assert line.startswith("plugin 'faulty' (")
    assert line.endswith("failed in progress and is disabled for this run: RuntimeError: server gone")
    assert (tmp_path / "sound").read_text() == "[1, 2] ok"
    assert not (tmp_path / "faulty").exists()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no account')", "failed in ddbench_observe and is disabled for this run: ValueError: no account"),
        ("return 3", "int has no progress(); derive it from ddbench.Observer"),
    ],
)  # fmt: skip
def test_an_observer_that_cannot_be_attached_is_reported(write, tmp_path: Path, body, reason):
    text = f"import ddbench\n\n@ddbench.hookimpl\ndef ddbench_observe():\n    {body}\n"
    said = Said()
    observers(Catalog([write("tracker.py", text)]), None, tmp_path, said).finished("ok")
    [line] = said.lines
    assert reason in line


def test_a_plugin_that_observes_nothing_says_none(write, tmp_path: Path):
    text = "import ddbench\n\n@ddbench.hookimpl\ndef ddbench_observe(plan):\n    return None\n"
    said = Said()
    observers(Catalog([write("tracker.py", text)]), None, tmp_path, said).progress(1, 1, {})
    assert said.lines == []


@pytest.mark.parametrize(
    "option", ["wrapper=True", "hookwrapper=True", "tryfirst=True", "trylast=True", "optionalhook=True", "specname='ddbench_methods'"]
)  # fmt: skip
def test_options_of_pluggy_are_refused_at_load(write, option):
    [broken] = Catalog([write("mine.py", GOOD.replace("@ddbench.hookimpl", f"@ddbench.hookimpl({option})"))]).broken
    assert f"hook 'ddbench_methods' uses the option {option}, which ddbench does not support" in broken.error
    assert broken.error.endswith("Write @ddbench.hookimpl without options.")


@pytest.mark.parametrize(
    ("decorator", "reason"),
    [
        ("@ddbench.method(companoin=True)", "method 'first_images' declares the unknown fact 'companoin'. Did you mean 'companion'?"),
        ("@ddbench.method(companion='yes')", "method 'first_images' declares companion='yes': input should be a valid boolean."),
        ("@ddbench.method(kind='baseline')", "declares the unknown fact 'kind'"),
    ],
)  # fmt: skip
def test_a_plugin_with_an_invalid_fact_is_disabled(write, decorator, reason):
    [broken] = Catalog([write("mine.py", GOOD.replace("@ddbench.method", decorator))]).broken
    assert reason in broken.error


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
