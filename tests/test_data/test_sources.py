from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from penjing.data import ArraySplit, DataBundle, Split, glyphs, open_data
from penjing.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def drawn() -> dict[str, ArraySplit]:
    bundle = glyphs(per_class=(6, 2, 3), num_classes=4)
    splits = {"train": bundle.train, "val": bundle.val, "test": bundle.test}
    return {name: split for name, split in splits.items() if isinstance(split, ArraySplit)}


def encode(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, drawn: dict[str, ArraySplit]) -> Path:
    for name, split in drawn.items():
        for i, (image, label) in enumerate(split):
            place = root / name / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:04}.png").write_bytes(encode(image))
    return root


def write_parquet(path: Path, split: Split, metadata: dict[str, str] | None = None) -> Path:
    rows = [{"bytes": encode(image), "path": f"{i}.png"} for i, (image, _) in enumerate(split)]
    table = pa.table({"image": rows, "label": pa.array(split.labels)})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def content(split: Any) -> list[tuple[int, bytes]]:
    assert isinstance(split, Split)
    return sorted((label, image.tobytes()) for image, label in split)


def write_all(tmp_path: Path, drawn: dict[str, ArraySplit]) -> dict[str, DataBundle]:
    for name, split in drawn.items():
        write_parquet(tmp_path / f"{name}.parquet", split, {"classes": json.dumps(list("abcd"))})
    arrays: dict[str, Any] = {
        f"{axis}_{name}": (s.images if axis == "x" else s.labels)
        for name, s in drawn.items()
        for axis in "xy"
    }
    np.savez(tmp_path / "all.npz", **arrays)
    write_folder(tmp_path / "folder", drawn)
    return {
        "folder": open_data(tmp_path / "folder"),
        "parquet folder": open_data(tmp_path),
        "parquet files": open_data(
            tmp_path / "train.parquet", val=tmp_path / "val.parquet", test=tmp_path / "test.parquet"
        ),
        "npz": open_data(tmp_path / "all.npz"),
    }


def test_every_source_gives_the_same_data(tmp_path: Path, drawn: dict[str, ArraySplit]) -> None:
    bundles = write_all(tmp_path, drawn)
    for name, bundle in bundles.items():
        for part, split in drawn.items():
            assert content(getattr(bundle, part)) == content(split), (name, part)
        assert bundle.image_shape == (1, 32, 32)
        assert bundle.num_classes == 4
        assert bundle.mean == bundles["npz"].mean
        json.dumps(bundle.to_dict())
    assert bundles["parquet files"].classes == ("a", "b", "c", "d")
    assert bundles["folder"].classes == ("class0", "class1", "class2", "class3")


def test_validation_is_split_from_train_by_seed_and_never_from_test(
    tmp_path: Path, drawn: dict[str, ArraySplit]
) -> None:
    np.savez(
        tmp_path / "no_val.npz",
        x_train=drawn["train"].images,
        y_train=drawn["train"].labels,
        x_test=drawn["test"].images,
        y_test=drawn["test"].labels,
    )
    bundle = open_data(tmp_path / "no_val.npz", val_fraction=0.3, seed=1)
    assert sorted(content(bundle.train) + content(bundle.val)) == content(drawn["train"])
    assert content(bundle.test) == content(drawn["test"])
    assert content(bundle.val) == content(open_data(tmp_path / "no_val.npz", val_fraction=0.3, seed=1).val)
    assert content(bundle.val) != content(open_data(tmp_path / "no_val.npz", val_fraction=0.3, seed=2).val)


def test_a_flat_folder_of_classes_is_training_data(tmp_path: Path, drawn: dict[str, ArraySplit]) -> None:
    root = write_folder(tmp_path, {"train": drawn["train"]}) / "train"
    bundle = open_data(root)
    assert bundle.test is None
    assert sorted(content(bundle.train) + content(bundle.val)) == content(drawn["train"])


def test_images_of_several_sizes_need_image_size(tmp_path: Path, drawn: dict[str, ArraySplit]) -> None:
    root = write_folder(tmp_path, drawn)
    odd = root / "train" / "class1" / "odd.png"
    Image.new("RGB", (20, 10)).save(odd)
    with pytest.raises(DataError, match=r"odd\.png.*10×20 pixels and the first 32×32.*image_size"):
        content(open_data(root, mean=(0.5,), std=(0.5,)).train)
    split = open_data(root, image_size=16).train
    assert isinstance(split, Split)
    assert split.image_shape == (16, 16, 1)
    assert split.load().images.shape == (25, 16, 16, 1)


def test_the_middle_is_cut_out_where_asked(tmp_path: Path, drawn: dict[str, ArraySplit]) -> None:
    root = write_folder(tmp_path, drawn)
    file = root / "train" / "class1" / "odd.png"
    Image.new("RGB", (50, 10)).save(file)
    split = open_data(root, image_size=8, crop_fraction=0.875, interpolation="bicubic").train
    assert isinstance(split, Split)
    stretched = open_data(root, image_size=8).train
    assert isinstance(stretched, Split)
    assert split.image_shape == stretched.image_shape == (8, 8, 1)
    assert not np.array_equal(split.load().images, stretched.load().images)
    with pytest.raises(DataError, match=r"crop_fraction is 0\.9 and no size is given\. Give image_size"):
        open_data(root, crop_fraction=0.9)


def test_hugging_face_class_names_are_read(tmp_path: Path, drawn: dict[str, ArraySplit]) -> None:
    info = {
        "info": {"features": {"label": {"names": ["one", "two", "three", "four"], "_type": "ClassLabel"}}}
    }
    file = write_parquet(tmp_path / "hf.parquet", drawn["train"], {"huggingface": json.dumps(info)})
    assert open_data(file).classes == ("one", "two", "three", "four")
    for nameless in ('{"info": null}', '{"info": {"features": {"label": [{"names": ["one"]}]}}}'):
        assert open_data(write_parquet(file, drawn["train"], {"huggingface": nameless})).num_classes == 4


def test_npz_floats_and_channels_first_are_understood(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "f.npz", x=(images / 255).astype(np.float32), y=np.arange(6) % 2)
    bundle = open_data(tmp_path / "f.npz", val_fraction=0.34)
    assert bundle.image_shape == (3, 8, 8)
    both = content(bundle.train) + content(bundle.val)
    assert sorted(raw for _, raw in both) == sorted(image.tobytes() for image in images.transpose(0, 2, 3, 1))


# --- the user's own loaders

FACTORY = """
import torch
from penjing.data import glyphs
def loaders(n=3):
    batches = [(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))] * n
    return batches, batches[:1]
def as_dict():
    return {"train": loaders()[0], "val": loaders()[1], "classes": ["a", "b"]}
def bundle(): return glyphs(per_class=(2, 1, 1), num_classes=2)
def once(): return iter(loaders()[0]), loaders()[1]
def nothing(): return loaders()[0], None
def several():
    x = [torch.zeros(3, 1, 4, 4), torch.zeros(3, 6)]
    return [(tuple(x), torch.zeros(3))], [({"image": x}, torch.zeros(3))]
"""


def test_loaders_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FACTORY)
    bundle = open_data(f"{file}:loaders", n=5)
    assert len(list(bundle.loader("train", 99))) == 5
    assert bundle.image_shape == (1, 4, 4)
    assert open_data(f"{file}:as_dict").classes == ("a", "b")
    assert open_data(f"{file}:bundle").num_classes == 2
    assert open_data(f"{file}:several").image_shape == (1, 4, 4)  # of the first input
    with pytest.raises(DataError, match="list_iterator, which cannot be iterated again"):
        open_data(f"{file}:once")
    with pytest.raises(DataError, match="no val loader"):
        open_data(f"{file}:nothing")
    with pytest.raises(DataError, match=r"no function 'loader'.*loaders"):
        open_data(f"{file}:loader")
    with pytest.raises(DataError, match="no such file"):
        open_data(f"{tmp_path / 'other.py'}:loaders")


# --- what is wrong is said


def empty_folder(root: Path) -> Path:
    (root / "train" / "a").mkdir(parents=True)
    return root


def image_outside_the_classes(root: Path) -> Path:
    (root / "cat").mkdir()
    Image.new("L", (4, 4)).save(root / "loose.png")
    return root


def labels_for_validation_alone(root: Path) -> Path:
    for folder in ("train", "val/cat"):
        (root / folder).mkdir(parents=True)
        Image.new("L", (4, 4)).save(root / folder / "a.png")
    return root


def corrupt_image(root: Path) -> Path:
    (root / "a").mkdir()
    (root / "a" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    return root


def truncated_image(root: Path) -> Path:
    (root / "a").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 1), dtype=np.uint8)
    (root / "a" / "short.png").write_bytes(encode(noise)[:300])
    return root


def pickled_npz(root: Path) -> Path:
    np.savez(root / "p.npz", x=np.array([{"a": 1}], dtype=object), y=np.array([0]))
    return root / "p.npz"


def broken_npz(root: Path) -> Path:
    (root / "b.npz").write_bytes(b"PK\x03\x04 not a zip")
    return root / "b.npz"


def damaged_npz(root: Path) -> Path:
    """One whose compressed bytes were overwritten: zlib notices."""
    np.savez_compressed(root / "d.npz", x=np.random.default_rng(0).integers(0, 9, 4000), y=np.zeros(4, int))
    held = bytearray((root / "d.npz").read_bytes())
    held[100:800] = b"\xff" * 700
    (root / "d.npz").write_bytes(held)
    return root / "d.npz"


def npy_as_npz(root: Path) -> Path:
    with open(root / "a.npz", "wb") as file:
        np.save(file, IMAGES)
    return root / "a.npz"


def npz_with(**arrays: NDArray[Any]) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        np.savez(root / "w.npz", **arrays)  # type: ignore[arg-type]
        return root / "w.npz"

    return write


def broken_parquet(root: Path) -> Path:
    (root / "b.parquet").write_bytes(b"PAR1 nonsense")
    return root / "b.parquet"


def parquet_with(**columns: Any) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        pq.write_table(pa.table(columns), root / "w.parquet")
        return root / "w.parquet"

    return write


IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
PIXELS = [{"bytes": encode(IMAGES[0]), "path": ""}] * 4
NO_BYTES = [{"bytes": None, "path": "a"}] * 4
PIXELS_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAN = np.full((4, 8, 8, 1), np.nan, np.float32)


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda root: root / "missing", "no such file"),
        (lambda root: root, "neither images nor class folders"),
        (image_outside_the_classes, r"loose\.png, have no class folder"),
        (
            labels_for_validation_alone,
            r"'cat' is not among the training classes \(the training images have no",
        ),
        (empty_folder, "not one sample"),
        (corrupt_image, r"bad\.png: the image cannot be decoded"),
        (truncated_image, r"short\.png: the image cannot be decoded"),
        (pickled_npz, "pickle"),
        (broken_npz, "cannot be read"),
        (damaged_npz, "cannot be read"),
        (npy_as_npz, "cannot be read"),
        (npz_with(x=IMAGES, y=np.array(list("abab"))), "labels are <U1"),
        (npz_with(x=IMAGES, y=np.full(4, np.nan)), "labels are float64"),
        (npz_with(x=IMAGES, y=np.array([0, 0, 1, 1 << 40])), "would make as many classes"),
        (npz_with(x=IMAGES[:, :0], y=np.zeros(4, int)), r"of shape \(4, 0, 8, 1\)"),
        (npz_with(x=IMAGES[:0], y=np.zeros(0, int)), "not one sample"),
        (npz_with(x=NAN, y=np.zeros(4, int)), "NaN"),
        (npz_with(x=IMAGES + 7.0, y=np.zeros(4, int)), "span 7…7"),
        (npz_with(x=IMAGES, y=np.zeros((4, 3))), "labels are float64"),
        (npz_with(x=IMAGES, y=np.array([0, 1, -1, 0])), "outside"),
        (npz_with(x=IMAGES, y=np.arange(4)), "no class has two samples"),
        (npz_with(a=IMAGES), "it holds a"),
        (npz_with(x=IMAGES, targets=np.zeros(4, int)), "it holds x, targets"),
        (broken_parquet, "cannot be read as Parquet"),
        (parquet_with(image=PIXELS, target=[0, 1, 1, 0]), "its columns are image, target"),
        (parquet_with(image=PIXELS, label=[0, 1, None, 0]), "1 of them missing"),
        (parquet_with(image=["a"] * 4, label=[0, 1, 1, 0]), "the image column is string"),
        (parquet_with(image=[{"path": "a"}] * 4, label=[0] * 4), "the image column is struct<path"),
        (parquet_with(image=PIXELS, label=[0, 1, 1, 1 << 40]), "would make as many classes"),
        (
            parquet_with(image=pa.array(NO_BYTES, PIXELS_TYPE), label=[0] * 4),
            "row 0: the image has no bytes",
        ),
    ],
)
def test_bad_data_is_an_error_that_says_what(
    tmp_path: Path, write: Callable[[Path], Path], match: str
) -> None:
    with pytest.raises(DataError, match=match):
        open_data(write(tmp_path))


def bare_folder(root: Path) -> Path:
    (root / "photos").mkdir()
    for index in range(20):
        (root / "photos" / f"{index:02}.png").write_bytes(encode(np.full((8, 8, 1), index, np.uint8)))
    return root / "photos"


def bare_parquet(root: Path) -> Path:
    pixels = [encode(np.full((8, 8, 1), index, np.uint8)) for index in range(20)]
    pq.write_table(pa.table({"image": pixels}), root / "photos.parquet")
    return root / "photos.parquet"


def bare_npz(root: Path) -> Path:
    images = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    np.savez(root / "photos.npz", x=images)
    return root / "photos.npz"


@pytest.mark.parametrize("write", [bare_folder, bare_parquet, bare_npz])
def test_images_without_labels_are_batches_of_images_alone(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    bundle = open_data(write(tmp_path), val_fraction=0.25)
    assert bundle.classes == ()
    assert isinstance(bundle.train, Split)
    assert isinstance(bundle.val, Split)
    assert not bundle.train.is_labelled
    assert (len(bundle.train), len(bundle.val)) == (15, 5)
    seen = []
    for which in ("train", "val"):
        for batch in bundle.loader(which, 4):
            assert isinstance(batch, torch.Tensor)
            pixels = batch * torch.tensor(bundle.std[0]) + bundle.mean[0]
            seen += (pixels[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(seen) == list(range(20))


def test_shards_may_differ_in_types_but_not_in_columns(tmp_path: Path) -> None:
    rows = [encode(IMAGES[0])] * 2
    pq.write_table(pa.table({"image": PIXELS[:2], "label": pa.array([0, 1])}), tmp_path / "train-0.parquet")
    other = tmp_path / "train-1.parquet"
    pq.write_table(pa.table({"image": rows, "label": pa.array([1, 0], pa.int32())}), other)
    bundle = open_data(tmp_path)
    assert sorted(label for label, _ in content(bundle.train) + content(bundle.val)) == [0, 0, 1, 1]
    pq.write_table(pa.table({"image": [b"", *rows], "label": [0, 0, 0]}), other)
    with pytest.raises(DataError, match=r"at \S+train-1\.parquet row 0: the image cannot be decoded"):
        open_data(tmp_path)
    pq.write_table(pa.table({"image": rows}), other)
    with pytest.raises(DataError, match=r"at \S+train-1\.parquet: it has no column 'label'"):
        open_data(tmp_path)


def test_a_gray_image_first_in_a_parquet_test_set_takes_the_channels_of_training(tmp_path: Path) -> None:
    color = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(color, "PNG")
    for part, images in (("train", [color.getvalue()] * 4), ("test", [encode(IMAGES[0])])):
        labels = [i % 2 for i in range(len(images))]
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{part}.parquet")
    test = open_data(tmp_path).test
    assert isinstance(test, Split)
    assert test.image_shape == (8, 8, 3)


def test_parquet_files_that_name_classes_differently_are_an_error_unless_names_are_given(
    tmp_path: Path, drawn: dict[str, ArraySplit]
) -> None:
    write_parquet(tmp_path / "train.parquet", drawn["train"], {"classes": "a,b,c,d"})
    write_parquet(tmp_path / "test.parquet", drawn["test"], {"classes": "b,a,c,d"})
    with pytest.raises(DataError, match="name their classes differently"):
        open_data(tmp_path)
    assert open_data(tmp_path, classes=list("wxyz")).classes == ("w", "x", "y", "z")


def test_a_parquet_file_serves_one_part(tmp_path: Path, drawn: dict[str, ArraySplit]) -> None:
    write_parquet(tmp_path / "trainval.parquet", drawn["train"])
    with pytest.raises(DataError, match=r"trainval\.parquet: it is named both"):
        open_data(tmp_path)


def test_folders_of_parts_are_known_in_any_case_and_test_images_have_their_size(
    tmp_path: Path, drawn: dict[str, ArraySplit]
) -> None:
    root = write_folder(tmp_path, {"Train": drawn["train"], "Test": drawn["test"]})
    assert content(open_data(root).test) == content(drawn["test"])
    for file in (root / "Test").rglob("*.png"):
        Image.new("L", (9, 9)).save(file)
    with pytest.raises(DataError, match="test images are"):
        open_data(root)


def test_hidden_files_are_no_images_and_a_class_without_images_is_an_error(
    tmp_path: Path, drawn: dict[str, ArraySplit]
) -> None:
    root = write_folder(tmp_path, {"train": drawn["train"]}) / "train"
    (root / "class0" / "._0000.png").write_bytes(b"\0\5\x16\7")
    copies = root / "class0" / ".ipynb_checkpoints"
    copies.mkdir()
    Image.new("L", (32, 32)).save(copies / "0-checkpoint.png")
    bundle = open_data(root)
    assert sorted(content(bundle.train) + content(bundle.val)) == content(drawn["train"])
    (root / "class9").mkdir()
    with pytest.raises(DataError, match="not one sample of class 'class9'"):
        open_data(root)


def test_labels_outside_given_classes_and_shapes_that_differ(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.array([0, 0, 2, 2]))
    with pytest.raises(DataError, match="outside 0…1"):
        open_data(tmp_path / "a.npz", classes=("a", "b"))
    y = np.zeros(4, int)
    np.savez(tmp_path / "b.npz", x_train=IMAGES, y_train=y, x_test=IMAGES[:, :4], y_test=y)
    with pytest.raises(DataError, match="test images are"):
        open_data(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mean": "x"}, "mean is 'x'"),
        ({"mean": [None]}, "mean is"),
        ({"mean": True}, "mean is True"),
        ({"std": [0.5, False, 0.5]}, r"std is \[0.5, False, 0.5\]"),
        ({"std": [1.0, 2.0]}, "std has 2 values for 1 channels"),
        ({"mean": 123.7, "std": 58.4}, "Divide mean and std by 255"),
        ({"seed": -1}, "seed is -1"),
        ({"val_fraction": "a"}, "val_fraction is 'a'"),
        ({"classes": "ab"}, "classes is 'ab'"),
    ],
)
def test_an_option_that_makes_no_sense_is_an_error(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match=match):
        open_data(tmp_path / "a.npz", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": "8"},
        {"image_size": 8.5},
        {"image_size": 0},
        {"crop_fraction": 1.5, "image_size": 8},
        {"crop_fraction": "0.9", "image_size": 8},
        {"interpolation": "cubic", "image_size": 8},
        {"test": 5},
    ],
    ids=str,
)
def test_so_is_one_of_image_files(
    tmp_path: Path, drawn: dict[str, ArraySplit], options: dict[str, Any]
) -> None:
    root = write_folder(tmp_path, {"train": drawn["train"]})
    with pytest.raises(DataError, match=f"{next(iter(options))} is"):
        open_data(root, **options)


def test_one_mean_serves_every_channel_and_class_names_may_be_bytes(tmp_path: Path) -> None:
    x, names = np.zeros((4, 8, 8, 3), np.uint8), np.array([b"a", b"b"])
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 1, 0, 1]), classes=names)
    bundle = open_data(tmp_path / "a.npz", mean=0.5, std=[0.25])
    assert (bundle.mean, bundle.std) == ((0.5,) * 3, (0.25,) * 3)
    assert bundle.classes == ("a", "b")


def test_unknown_options_and_specs_are_suggested() -> None:
    with pytest.raises(DataError, match="Did you mean 'per_class'"):
        open_data("glyphs", per_clas=(1, 1, 1))
    with pytest.raises(DataError, match="Did you mean 'glyphs'"):
        open_data("glyph")


def test_a_class_that_training_has_not_is_an_error(tmp_path: Path, drawn: dict[str, ArraySplit]) -> None:
    root = write_folder(tmp_path, drawn)
    (root / "test" / "class9").mkdir()
    with pytest.raises(DataError, match="'class9' is not among the training classes"):
        open_data(root)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the project")
def test_real_parquet_opens_with_its_class_names() -> None:
    bundle = open_data(SHARED / "cifar10-test.parquet")
    assert bundle.classes[3] == "cat"
    assert bundle.image_shape == (3, 32, 32)
    x, y = next(iter(bundle.loader("val", 8)))
    assert x.shape == (8, 3, 32, 32)
    assert y.dtype == torch.int64


def test_an_archive_that_unpacks_beyond_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros((4, 80, 80, 1), np.uint8), y=np.arange(4) % 2)
    assert len(open_data(tmp_path / "b.npz", val_fraction=0.5).train) == 2  # type: ignore[arg-type]
    monkeypatch.setattr("penjing.archives.memory_bytes", lambda: 20_000)
    with pytest.raises(DataError, match=r"b\.npz: unpacked it takes 25\.\d+ kB.*has 20 kB of memory"):
        open_data(tmp_path / "b.npz")


@pytest.mark.parametrize("x", [np.zeros((30, 12), np.float32), np.zeros((30, 20), np.int64)])
def test_tables_and_text_are_not_taken_for_images(x: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(30) % 3)
    with pytest.raises(DataError, match=r"are no images.*file\.py:factory"):
        open_data(tmp_path / "d.npz")
