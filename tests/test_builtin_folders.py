from pathlib import Path

import pytest
from PIL import Image

from ddbench.builtin.folders import _in_test_split
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, UsageError
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare


def draw(path: Path, shade: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = shade if mode == "L" else (shade, 0, 255 - shade)
    Image.new(mode, size, colour).save(path)


def load(catalog: Catalog, path: Path, **options: object):
    dataset = {"name": f"folder:{path}", "options": options}
    spec = RunSpec.parse({"method": "random_subset", "dataset": dataset, "network": "linear", "images_per_class": 2})
    return prepare(plan_run(spec, catalog), catalog)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for name, shade in (("dark", 40), ("light", 200)):
        for i in range(30):
            draw(tmp_path / "set" / name / f"{i}.png", shade + i)
    return tmp_path / "set"


def test_class_folders_are_split_by_file_name(catalog: Catalog, flat: Path):
    prepared = load(catalog, flat)
    assert prepared.train.info.classes == ("dark", "light")
    assert prepared.train.info.sample_shape == (1, 8, 8)
    everything = prepared.record.train + prepared.record.validation + prepared.record.test
    assert everything == 60
    assert 4 <= prepared.record.test <= 20
    assert prepared.record.name == f"folder:set@{prepared.record.content_hash[:8]}"
    tests = prepared.record.test
    draw(flat / "dark" / "new.png", 50)
    more = load(catalog, flat)
    assert more.record.test - tests in (0, 1)
    assert more.record.content_hash != prepared.record.content_hash


def test_train_and_test_folders_and_colour(catalog: Catalog, tmp_path: Path):
    for split, count in (("train", 10), ("val", 3)):
        for name in ("cat", "dog"):
            for i in range(count):
                draw(tmp_path / split / name / f"{i}.jpg", 10 * i, (12, 8), "RGB")
    prepared = load(catalog, tmp_path)
    assert prepared.train.info.sample_shape == (3, 8, 12)
    assert (prepared.record.train + prepared.record.validation, prepared.record.test) == (20, 6)
    assert load(catalog, tmp_path, size=4).train.info.sample_shape == (3, 4, 4)


def test_pixels_are_those_of_the_files(catalog: Catalog, flat: Path):
    prepared = load(catalog, flat)
    shades = {round(float(x)) for x in (prepared.train.info.pixels(prepared.train.inputs)[:, 0, 0, 0] * 255)}
    assert shades <= {*range(40, 70), *range(200, 230)}


def test_sizes_that_differ(catalog: Catalog, flat: Path):
    draw(flat / "dark" / "big.png", 9, (16, 16))
    with pytest.raises(UsageError, match="16x16 pixels") as error:
        load(catalog, flat)
    assert "--set dataset.size=32" in error.value.hint
    assert load(catalog, flat, size=8).train.info.sample_shape == (1, 8, 8)


def test_folders_that_hold_no_dataset(catalog: Catalog, tmp_path: Path, flat: Path):
    with pytest.raises(UsageError, match="names no folder"):
        catalog.get("dataset", "folder:")
    with pytest.raises(UsageError, match="there is no folder"):
        load(catalog, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="at least two class folders") as error:
        load(catalog, tmp_path / "empty")
    assert "PATH/train/CLASS" in error.value.hint
    (flat / "dark" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DdbenchError, match=r"broken\.png cannot be read as an image"):
        load(catalog, flat)


def test_class_folders_without_images_are_named(catalog: Catalog, tmp_path: Path, flat: Path):
    (flat / "empty").mkdir()
    with pytest.raises(UsageError, match=r"set/empty holds no images") as error:
        load(catalog, flat)
    assert ".png" in error.value.hint
    for split in ("train", "test"):
        for name in ("a", "b"):
            draw(tmp_path / "split" / split / name / "1.png", 10)
    draw(tmp_path / "split" / "test" / "c" / "1.png", 10)
    with pytest.raises(UsageError, match=r"classes without training images: \['c'\]") as error:
        load(catalog, tmp_path / "split")
    assert "split/train" in error.value.hint
    (tmp_path / "split" / "train" / "c").mkdir()
    with pytest.raises(UsageError, match=r"split/train/c holds no images"):
        load(catalog, tmp_path / "split")


def test_a_class_that_is_all_held_out_is_named(catalog: Catalog, flat: Path):
    (flat / "few").mkdir()
    name = next(f"{i}.png" for i in range(100) if _in_test_split(flat / "few" / f"{i}.png"))
    draw(flat / "few" / name, 9)
    with pytest.raises(UsageError, match=r"every image of .*set/few falls into the fifth"):
        load(catalog, flat)


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("train", "valid")])
def test_split_folders_by_their_usual_names(catalog: Catalog, tmp_path: Path, train: str, test: str):
    for split, count in ((train, 10), (test, 3)):
        for name in ("a", "b"):
            for i in range(count):
                draw(tmp_path / split / name / f"{i}.png", 10 * i)
    prepared = load(catalog, tmp_path)
    assert prepared.train.info.classes == ("a", "b")
    assert prepared.record.test == 6


def test_one_colour_image_makes_the_set_colour_and_sixteen_bits_are_scaled(catalog: Catalog, flat: Path):
    draw(flat / "light" / "colour.png", 9, mode="RGB")
    Image.new("I;16", (8, 8), 128 * 257).save(flat / "dark" / "deep.png")
    prepared = load(catalog, flat)
    assert prepared.train.info.sample_shape == (3, 8, 8)
    parts = (prepared.train, prepared.setting.validation, prepared.setting.test)
    shades = {round(float(x)) for part in parts for x in (part.info.pixels(part.inputs)[:, 0, 0, 0] * 255)}
    assert 128 in shades
    assert 255 not in shades
