"""Data sets, augmentation and batches: memory and stream, folder and archive, and bad archives."""

import io
import multiprocessing
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chanprune import data
from chanprune.data.batches import augment
from chanprune.data.source import stratified, stratified_split
from chanprune.errors import RunError, UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
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
