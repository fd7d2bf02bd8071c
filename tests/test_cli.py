import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DDBENCH = Path(sys.executable).with_name("ddbench")
QUICK = ("--network", "linear", "--eval-networks", 3, "--set", "outer_steps=20", "--set", "networks=1")

LAST_IMAGES = '''
"""The design's smallest plugin, in a file of its own."""
import ddbench
from ddbench import DistilledSet, Run, Task

@ddbench.method
def some_images(task: Task, run: Run, *, balanced: bool = True) -> DistilledSet:
    """Real images, chosen at random."""
    chosen = task.train.random_subset(task.budget.images_per_class, run.generator, balanced=balanced)
    return DistilledSet(chosen.inputs[None], chosen.labels[None])

@ddbench.hookimpl
def ddbench_methods():
    return [some_images]
'''


def rows_in(folder: Path) -> list[dict[str, str]]:
    with open(folder / "leaderboards" / "classification.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_help_is_fast_and_imports_nothing_heavy(tmp_path: Path):
    code = (
        "import sys; sys.argv = ['ddbench', '--help']\n"
        "from ddbench.cli import main\n"
        "try: main()\n"
        "except SystemExit as exit: assert not exit.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'pandas', 'sklearn', 'scipy', 'matplotlib', 'numpy', 'altair', 'vl_convert'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_the_leaderboard_does_not_import_torch(tmp_path: Path):
    (tmp_path / "leaderboards").mkdir()
    code = (
        "import sys; sys.argv = ['ddbench', 'leaderboard']\n"
        "from ddbench.cli import main\n"
        "try: main()\n"
        "except SystemExit as exit: assert not exit.code\n"
        "assert not {'torch', 'altair', 'vl_convert'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


@pytest.mark.parametrize("command", ["run", "resume", "evaluate", "export", "list", "show", "leaderboard", "plugins"])
def test_every_command_explains_itself_with_an_example(ddbench, command):
    done = ddbench(command, "--help")
    assert done.code == 0
    assert f"ddbench {command}" in done.out


def test_the_main_job(ddbench, tmp_path: Path):
    """Run, look, score again, resume, run again: what a newcomer does in the first hour."""
    done = ddbench("run", "--method", "unrolled_gd", *QUICK, "--seed", 3)
    assert done.code == 0, done.err
    assert "random_subset" in done.out
    assert "95 % interval" in done.out
    assert "Next:" in done.out
    assert "digits: 1295 training" in done.err
    assert "20/20" in done.err
    assert "left" in done.err
    [folder] = (tmp_path / "runs").iterdir()
    files = {path.name for path in folder.iterdir()}
    assert {"spec.json", "result.json", "distilled.safetensors", "log.jsonl", "distilled.png", "curve.png"} <= files
    [row] = rows_in(tmp_path)
    assert (row["method"], row["dataset"], row["seed"]) == ("unrolled_gd", "digits", "3")

    assert "unrolled_gd" in ddbench("leaderboard").out
    assert ddbench("leaderboard", "--json").json()["rows"][0]["mean"] == float(row["mean"])
    assert "There are no records of that" in ddbench("leaderboard", "--dataset", "svhn").out
    assert row["run_id"] in ddbench("show", folder).out
    again = ddbench("evaluate", folder, "--json").json()
    assert again["score"]["mean"] == float(row["mean"])
    assert again["artifact"]["sha256"] == row["artifact_sha256"]
    other = ddbench("evaluate", folder / "distilled.safetensors", "--network", "mlp", "--set", "network.width=16")
    assert other.code == 0, other.err
    assert "This run has ended already" in ddbench("resume", folder).err
    second = ddbench("run", "--method", "unrolled_gd", *QUICK, "--seed", 3)
    assert "No second record" in second.err
    assert "Reproduced exactly" in second.err


def test_an_option_of_the_usual_network_needs_no_name(ddbench):
    """The dataset's own network, and the target's refusal where it brings one."""
    plan = ddbench("run", "-m", "random_subset", "--set", "network.width=16", "--dry-run", "--json").json()
    assert plan["settings"]["network"] == {"name": "mlp", "options": {"depth": 2, "width": 16}}


def test_json_is_one_document_on_stdout(ddbench):
    done = ddbench("run", "-m", "random_subset", "--network", "linear", "--eval-networks", 3, "--json")
    document = done.json()
    wanted = {
        "version", "status", "run_id", "run_dir", "asked", "settings", "primary", "score", "scores", "before",
        "companions", "artifact", "seconds", "peak_memory_mb", "environment",
    }  # fmt: skip
    assert wanted <= document.keys()
    assert document["status"] == "ok"
    assert {"mean", "std", "low", "high", "n", "values"} == document["score"].keys()
    assert {"path", "sha256", "bytes"} <= document["artifact"].keys()
    assert {"distill", "evaluate", "saved"} == document["seconds"].keys()
    assert Path(document["artifact"]["path"]).name == "distilled.safetensors"


@pytest.mark.slow
def test_dry_run_and_smoke(ddbench, tmp_path: Path):
    plan = ddbench("run", "-m", "unrolled_gd", "-d", "svhn", "--dry-run", "--json", DDBENCH_DATA=str(tmp_path)).json()
    assert plan["status"] == "planned"
    assert plan["settings"]["images_per_class"] == 10
    assert plan["data"] == "not here yet"
    assert "svhn" in plan["missing"][0]
    assert plan["peak_memory_mb"] is None
    told = ddbench("run", "-m", "unrolled_gd", "--dry-run").out
    assert "digits: 1295 training, 142 validation, 360 test" in told
    assert re.search(r"memory +about \d+ MB at the peak \(memory=store\)", told)
    large = ddbench("run", "-m", "unrolled_gd", "--dry-run", "--json", "--set", "networks=32", "--epochs", 300).json()
    assert large["peak_memory_mb"] > 100
    assert list(tmp_path.iterdir()) == []
    smoke = ddbench("run", "-m", "unrolled_gd", "--smoke")
    assert smoke.code == 0
    assert not (tmp_path / "leaderboards").exists()


@pytest.mark.slow
def test_config_file_flags_and_assignments_one_over_the_other(ddbench, tmp_path: Path):
    (tmp_path / "run.toml").write_text(
        'dataset = "digits"\nepochs = 5\nseed = 4\nsteps = 2\nimages_per_class = 4\n'
        '[method]\nname = "unrolled_gd"\noptions.outer_lr = 0.5\n[init]\nname = "random"\noptions.scheme = "kaiming"\n'
    )
    spec = ddbench("run", "--config", "run.toml", "--seed", 9, "--epochs", 7, "--set", "outer_steps=11",
                   "--set", "init.distribution=uniform", "--dry-run", "--json").json()["settings"]  # fmt: skip
    assert (spec["seed"], spec["epochs"], spec["steps"]) == (9, 7, 2)
    assert spec["method"]["options"]["outer_lr"] == 0.5
    assert spec["method"]["options"]["outer_steps"] == 11
    assert spec["init"]["options"] == {"scheme": "kaiming", "distribution": "uniform"}
    other = ddbench("run", "--config", "run.toml", "-m", "random_subset", "--dry-run", "--json").json()["settings"]
    assert other["method"] == {"name": "random_subset", "options": {"balanced": True}}


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ('method = ["a"]', [], "method: input should be a valid dictionary"),
        ("method = {name = 3}", [], "method.name: input should be a valid string (not 3)"),
        ("[network]\nname = 'mlp'\noptions = 3", ["--set", "network.width=3"], "network.options: input should be"),
    ],
)
def test_a_config_file_with_an_invalid_choice(ddbench, tmp_path: Path, config, arguments, message):
    (tmp_path / "run.toml").write_text(config)
    method = [] if "method" in config else ["-m", "random_subset"]
    done = ddbench("run", "--config", "run.toml", *method, *arguments, "--dry-run")
    assert done.code == 2 and message in done.message()


def test_a_plugin_file_reaches_list_show_and_leaderboard(ddbench, tmp_path: Path):
    (tmp_path / "mine.py").write_text(LAST_IMAGES)
    assert "some_images" in ddbench("list", "methods", "--plugin", "mine.py").out
    assert "balanced" in ddbench("show", "some_images", "--plugin", "mine.py").out
    done = ddbench("run", "--plugin", "mine.py", "-m", "some_images", "--network", "linear", "--eval-networks", 2)
    assert done.code == 0, done.err
    assert "some_images" in ddbench("leaderboard").out
    assert "mine" in ddbench("plugins", DDBENCH_PLUGINS="mine.py").out


@pytest.mark.slow
def test_looking(ddbench):
    listed = ddbench("list", "--json").json()
    assert {
        "methods",
        "datasets",
        "networks",
        "inits",
        "objectives",
        "targets",
        "protocols",
        "experiments",
    } <= listed.keys()
    shown = ddbench("show", "unrolled_gd", "--json").json()["found"][0]
    assert shown["options"]["outer_steps"]["description"]
    assert shown["options"]["outer_steps"]["minimum"] == 1
    assert "outer_lr" in ddbench("show", "unrolled_gd").out
    assert ddbench("show", "timm/resnet18").code == 0
    assert {"unrolled_gd", "coreset"} <= {p["name"] for p in ddbench("plugins", "--json").json()["plugins"]}
    assert ddbench("--version").out.startswith("ddbench 0.")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["run"], 2, "no method was named. Name one with --method"),
        (["run", "-m", "unroled_gd"], 2, "no method called 'unroled_gd'. Did you mean 'unrolled_gd'?"),
        (["run", "-m", "herding", "-d", "mnits"], 2, "no dataset called 'mnits'. Did you mean 'mnist'?"),
        (["run", "-m", "herding", "--network", "lenett"], 2, "Did you mean 'lenet'?"),
        pytest.param(["run", "-m", "herding", "--network", "timm/resnet_18"], 2, "timm has no model 'resnet_18'. Did you mean 'resnet", marks=pytest.mark.slow),
        (["run", "-m", "herding", "--protocol", "replay"], 2, "Did you mean 'replay/v1'?"),
        (["run", "-m", "unrolled_gd", "--set", "outer_step=3"], 2, "no option 'outer_step'. Did you mean 'outer_steps'?"),
        (["run", "-m", "unrolled_gd", "--set", "outer_steps=0"], 2, "greater than or equal to 1"),
        (["run", "-m", "unrolled_gd", "--set", "outer_steps=ten"], 2, "outer_steps=ten"),
        (["run", "-m", "unrolled_gd", "--set", "outer_steps"], 2, "not of the form KEY=VALUE"),
        (["run", "-m", "herding", "--ipc", "0"], 2, "images_per_class: input should be greater than or equal to 1"),
        (["run", "-m", "herding", "--ipc", "many"], 2, "--ipc"),
        (["run", "-m", "herding", "--ipc", "5000"], 2, "fewer than 5000. Ask for at most "),
        (["run", "-m", "herding", "--time-limit", "soon"], 2, "must be a time such as 90s"),
        (["run", "-m", "herding", "--device", "gpu"], 2, "no device called 'gpu'"),
        (["run", "-m", "herding", "--config", "nothing.toml"], 2, "there is no file nothing.toml"),
        (["run", "--experiment", "wang2018/mnist"], 2, "there is no experiment"),
        (["run", "-m", "herding", "-d", "folder:nowhere"], 2, "there is no folder nowhere"),
        (["run", "-m", "herding", "-d", "digit"], 2, "Did you mean 'digits'?"),
        (["run", "-m", "herding", "--plugin", "ddbench_trackers.tensorbord"], 4, "no plugin file and no module"),
        (["run", "-m", "unrolled_gd", "--set", "seed=5"], 2, "has no option 'seed'; the run has. Write --seed 5."),
        (["run", "-m", "unrolled_gd", "--set", "images_per_class=5"], 2, "Write --ipc 5."),
        (["run", "-m", "herding", "--sweep", "epochs=1,2"], 2, "is an option of herding and a field of the run. Sweep method.epochs"),
        (["run", "-m", "unrolled_gd", "--set", "inner_lr=1e9"], 2, "input should be less than or equal to 1000000"),
        (["run", "-m", "mine", "--plugin", "mine.py"], 4, "there is no plugin file mine.py"),
        (["evaluate", "nothing.safetensors"], 2, "there is no file nothing.safetensors"),
        (["resume", "nowhere"], 2, "not a run folder"),
        (["show", "unrolled"], 2, "Did you mean 'unrolled_gd'?"),
        (["list", "metods"], 2, "Did you mean 'methods'?"),
        (["leaderboard", "--leaderboards", "nowhere"], 2, "there is no folder nowhere"),
        (["rnu"], 2, "No such command 'rnu'"),
    ],
)  # fmt: skip
def test_wrong_input_is_told_in_a_sentence(ddbench, tmp_path: Path, arguments, code, told):
    done = ddbench(*arguments)
    assert told in done.message()
    assert done.code == code
    assert not (tmp_path / "leaderboards").exists()


def test_failures_as_json(ddbench):
    done = ddbench("run", "-m", "unroled_gd", "--json")
    document = done.json()
    assert (document["status"], document["exit_code"], done.code) == ("usage", 2, 2)
    assert "Did you mean" in document["reason"]


@pytest.mark.slow
def test_absent_data_names_files_and_the_offline_default(ddbench, tmp_path: Path):
    blocked = dict(
        http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9", DDBENCH_DATA=str(tmp_path / "data")
    )
    done = ddbench("run", "-m", "herding", "-d", "usps", **blocked)
    assert done.code == 3
    assert "Put usps.bz2, usps.t.bz2 into" in done.message()
    assert "--dataset digits" in done.message()


@pytest.mark.slow
def test_faulty_plugins_through_the_command_line(ddbench, tmp_path: Path):
    (tmp_path / "broken.py").write_text("import nothing_like_it")
    # What is asked for by name must be there; what is merely found is set aside.
    quick = ("run", "-m", "herding", "--network", "linear", "--smoke")
    asked = ddbench(*quick, "--plugin", "broken.py")
    assert asked.code == 4
    assert asked.message().count("ModuleNotFoundError: No module named 'nothing_like_it' (broken.py, line 1)") == 1
    found = ddbench(*quick, DDBENCH_PLUGINS="broken.py")
    assert found.code == 0
    assert found.message().count("Warning: plugin 'broken' (") == 1
    nan = LAST_IMAGES.replace("chosen.inputs[None]", "chosen.inputs[None] * float('nan')")
    (tmp_path / "nan.py").write_text(nan)
    done = ddbench("run", "--plugin", "nan.py", "-m", "some_images", "--network", "linear")
    assert done.code == 4
    assert "inputs with NaN or infinite values" in done.message()
    (tmp_path / "taken.py").write_text(LAST_IMAGES.replace("some_images", "herding"))
    done = ddbench("run", "--plugin", "taken.py", "-m", "herding")
    assert done.code == 4
    assert "registered by both ddbench" in done.message()
    hookless = LAST_IMAGES.split("@ddbench.hookimpl")[0]
    (tmp_path / "hookless.py").write_text(hookless)
    assert (
        "it has no hooks, so it offers nothing" in ddbench("show", "some_images", "--plugin", "hookless.py").message()
    )
    verbose = ddbench("-v", "run", "--plugin", "nan.py", "-m", "some_images", "--network", "linear")
    assert "Traceback" in verbose.err


def test_a_foreign_leaderboard_is_refused_before_the_work_and_kept(ddbench, tmp_path: Path):
    board = tmp_path / "leaderboards" / "classification.csv"
    board.parent.mkdir()
    board.write_text("method,accuracy\nmine,99.9\n")
    done = ddbench("run", "-m", "random_subset", "--network", "linear", "--eval-networks", 2)
    assert done.code == 1
    assert "its header is not ddbench's" in done.message()
    assert board.read_text() == "method,accuracy\nmine,99.9\n"
    assert not (tmp_path / "runs").exists()


def test_folders_that_cannot_be_written(ddbench, tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = ddbench("run", "-m", "random_subset", "--network", "linear", "--runs", "file/runs")
    assert done.code == 1
    assert "cannot write file/runs" in done.message()


def test_a_full_disk_stops_with_a_message_and_keeps_the_leaderboard(ddbench, tmp_path: Path):
    """A limit on the size of files stands in for the disk: the kernel refuses the write in the same place."""
    ddbench("run", "-m", "random_subset", "--network", "linear", "--eval-networks", 2)
    board = tmp_path / "leaderboards" / "classification.csv"
    before = board.read_bytes()

    command = ["run", "-m", "random_subset", "--network", "linear", "--eval-networks", 2, "--seed", 1]
    done = ddbench(*command, file_limit=len(before))
    assert done.code == 1
    assert "cannot write" in done.message()
    assert board.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_and_resume_goes_on(ddbench, tmp_path: Path):
    slow = ["run", "-m", "unrolled_gd", "--network", "linear", "--eval-networks", "2", "--set", "outer_steps=4000"]
    process = subprocess.Popen(
        [DDBENCH, *slow], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/log.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    [folder] = (tmp_path / "runs").iterdir()
    assert f"ddbench resume {folder.relative_to(tmp_path)}" in err
    steps = len((folder / "log.jsonl").read_text().splitlines())
    assert 0 < steps < 4000
    assert "has not ended" in ddbench("show", folder).err or "interrupted" in ddbench("show", folder).out
    # The rest would take a while: that it goes on from there, and not from the start, is what matters here.
    again = subprocess.Popen([DDBENCH, "resume", folder], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    seen = ""
    for line in again.stderr:
        seen += line
        if "Resumed at outer step" in line:
            break
    again.kill()
    again.wait()
    again.stderr.close()
    assert f"Resumed at outer step {steps} of 4000" in seen


LOOPING = '''
import ddbench
from ddbench import DistilledSet

@ddbench.method
def looping(task, run):
    """Random images after a while."""
    chosen = task.train.random_subset(task.budget.images_per_class, run.generator)
    for step in run.loop(4, {}):
        run.log(loss=step)
        if step == 2 and not (run.checkpoint_path.parent / "stopped").exists():
            (run.checkpoint_path.parent / "stopped").touch()
            raise KeyboardInterrupt
    return DistilledSet(chosen.inputs[None], chosen.labels[None])

@ddbench.hookimpl
def ddbench_methods():
    return [looping]
'''


@pytest.mark.slow
def test_resume_loads_the_plugin_again_and_notices_other_code(ddbench, tmp_path: Path):
    plugin = tmp_path / "looping.py"
    plugin.write_text(LOOPING)
    assert (
        ddbench("run", "-m", "looping", "--network", "linear", "--eval-networks", 2, "--plugin", "looping.py").code
        == 130
    )
    [folder] = (tmp_path / "runs").iterdir()
    shown = ddbench("show", folder).out
    assert shown.count("interrupted") == 1 and "Go on with: ddbench resume" in shown
    plugin.write_text(LOOPING.replace("loss=step", "loss=step + 1"))
    other = ddbench("resume", folder)
    assert other.code == 2
    assert "method 'looping' has changed since this run began: it was of" in other.message()
    plugin.write_text(LOOPING)
    # From elsewhere, too: the plugin is known by its whole path.
    (tmp_path / "elsewhere").mkdir()
    resumed = ddbench("resume", folder, cwd=tmp_path / "elsewhere")
    assert resumed.code == 0, resumed.err
    # One that has ended is told, whatever has become of its code.
    plugin.write_text(LOOPING.replace("loss=step", "loss=step + 1"))
    assert "This run has ended already" in ddbench("resume", folder).err
    plugin.unlink()
    (folder / "result.json").unlink()
    assert "there is no method 'looping'" in ddbench("resume", folder).message()


def test_a_failure_in_a_folder_with_a_damaged_result_is_one_document(ddbench, tmp_path: Path):
    folder = tmp_path / "runs" / "any"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("[]")
    failed = ddbench("resume", folder, "--json", "--plugin", "nothing.py")
    assert (failed.json()["exit_code"], "reason" in failed.json()) == (failed.code, True)
    assert "Traceback" not in failed.err


def test_a_failure_holds_the_record_in_the_current_version(ddbench, tmp_path: Path):
    folder = shutil.copytree(Path(__file__).parent / "golden" / "v2" / "finished", tmp_path / "finished")
    document = ddbench("resume", folder, "--json", "--plugin", "nothing.py").json()
    assert (document["version"], "spec" in document) == (3, False)


@pytest.mark.slow
def test_a_run_beside_a_broken_plugin_can_be_resumed(ddbench, tmp_path: Path):
    (tmp_path / "looping.py").write_text(LOOPING)
    (tmp_path / "broken.py").write_text("import nothing_like_it")
    (tmp_path / "ddbench.toml").write_text('plugins = ["broken.py"]')
    quick = ("run", "-m", "looping", "--network", "linear", "--eval-networks", 2, "--plugin", "looping.py")
    assert ddbench(*quick).code == 130
    [folder] = (tmp_path / "runs").iterdir()
    resumed = ddbench("resume", folder)
    assert resumed.code == 0, resumed.err
    assert "Warning: plugin 'broken'" in resumed.err


def test_commands_of_plugins(ddbench, tmp_path: Path):
    (tmp_path / "more.py").write_text(
        "import ddbench\n\n@ddbench.hookimpl\ndef ddbench_commands(app):\n"
        "    @app.command()\n    def hello(name: str = 'you'):\n        print(f'hello {name}')\n"
    )
    assert ddbench("hello", "--name", "me", DDBENCH_PLUGINS="more.py").out == "hello me\n"


def test_a_device_that_is_missing_is_not_data_to_fetch(ddbench):
    done = ddbench("run", "-m", "random_subset", "--device", "cuda:9", "--dry-run")
    assert done.code == 3 and "cuda:9" in done.message()
