from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ddbench.builtin.labels import in_test_split
from ddbench.discovery.catalog import Catalog
from tests.refusals import refusal

NAMES = ("rose", "tulip")


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Real digits of two classes: paths relative to `tmp_path`, 82 in all."""
    loaded, paths = load_digits(), []
    for i in np.flatnonzero(loaded.target[:400] < 2):
        path = tmp_path / "images" / NAMES[loaded.target[i]] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((loaded.images[i] * 15).astype(np.uint8)).save(path)
        paths.append(str(path.relative_to(tmp_path)))
    return sorted(paths)


def kind(path: str) -> str:
    return path.split("/")[1]


def write(where: Path, lines: list[str], header: str = "path,label") -> Path:
    (where / "set.csv").write_text("\n".join([header, *lines]) + "\n")
    return where / "set.csv"


def splits_of(catalog: Catalog, file: Path, **options: str):
    component = catalog.get("dataset", f"csv:{file}", options=options)
    return component, component.call(component.validated(options), file.parent, False)


def test_a_fixed_fifth_is_held_out_by_the_hash_of_the_path(catalog: Catalog, tmp_path: Path, pictures: list[str]):
    component, splits = splits_of(catalog, write(tmp_path, [f"{path},{kind(path)}" for path in pictures]))
    assert component.facts["classes"] == NAMES
    assert component.facts["sample_shape"] == (1, 8, 8)
    assert component.facts["label"] == "csv:set.csv"
    for images, labels, held_out in (
        (splits.train_images, splits.train_labels, False),
        (splits.test_images, splits.test_labels, True),
    ):
        expected = [path for path in pictures if in_test_split(path) is held_out]
        assert [NAMES[label] for label in labels] == [kind(path) for path in expected]
        stored = np.stack([np.asarray(Image.open(tmp_path / path)) for path in expected])
        assert np.array_equal(images[:, 0].numpy(), stored)


def test_a_table_and_its_folders_are_the_same_data(catalog: Catalog, tmp_path: Path, pictures: list[str]):
    for split, part in (("train", pictures[::2]), ("test", pictures[1::2])):
        for path in part:
            copy = tmp_path / "set" / split / kind(path) / Path(path).name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((tmp_path / path).read_bytes())
    lines = [f"{path},{kind(path)},{('train', 'test')[i % 2]}" for i, path in enumerate(pictures)]
    _, table = splits_of(catalog, write(tmp_path, lines, "path,label,split"))
    folder = catalog.get("dataset", f"folder:{tmp_path}/set").call({}, tmp_path, False)
    assert table.content_hash() == folder.content_hash()


@pytest.mark.parametrize("header", ["Filename, Class", "image,target", "file,label", "\ufeffpath,label"])
def test_columns_by_their_usual_names(catalog: Catalog, tmp_path: Path, pictures: list[str], header: str):
    component, _ = splits_of(catalog, write(tmp_path, [f'"{path}", {kind(path)} ' for path in pictures], header))
    assert component.facts["classes"] == NAMES


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(("10", "9"), ("9", "10")), (("01", "00"), ("00", "01")), (("1.0", "2.0"), ("1", "2")), (("NA", "none"), ("NA", "none"))],
)  # fmt: skip
def test_names_of_classes(catalog: Catalog, tmp_path: Path, pictures: list[str], labels: tuple, classes: tuple):
    lines = [f"{path},{labels[NAMES.index(kind(path))]}" for path in pictures]
    assert splits_of(catalog, write(tmp_path, lines))[0].facts["classes"] == classes


def test_validation_rows_test_only_where_no_others_do(catalog: Catalog, tmp_path: Path, pictures: list[str]):
    def of(splits: tuple[str, ...]):
        lines = [f"{path},{kind(path)},{splits[i % len(splits)]}" for i, path in enumerate(pictures)]
        loaded = splits_of(catalog, write(tmp_path, lines, "path,label,split"))[1]
        return len(loaded.train_images), len(loaded.test_images), loaded.notices

    count = len(pictures)
    assert of(("train", "Valid")) == (-(-count // 2), count // 2, ())
    train, test, notices = of(("training", "test", "val", "val"))
    assert train + test + 2 * (count // 4) == count
    assert notices == (f"{2 * (count // 4)} of the validation split are not used",)


def test_options_name_the_columns_in_every_command(ddbench: Callable, tmp_path: Path, pictures: list[str]):
    file = write(tmp_path, [f"{path},{kind(path)},x" for path in pictures], "where,kind,label")
    named = ("--set", "dataset.path_column=where", "--set", "dataset.label_column=kind")
    usual = ("--network", "linear", "--protocol", "knn/v1")
    run = ddbench("run", "-m", "random_subset", "-d", f"csv:{file}", "--ipc", 1, *named, *usual, "--json")
    assert run.code == 0, run.err
    record = run.json()
    assert record["settings"]["dataset"]["options"]["label_column"] == "kind"
    again = ddbench("evaluate", record["run_dir"], "--json")
    assert again.json()["scores"] == record["scores"]
    for path in (pictures[0], pictures[-1]):
        copy = tmp_path / "released" / path.removeprefix("images/")
        copy.parent.mkdir(parents=True)
        copy.write_bytes((tmp_path / path).read_bytes())
    assert ddbench("evaluate", "released", "-d", f"csv:{file}", *named, *usual).code == 0
    dry = ddbench("run", "-m", "random_subset", "-d", f"csv:{file}", *named, "--set", "network.width=8", "--dry-run")
    assert (dry.code, "convnet(width=8" in dry.out) == (0, True)
    # The classes are those of the column, and a column of one value has one.
    assert (
        "one class only: x"
        in ddbench("show", f"csv:{file}").message()
        + ddbench("run", "-m", "random_subset", "-d", f"csv:{file}", *named[:3], "dataset.label_column=label").message()
    )


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        (lambda rows: [*rows, "../other.png,rose"], "../other.png in {csv} leads out of the folder", 2),
        (lambda rows: [*rows, "images/../../x/other.png,rose"], "leads out of the folder", 2),
        (lambda rows: [*rows, "/etc/passwd,rose"], "/etc/passwd in {csv} leads out of the folder", 2),
        (lambda rows: [*rows, "images/none.png,rose"], "{csv} lists images/none.png, which does not exist", 2),
        (lambda rows: [*rows, "images,rose"], "lists images, which does not exist", 2),
        (lambda rows: [*rows, ",rose"], "row 83 of {csv} has no image path", 2),
        (lambda rows: [*rows, f"./{rows[0]}"], "twice, in rows 1 and 83", 2),
        (lambda rows: [*rows, "text.png,rose"], "text.png cannot be read as an image", 1),
        (lambda rows: [rows[0].split(",")[0] + ",", *rows[1:]], "images/rose/000.png in {csv} has no label", 2),
        (lambda rows: [rows[0].split(",")[0], *rows[1:]], "images/rose/000.png in {csv} has no label", 2),
        (lambda rows: [rows[0].split(",")[0] + ",  ", *rows[1:]], "has no label", 2),
        (lambda rows: [rows[0].split(",")[0] + ",NaN", *rows[1:]], "has no label but NaN", 2),
        (lambda rows: [rows[0].split(",")[0] + ",0", *rows[1:]], "partly numbers and partly names: '0' beside 'rose'", 2),
        (lambda rows: [rows[0].split(",")[0] + ",0.5", *rows[1:]], "has the label 0.5, which is not a whole number", 2),
        (lambda rows: [rows[0] + ",more", *rows[1:]], "{csv} cannot be read as a CSV file: a row is longer than the header", 2),
        (lambda rows: [row for row in rows if "rose" in row], "has one class only: rose", 2),
        (lambda rows: [], "has no training examples", 2),
    ],
)  # fmt: skip
def test_rows_that_are_no_examples(
    tmp_path: Path, pictures: list[str], change: Callable[[list[str]], list[str]], message: str, code: int
):
    assert len(pictures) == 82
    (tmp_path / "text.png").write_text("no image")
    file = write(tmp_path, change([f"{path},{kind(path)}" for path in pictures]))
    exit_code, text = refusal(f"csv:{file}", where=tmp_path)
    assert message.format(csv=file) in text
    assert exit_code == code


@pytest.mark.parametrize(
    ("header", "extra", "message"),
    [
        ("where,label", "", "has no column of image paths called path, file, filename or image"),
        ("path,kind", "", "name one: --set dataset.label_column=NAME"),
        ("path,label,class", ",a", "has several columns of labels: label, class"),
        ("path,label,split", ",", "has no split"),
        ("path,label,split", ",holdout", "has the split 'holdout'. Write train or test"),
        ("path,label,split", ",test", "has no training examples"),
        ("path,label,split", ",train", "has no test examples"),
    ],
)
def test_headers_and_splits_that_are_not_known(
    tmp_path: Path, pictures: list[str], header: str, extra: str, message: str
):
    file = write(tmp_path, [f"{path},{kind(path)}{extra}" for path in pictures], header)
    code, text = refusal(f"csv:{file}", where=tmp_path)
    assert code == 2
    assert message in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "cannot be read as a CSV file"),
        (b"path;label\na.png;1\n", "has no column of image paths called path, file, filename or image. Its columns are path;label"),
        (b"path,label\n\xff\xfe,1\n", "cannot be read as a CSV file"),
        (b'path,label\n"a.png,1\n', "cannot be read as a CSV file"),
    ],
)  # fmt: skip
def test_files_that_are_no_tables(tmp_path: Path, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / "set.csv").write_bytes(content)
    code, text = refusal(f"csv:{tmp_path}/set.csv", where=tmp_path)
    assert (code, message in text) == (2, True)


def test_a_class_that_is_all_held_out_and_a_column_that_is_not_there(tmp_path: Path, pictures: list[str]):
    held_out = next(path for path in pictures if in_test_split(path))
    lines = [f"{path},{'lily' if path == held_out else kind(path)}" for path in pictures]
    file = write(tmp_path, lines)
    assert "has no training examples of class 'lily'" in refusal(f"csv:{file}", where=tmp_path)[1]
    code, text = refusal(f"csv:{file}", "--set", "dataset.label_column=7", where=tmp_path)
    assert (code, "has no column '7'. Its columns are path, label" in text) == (2, True)


@pytest.mark.parametrize("kind", ["csv", "npz", "hf"])
def test_a_kind_without_a_path(tmp_path: Path, kind: str):
    code, text = refusal(f"{kind}:", where=tmp_path)
    assert (code, f"--dataset {kind}:PATH" in text) == (2, True)


def test_a_refusal_starts_nothing(ddbench: Callable, tmp_path: Path):
    done = ddbench("run", "-m", "random_subset", "-d", "csv:nowhere.csv")
    assert done.code == 2
    assert "there is no file nowhere.csv. Give the path of a CSV file: --dataset csv:PATH" in done.message()
    assert list(tmp_path.iterdir()) == []
