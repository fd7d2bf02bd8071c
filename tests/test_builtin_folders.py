from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddbench.builtin.folders import _in_test_split
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, UsageError
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare
from tests.refusals import refusal


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


WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def palette(transparent: int | None) -> Image.Image:
    """A palette picture, red left and blue right."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (4, 0, 8, 8))
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def halves(mode: str, left: object, right: object) -> Image.Image:
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def deep(left: int, right: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.array([[left] * 4 + [right] * 4], np.uint16), 8, axis=0))


@pytest.mark.parametrize(
    ("image", "suffix", "left", "right", "said"),
    [
        (palette(None), "png", RED, BLUE, ""),
        (palette(1), "png", RED, WHITE, "60 with transparent pixels laid on white"),
        (palette(0), "gif", WHITE, BLUE, "60 with transparent pixels laid on white"),
        (halves("RGBA", (*RED, 255), (0, 0, 0, 0)), "png", RED, WHITE, "60 with transparent pixels laid on white"),
        (halves("RGBA", (*RED, 255), (*BLUE, 255)), "png", RED, BLUE, ""),
        (halves("LA", (7, 255), (9, 0)), "png", (7,), (255,), "60 with transparent pixels laid on white"),
        (halves("L", 7, 9), "png", (7,), (9,), ""),
        (halves("1", 0, 1), "png", (0,), (255,), ""),
        (deep(257 * 5, 65535), "png", (5,), (255,), "60 of 16 bits scaled to 8"),
        (deep(257 * 5, 65535), "tif", (5,), (255,), "60 of 16 bits scaled to 8"),
        (halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "tif", RED, BLUE, ""),
    ],
)  # fmt: skip
def test_pictures_of_every_kind(
    catalog: Catalog, tmp_path: Path, image: Image.Image, suffix: str, left: tuple, right: tuple, said: str
):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(30):
            options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
            image.save(tmp_path / "set" / name / f"{i}.{suffix}", **options)
    splits = catalog.get("dataset", f"folder:{tmp_path}/set").call({}, tmp_path, False)
    assert tuple(splits.train_images.shape[1:]) == (len(left), 8, 8)
    for pixels in (splits.train_images[0], splits.test_images[-1]):
        assert (tuple(pixels[:, 3, 0].tolist()), tuple(pixels[:, 3, 7].tolist())) == (left, right)
    assert splits.notices == ((said,) if said else ())


@pytest.mark.parametrize(("orientation", "shape"), [(1, (3, 8, 12)), (3, (3, 8, 12)), (6, (3, 12, 8)), (8, (3, 12, 8))])
def test_photographs_are_turned_upright(catalog: Catalog, tmp_path: Path, orientation: int, shape: tuple):
    """The left half of the stored pixels is red: upside down it is the right one, turned clockwise the upper one."""
    image = Image.new("RGB", (12, 8), BLUE)
    image.paste(RED, (0, 0, 6, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(20):
            image.save(tmp_path / "set" / name / f"{i}.png", exif=exif)
    component = catalog.get("dataset", f"folder:{tmp_path}/set")
    splits = component.call({}, tmp_path, False)
    assert component.facts["sample_shape"] == tuple(splits.train_images.shape[1:]) == shape
    corner = {1: (0, 0), 3: (7, 11), 6: (0, 0), 8: (11, 0)}[orientation]
    assert tuple(splits.train_images[0][:, *corner].tolist()) == RED
    assert any("upright" in notice for notice in splits.notices) == (orientation != 1)


def test_a_run_says_what_it_changed(ddbench: Callable, tmp_path: Path):
    for name, count in (("few", 8), ("many", 40)):
        for i in range(count):
            draw(tmp_path / "set" / name / f"{i}.png", 6 * i)
    halves("RGBA", (*RED, 255), (0, 0, 0, 0)).save(tmp_path / "set" / "few" / "0.png")
    done = ddbench("run", "-m", "random_subset", "-d", "folder:set", "--ipc", 2, "--network", "linear", "--protocol", "knn/v1")  # fmt: skip
    assert (done.code, done.message().count("Images 1 with transparent pixels laid on white")) == (0, 1)
    too_many = ddbench("run", "-m", "random_subset", "-d", "folder:set", "--ipc", 20, "--network", "linear")
    assert too_many.code == 2
    assert "class 'few' of folder:set" in too_many.message()


def cut(suffix: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path.with_suffix(suffix))
        path.with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes()[:2000])

    return write


def other_format(kind: str) -> Callable[[Path], None]:
    """PIL reads more formats, and starts Ghostscript for EPS."""

    def write(path: Path) -> None:
        Image.new("RGB", (8, 8)).save(path, format=kind)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        *((cut(suffix), f"z{suffix} cannot be read as an image") for suffix in (".png", ".jpg", ".gif", ".bmp", ".webp", ".tif", ".ppm")),
        (lambda path: path.write_bytes(b""), "z.png cannot be read as an image"),
        (other_format("EPS"), "z.png cannot be read as an image"),
        (other_format("PCX"), "z.png cannot be read as an image"),
        (lambda path: Image.new("1", (20_000, 20_000)).save(path), "z.png cannot be read as an image"),
        (lambda path: Image.new("F", (8, 8), 0.5).save(path.with_suffix(".tif")), "z.tif has pixels of more than 16 bits"),
        (lambda path: Image.new("I", (8, 8), 65536).save(path.with_suffix(".tif")), "z.tif has pixels of more than 16 bits"),
    ],
)  # fmt: skip
def test_pictures_that_cannot_be_read_are_named(flat: Path, write: Callable[[Path], None], message: str):
    write(flat / "dark" / "z.png")
    code, text = refusal(f"folder:{flat}", where=flat.parent)
    assert code == 1
    assert message in text


def test_splits_that_differ_in_size(catalog: Catalog, tmp_path: Path):
    for name in ("a", "b"):
        for i in range(3):
            draw(tmp_path / "train" / name / f"{i}.png", 9)
            draw(tmp_path / "test" / name / f"{i}.png", 9, (16, 16))
    with pytest.raises(UsageError, match="16x16 pixels, others are 8x8"):
        load(catalog, tmp_path)
