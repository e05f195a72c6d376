"""Data sets, augmentation and batches: memory and stream, folder and archive, and bad archives."""

import io
import multiprocessing
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chanprune import data
from chanprune.data import image as images_of
from chanprune.data.archive import MAX_FILE
from chanprune.data.batches import augment
from chanprune.data.source import stratified, stratified_split
from chanprune.pipeline.model_file import Preprocessing
from chanprune.processes.errors import RunError, UserError

SHARED = Path(os.environ.get("CHANPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
DIGITS = {"image_size": 16, "pad": 2, "flip": False, "workers": 0}


def digits(**options):
    return data.load("digits", seed=options.pop("seed", 0), **{**DIGITS, **options})


def make_archive(folder: Path, *, as_zip: bool, size=(16, 16), classes=("ant", "bee")) -> Path:
    """Write a small image folder with three kinds of files and some that are to be ignored."""
    random = np.random.default_rng(0)
    members: dict[str, bytes] = {"README.txt": b"hello", "train/ant/notes.txt": b"no image"}
    for split, count in (("train", 12), ("test", 4)):
        for name in classes:
            for number in range(count):
                pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                kind, suffix = [("PNG", "png"), ("WEBP", "WEBP"), ("PNG", "PNG")][number % 3]
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, kind, lossless=True)
                members[f"{split}/{name}/{number:02}.{suffix}"] = file.getvalue()
    return write_archive(folder, members, as_zip=as_zip)


def write_archive(folder: Path, members: dict[str, bytes], *, as_zip: bool) -> Path:
    if as_zip:
        path = folder / "images.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    path = folder / "images"
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def read_archive(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_share_is_of_every_class_and_split():
    labels = torch.arange(4).repeat_interleave(torch.tensor([40, 20, 10, 1]))
    chosen = stratified(labels, 0.3, 5)
    assert labels[chosen].bincount().tolist() == [12, 6, 3, 1]
    assert chosen.equal(chosen.unique()) and not chosen.equal(stratified(labels, 0.3, 6))
    whole, part, other = digits(), digits(share=0.25), digits(share=0.25, seed=1)
    for name, split in part.splits.items():
        expected = whole.splits[name].labels.bincount() * 0.25
        assert (split.labels.bincount() - expected).abs().max() <= 1
    assert part.splits["test"].images.equal(other.splits["test"].images)
    assert not part.splits["train"].images.equal(other.splits["train"].images)
    assert digits(share=1.0).splits["train"].images.equal(whole.splits["train"].images)


def test_digits_are_split_by_class_without_overlap():
    dataset = digits()
    sizes = {key: len(split.labels) for key, split in dataset.splits.items()}
    assert sum(sizes.values()) == 1797
    assert sizes["test"] == pytest.approx(0.2 * 1797, abs=5)
    assert sizes["val"] == pytest.approx(0.08 * 1797, abs=5)
    for split in dataset.splits.values():
        shares = torch.bincount(split.labels, minlength=10) / len(split.labels)
        assert (shares - 0.1).abs().max() < 0.015
    rows = torch.cat([split.images.flatten(1) for split in dataset.splits.values()])
    assert len(torch.unique(rows, dim=0)) >= 1790
    other = digits(seed=1)
    assert torch.equal(other.splits["test"].images, dataset.splits["test"].images)
    assert not torch.equal(other.splits["val"].images, dataset.splits["val"].images)


def test_held_out_images_are_exactly_what_the_rest_lacks():
    labels = torch.arange(200) % 4
    rest, held = stratified_split(labels, 0.1, 3, tuple("abcd"))
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(200))
    assert torch.bincount(labels[held]).tolist() == [5, 5, 5, 5]


def test_a_class_that_is_too_small_to_split_is_refused():
    with pytest.raises(UserError, match="class 'b' has 1 training images"):
        stratified_split(torch.tensor([0, 0, 0, 1]), 0.1, 0, ("a", "b"))


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_images_are_crops_of_the_padded_image(flip):
    images = torch.randint(0, 256, (64, 3, 8, 9), dtype=torch.uint8)
    got = augment(images, 2, flip, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    mirrored = 0
    for image, result in zip(padded, got, strict=True):
        crops = [image[:, t : t + 8, left : left + 9] for t in range(5) for left in range(5)]
        plain = any(torch.equal(result, crop) for crop in crops)
        mirror = any(torch.equal(result, crop.flip(-1)) for crop in crops)
        assert plain or (flip and mirror)
        mirrored += not plain
    assert mirrored == 0 or 16 < mirrored < 48
    assert mirrored > 0 or not flip


def test_no_augmentation_is_the_identity():
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(augment(images, 0, False, torch.Generator()), images)


def test_evaluation_batches_hold_every_image_once_and_normalised():
    dataset = digits()
    batches = data.eval_batches(dataset, "test", batch_size=100, device="cpu")
    images, labels = (torch.cat(parts) for parts in zip(*batches.epoch(0), strict=True))
    split = dataset.splits["test"]
    assert torch.equal(labels, split.labels) and len(batches) == 4
    expected = (split.images.float() / 255 - dataset.mean[0]) / dataset.std[0]
    torch.testing.assert_close(images, expected)


def test_training_batches_depend_on_seed_and_epoch_alone():
    dataset = digits(flip=True)

    def epoch(seed, index):
        batches = data.train_batches(dataset, batch_size=64, seed=seed, device="cpu")
        torch.manual_seed(torch.seed() % 1000)
        return torch.cat([images for images, _ in batches.epoch(index)])

    first = epoch(0, 3)
    assert len(first) % 64 == 0
    assert torch.equal(first, epoch(0, 3))
    assert not torch.equal(first, epoch(0, 4))
    assert not torch.equal(first, epoch(1, 3))


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_a_sample_is_shuffled_and_not_augmented(tmp_path, memory_limit):
    """Statistics of the first images of a data set sorted by class would be those of one class."""
    path = make_archive(tmp_path, as_zip=True)
    options = {"root": str(path), "val_share": 0.25, "pad": 2}
    dataset = data.load("imagefolder", seed=0, memory_limit=memory_limit, **options)
    batches = data.sample_batches(dataset, batch_size=6, seed=0, device="cpu")
    sample = list(batches.epoch(0))
    whole = data.eval_batches(dataset, "train", batch_size=100, device="cpu")
    ((images, labels),) = whole.epoch(0)
    assert [set(own.tolist()) for _, own in sample] == [{0, 1}] * len(sample)
    found = [(x[:, None] == images).flatten(2).all(2) for x, _ in sample]
    places = torch.cat(found).nonzero()[:, 1]
    assert len(places) == len(places.unique()) == 6 * len(sample)
    assert torch.equal(labels[places], torch.cat([own for _, own in sample]))


def test_a_training_split_smaller_than_a_batch_makes_one_batch():
    batches = data.train_batches(digits(), batch_size=5000, seed=0, device="cpu")
    assert len(batches) == 1
    assert [len(labels) for _, labels in batches.epoch(0)] == [1295]


def test_streams_give_the_batches_of_the_memory_where_nothing_is_random():
    both = [
        data.eval_batches(digits(memory_limit=limit), "val", batch_size=50, device="cpu")
        for limit in (2**30, 0)
    ]
    assert [type(b).__name__ for b in both] == ["MemoryBatches", "StreamBatches"]
    for (images, labels), (streamed, others) in zip(*(b.epoch(0) for b in both), strict=True):
        torch.testing.assert_close(images, streamed)
        assert torch.equal(labels, others)


def test_streams_and_memory_augment_alike():
    """The mean image and the pixel variance over many epochs agree."""
    means, spreads = [], []
    for limit in (2**30, 0):
        dataset = digits(memory_limit=limit, flip=True)
        one = dataset.splits["train"].subset(torch.tensor([5] * 400))
        dataset.splits["train"] = one
        batches = data.train_batches(dataset, batch_size=400, seed=0, device="cpu")
        seen = torch.cat([images for epoch in range(4) for images, _ in batches.epoch(epoch)])
        means.append(seen.mean(0))
        spreads.append(seen.std(0))
    torch.testing.assert_close(*means, rtol=0, atol=0.15)
    torch.testing.assert_close(*spreads, rtol=0, atol=0.15)


def test_workers_do_not_change_what_a_stream_gives(tmp_path):
    path = make_archive(tmp_path, as_zip=True)
    seen = []
    for workers in (0, 2):
        dataset = data.load(
            "imagefolder", seed=0, root=str(path), memory_limit=0, workers=workers, pad=2
        )
        batches = data.train_batches(dataset, batch_size=4, seed=0, device="cpu")
        seen.append(torch.cat([images for images, _ in batches.epoch(1)]))
    assert torch.equal(*seen)


def test_processes_that_read_one_archive_at_once_do_not_disturb_each_other(tmp_path):
    dataset = data.load(
        "imagefolder", seed=0, root=str(make_archive(tmp_path, as_zip=True)), memory_limit=0
    )
    source = dataset.splits["train"]
    expected = [source.read(index) for index in range(len(source.labels))]

    def read_again_and_again() -> None:
        for _ in range(30):
            for index, image in enumerate(expected):
                assert torch.equal(source.read(index), image)

    child = multiprocessing.get_context("fork").Process(target=read_again_and_again)
    child.start()
    read_again_and_again()
    child.join()
    assert child.exitcode == 0


def test_archive_and_directory_are_the_same(tmp_path):
    loaded = [
        data.load("imagefolder", seed=0, root=str(make_archive(tmp_path, as_zip=as_zip)))
        for as_zip in (True, False)
    ]
    for left, right in zip(*(d.splits.values() for d in loaded), strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)
    assert loaded[0].info.class_names == ("ant", "bee")
    assert loaded[0].mean == loaded[1].mean
    assert {key: len(s.labels) for key, s in loaded[0].splits.items()} == {
        "train": 22,
        "val": 2,
        "test": 8,
    }


def test_a_val_split_is_used_where_there_is_one(tmp_path):
    members = read_archive(make_archive(tmp_path, as_zip=True))
    members |= {k.replace("test", "val"): v for k, v in members.items() if k.startswith("test")}
    path = write_archive(tmp_path, members, as_zip=False)
    dataset = data.load("imagefolder", seed=0, root=str(path))
    assert {key: len(s.labels) for key, s in dataset.splits.items()} == {
        "train": 24,
        "val": 8,
        "test": 8,
    }


def test_one_image_of_another_size_is_refused_by_name(tmp_path):
    path = make_archive(tmp_path, as_zip=False)
    odd = sorted((path / "train" / "bee").iterdir())[-1]
    Image.new("RGB", (17, 16)).save(odd)
    with pytest.raises(UserError, match=rf"{odd.name} has 17 x 16 pixels"):
        data.load("imagefolder", seed=0, root=str(path))
    assert data.load("imagefolder", seed=0, root=str(path), image_size=16).info.input_shape[1] == 16


def test_images_of_other_sizes_are_resized_and_cropped(tmp_path):
    path = make_archive(tmp_path, as_zip=True, size=(40, 20))
    with pytest.raises(UserError, match="40 x 20 pixels; .*set dataset.image_size"):
        data.describe("imagefolder", root=str(path))
    dataset = data.load("imagefolder", seed=0, root=str(path), image_size=18)
    assert dataset.splits["train"].images.shape[1:] == (3, 18, 18)


def without(prefix: str):
    return lambda members: {k: v for k, v in members.items() if not k.startswith(prefix)}


def replaced(name: str, content: bytes):
    return lambda members: {**members, name: content}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("test"), "has no test split"),
        (without("train"), "has no train split"),
        (without("test/bee"), "train and test differ in the class 'bee'"),
        (replaced("train/bee/03.png", b"no image"), "the image train/bee/03.png cannot be read"),
        (replaced("test/ant/00.png", b""), "the image test/ant/00.png cannot be read"),
    ],
)
def test_bad_archives_are_refused(tmp_path, as_zip, change, message):
    members = read_archive(make_archive(tmp_path, as_zip=True))
    (tmp_path / "bad").mkdir()
    path = write_archive(tmp_path / "bad", change(members), as_zip=as_zip)
    with pytest.raises(UserError, match=message) as refusal:
        data.load("imagefolder", seed=0, root=str(path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_in_a_stream_stops_it_with_one_line(tmp_path, workers):
    members = read_archive(make_archive(tmp_path, as_zip=True))
    path = write_archive(tmp_path, {**members, "test/ant/00.png": b"odd"}, as_zip=True)
    options = {"memory_limit": 0, "workers": workers}
    dataset = data.load("imagefolder", seed=0, root=str(path), **options)
    batches = data.eval_batches(dataset, "test", batch_size=4, device="cpu")
    with pytest.raises(RunError, match="the image test/ant/00.png cannot be read") as stopped:
        list(batches.epoch(0))
    assert "\n" not in str(stopped.value)


def test_empty_classes_are_refused(tmp_path):
    path = make_archive(tmp_path, as_zip=False)
    (path / "train/cat").mkdir()
    with pytest.raises(UserError, match="the class train/cat has no images"):
        data.load("imagefolder", seed=0, root=str(path))


def test_damaged_archives_are_refused(tmp_path):
    path = make_archive(tmp_path, as_zip=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable zip archive"):
        data.describe("imagefolder", root=str(path))
    middle = whole.index(b"train/bee/05") + 60
    path.write_bytes(whole[:middle] + bytes(40) + whole[middle + 40 :])
    with pytest.raises(UserError, match=r"the image train/bee/05.PNG cannot be read"):
        data.load("imagefolder", seed=0, root=str(path))


def linked(path: Path) -> Path:
    """Put a class folder elsewhere, with a link in its place and one that leads in a circle."""
    (path / "train" / "bee").rename(path.parent / "bees")
    (path / "train" / "bee").symlink_to(path.parent / "bees")
    (path / "train" / "bee" / "circle").symlink_to(path)
    return path


def around(members: dict[str, bytes]) -> dict[str, bytes]:
    return {f"photos/{name}": content for name, content in members.items()}


def with_splits(**names: str):
    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        split = {name: name.partition("/")[0] for name in members}
        return {
            name.replace(split[name], names.get(split[name], split[name]), 1): content
            for name, content in members.items()
        }

    return change


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        around,
        with_splits(train="Train", test="TEST"),
        lambda members: around(with_splits(train="training", test="testing")(members)),
    ],
)
def test_a_folder_on_top_and_other_names_of_splits_change_nothing(tmp_path, as_zip, change):
    plain = make_archive(tmp_path, as_zip=True)
    other = write_archive(tmp_path, change(read_archive(plain)), as_zip=as_zip)
    one, two = (data.load("imagefolder", seed=0, root=str(path)) for path in (plain, other))
    for split in ("train", "val", "test"):
        assert one.splits[split].images.equal(two.splits[split].images)


@pytest.mark.parametrize(
    "write",
    [
        lambda name: f"./{name}",
        lambda name: f"/{name}",
        lambda name: name.replace("/", "//"),
        lambda name: name.replace("/", "\\"),
    ],
)
def test_names_in_a_zip_are_read_however_a_tool_wrote_them(tmp_path, write):
    plain = make_archive(tmp_path, as_zip=True)
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in read_archive(plain).items():
            archive.writestr(write(name), content)
    one, two = (data.load("imagefolder", seed=0, root=str(root)) for root in (plain, path))
    for split in ("train", "val", "test"):
        assert one.splits[split].images.equal(two.splits[split].images)


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_a_validation_split_is_known_by_its_usual_names(tmp_path, name):
    members = read_archive(make_archive(tmp_path, as_zip=True))
    members |= {k.replace("test", name): v for k, v in members.items() if k.startswith("test")}
    dataset = data.load("imagefolder", seed=0, root=str(write_archive(tmp_path, members, as_zip=0)))
    assert {key: len(s.labels) for key, s in dataset.splits.items()} == {
        "train": 24,
        "val": 8,
        "test": 8,
    }


def test_links_to_class_folders_are_followed_but_not_in_circles(tmp_path):
    path = make_archive(tmp_path, as_zip=False)
    before = data.load("imagefolder", seed=0, root=str(path))
    after = data.load("imagefolder", seed=0, root=str(linked(path)))
    assert before.splits["train"].images.equal(after.splits["train"].images)


@pytest.mark.parametrize("as_zip", [True, False])
def test_every_file_that_is_not_read_is_counted_with_the_reason(tmp_path, as_zip):
    members = read_archive(make_archive(tmp_path, as_zip=True))
    whole = data.load("imagefolder", seed=0, root=str(make_archive(tmp_path, as_zip=True)))
    some = members["train/ant/00.png"]
    extra = {
        **{f"train/ant/deep/{i}.png": some for i in range(3)},
        **{f"train/ant/{i}.heic": some for i in range(2)},
        **{"train/lost.png": some, "spare/ant/0.png": some},
    }
    path = write_archive(tmp_path, members | extra, as_zip=as_zip)
    dataset = data.load("imagefolder", seed=0, root=str(path))
    assert dataset.splits["train"].images.equal(whole.splits["train"].images)
    told = " ".join(dataset.notes)
    for expected in (
        "3 files in folders below a class are not read (3 .png",
        "3 files whose names are not those of images that are read are not read (2 .heic, 1 .txt",
        "1 file in no class folder is not read (1 .png; train/lost.png)",
        "2 files outside of train, val and test are not read",
    ):
        assert expected in told
    number = sum(int(note.split()[0]) for note in dataset.notes)
    read = sum(len(split.labels) for split in dataset.splits.values())
    assert number + read == len(members | extra)


def test_what_has_train_and_val_alone_is_told_what_to_do(tmp_path):
    members = with_splits(test="val")(read_archive(make_archive(tmp_path, as_zip=True)))
    path = write_archive(tmp_path, members, as_zip=False)
    with pytest.raises(UserError, match="no test split; .*rename its folder to test"):
        data.describe("imagefolder", root=str(path))


def test_two_folders_for_one_split_are_refused(tmp_path):
    members = read_archive(make_archive(tmp_path, as_zip=True))
    members |= {k.replace("test", "testing"): v for k, v in members.items()}
    path = write_archive(tmp_path, members, as_zip=False)
    with pytest.raises(UserError, match="has test and testing, which are both a test split"):
        data.describe("imagefolder", root=str(path))


PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 18, 3), dtype=np.uint8))
RAMP = Image.fromarray(np.linspace(0, 65535, 216).astype(np.uint16).reshape(12, 18))


def palette_with_transparency() -> Image.Image:
    image = PHOTO.quantize(64)
    image.info["transparency"] = bytes(range(64))
    return image


PICTURES = {
    "RGB.png": PHOTO,
    "gray.png": PHOTO.convert("L"),
    "bits.png": PHOTO.convert("1"),
    "palette.png": PHOTO.quantize(64),
    "palette.gif": PHOTO.quantize(64),
    "clear.png": palette_with_transparency(),
    "RGBA.png": PHOTO.convert("RGBA"),
    "LA.png": PHOTO.convert("LA"),
    "CMYK.jpg": PHOTO.convert("CMYK"),
    "sixteen.png": RAMP,
    "sixteen.tif": RAMP,
    "plain.bmp": PHOTO,
    "plain.ppm": PHOTO,
    "sixteen.pgm": RAMP,
    "plain.webp": PHOTO,
    "YCbCr.tif": PHOTO.convert("YCbCr"),
}


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", PICTURES)
def test_a_user_s_image_becomes_what_training_saw_of_the_file(tmp_path, name, orientation):
    """Whatever its mode, format and orientation, also resized."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    # Pillow turns an uncompressed 16-bit TIFF the wrong way if it opens it by its path.
    kind = Image.registered_extensions()[Path(name).suffix]
    PICTURES[name].save(file, kind, exif=exif, compression="tiff_deflate")
    members = {f"{s}/a/{i}.{name}": file.getvalue() for s in ("train", "test") for i in range(2)}
    root = write_archive(tmp_path, members, as_zip=False)
    for size in (12, 9):
        dataset = data.load("imagefolder", seed=0, root=str(root), image_size=size, val_share=0.5)
        batches = data.eval_batches(dataset, "train", batch_size=1, device="cpu")
        ((seen, _),) = batches.epoch(0)
        transform = Preprocessing(dataset.info.input_shape, dataset.mean, dataset.std).transform()
        with Image.open(root / f"train/a/0.{name}") as opened:
            torch.testing.assert_close(transform(opened), seen[0])


def test_sixteen_bit_images_are_scaled_to_eight():
    seen = images_of.pixels(RAMP, 1)
    expected = (np.asarray(RAMP).astype(float) / 257).round()
    assert np.array_equal(seen[0].numpy(), expected) and seen.max() == 255


def test_transparency_is_dropped_and_gray_is_the_same_in_colour():
    assert images_of.pixels(PHOTO.convert("RGBA"), 3).equal(images_of.pixels(PHOTO, 3))
    gray = images_of.pixels(PHOTO.convert("L"), 1)
    assert images_of.pixels(PHOTO.convert("L"), 3).equal(gray.expand(3, -1, -1))


def test_orientation_turns_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    PHOTO.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as opened:
        upright = images_of.pixels(opened, 3)
    assert upright.equal(images_of.pixels(PHOTO, 3).flip(1, 2))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("I", (4, 4)), "32-bit integers, whose range is not known"),
        (Image.new("F", (4, 4)), "floating-point numbers, whose range is not known"),
        (Image.new("La", (4, 4)), "its mode is La"),
        (Image.new("1", (13_000, 13_000)), "13,000 x 13,000 pixels, and"),
    ],
)
def test_images_that_cannot_be_meant_are_refused(image, reason):
    with pytest.raises(UserError, match=reason):
        images_of.pixels(image, 3)


@pytest.mark.parametrize("odd", [np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4), "seven.png"])
def test_what_is_no_image_is_no_image(odd):
    with pytest.raises(TypeError, match="an image"):
        images_of.pixels(odd, 3)


def test_a_tensor_is_taken_as_its_image_is():
    tensor = images_of.pixels(PHOTO, 3)
    transform = Preprocessing((3, 9, 9), (0.5,) * 3, (0.2,) * 3).transform()
    assert transform(tensor).equal(transform(PHOTO))
    assert transform(torch.stack([tensor, tensor.flip(2)]))[0].equal(transform(PHOTO))


def huge_member(members: dict[str, bytes]) -> dict[str, bytes]:
    return {**members, "train/bee/zz.png": members["train/bee/00.png"] + bytes(MAX_FILE)}


def many_pixels(members: dict[str, bytes]) -> dict[str, bytes]:
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "PNG")
    return {**members, "train/bee/zz.png": file.getvalue()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [(huge_member, "it has 512 MiB, and 512 are the most"), (many_pixels, "13,000 x 13,000")],
)
def test_one_member_of_an_archive_cannot_fill_the_memory(tmp_path, change, reason):
    members = change(read_archive(make_archive(tmp_path, as_zip=True)))
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    del members
    with pytest.raises(UserError, match=f"train/bee/zz.png cannot be read .*{reason}"):
        data.load("imagefolder", seed=0, root=str(path))


def test_what_is_neither_a_folder_nor_a_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for root in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="is neither a directory nor a file"):
            data.describe("imagefolder", root=str(root))
    path = make_archive(tmp_path, as_zip=False)
    (path / "train/bee/00.png").unlink()
    os.mkfifo(path / "train/bee/00.png")
    with pytest.raises(UserError, match="00.png cannot be read .it is no regular file"):
        data.load("imagefolder", seed=0, root=str(path))


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_the_digest_is_that_of_the_images_and_labels(tmp_path, as_zip, memory_limit):
    """Not of their place; another pixel, label, image or class is another data set."""
    images = read_archive(make_archive(tmp_path, as_zip=True)).items()
    members = {name: content + bytes(number) for number, (name, content) in enumerate(images)}

    def digest(changed: dict[str, bytes]) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        path = write_archive(folder, changed, as_zip=as_zip)
        dataset = data.load("imagefolder", seed=0, root=str(path), memory_limit=memory_limit)
        return dataset.digest()

    one, two = "train/ant/00.png", "train/bee/03.png"
    other = {
        "two images swapped": {**members, one: members[two], two: members[one]},
        "one image less": {k: v for k, v in members.items() if k != one},
        "one image more": {**members, "train/ant/99.png": members[one]},
        "another class": {k.replace("/bee/", "/cow/"): v for k, v in members.items()}
        | {k.replace("/bee/", "/emu/"): v for k, v in members.items() if "/bee/" in k},
        "another test image": {**members, "test/ant/00.png": members[one]},
    }
    digests = [digest(members), *map(digest, other.values())]
    assert digest(members) == digests[0]
    assert len(set(digests)) == len(digests)


def test_times_notice_what_is_written_with_the_same_size(tmp_path):
    path = make_archive(tmp_path, as_zip=False)
    file = path / "train/ant/00.png"
    dataset = data.load("imagefolder", seed=0, root=str(path), memory_limit=0)
    before = dataset.times()
    about = file.stat()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert dataset.times() != before


def test_paths_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        data.describe("imagefolder", root=str(tmp_path / "nowhere"))


def test_torchvision_sets_are_described_without_files():
    assert data.describe("cifar10").input_shape == (3, 32, 32)
    assert len(data.describe("cifar100").class_names) == 100
    assert data.describe("fashion_mnist", image_size=28).input_shape == (1, 28, 28)
    assert data.describe("svhn").class_names == tuple("0123456789")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
def test_fashion_mnist_is_read_from_its_files(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    with zipfile.ZipFile(SHARED / "fashion-mnist-idx.zip") as archive:
        archive.extractall(folder)
    import gzip

    for packed in folder.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    dataset = data.load("fashion_mnist", seed=0, root=str(tmp_path))
    assert len(dataset.splits["test"].labels) == 10_000
    assert dataset.info.input_shape == (1, 32, 32)
    assert dataset.mean[0] == pytest.approx(0.286, abs=0.002)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
def test_the_cifar10_archive_is_understood():
    path = str(SHARED / "cifar10-webp.zip")
    info = data.describe("imagefolder", root=path)
    assert info.input_shape == (3, 32, 32)
    assert info.class_names == data.describe("cifar10").class_names
