import concurrent.futures
import gzip
import socket
import struct
import threading

import numpy as np
import pytest
from sklearn.datasets import load_digits
import tensorflow as tf

from experiments import data, datasets
from experiments.datasets import fashion_mnist_idx


def idx_bytes(array):
    return (
        b"\x00\x00\x08"
        + bytes([array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def idx_dir(tmp_path):
    """Four small IDX files in the form of Fashion-MNIST's."""
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 12), ("t10k", 5)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            with gzip.open(tmp_path / f"{prefix}-{kind}-ubyte.gz", "wb") as file:
                file.write(idx_bytes(array))
    return tmp_path


def test_data_are_prepared_once_where_two_ask_for_them(tmp_path, monkeypatch):
    """Threads stand for processes; both have found that the data are not there."""
    both, prepared = threading.Barrier(2), []
    real, alone = datasets.Digits.download_and_prepare, data._alone_in

    def prepare(self, **arguments):
        prepared.append(self.data_path.exists())
        return real(self, **arguments)

    def alone_in(folder):
        both.wait(60)
        return alone(folder)

    monkeypatch.setattr(datasets.Digits, "download_and_prepare", prepare)
    monkeypatch.setattr(data, "_alone_in", alone_in)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(data.load, ["digits"] * 2, [str(tmp_path)] * 2))
    assert sorted(prepared) == [False, True]
    assert all(len(dataset.train_images) == 1437 for dataset in found)


def test_digits_are_those_of_scikit_learn(digits):
    assert digits.train_images.shape == (1437, 8, 8, 1) and digits.test_images.shape == (
        360,
        8,
        8,
        1,
    )
    assert digits.image_shape == (8, 8, 1) and digits.num_classes == 10
    ours = np.concatenate([digits.train_images, digits.test_images]).reshape(-1, 64)
    theirs = np.rint(load_digits().images.reshape(-1, 64) * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


def test_digits_are_split_by_class(digits):
    # 174 to 183 images per class, a fifth of each to test.
    assert set(np.bincount(digits.test_labels)) <= {35, 36, 37}


def test_train_examples_keeps_the_first(digits, data_dir):
    some = data.load("digits", data_dir, train_examples=100)
    np.testing.assert_array_equal(some.train_images, digits.train_images[:100])
    np.testing.assert_array_equal(some.train_labels, digits.train_labels[:100])
    assert len(some.test_images) == 360


def test_validation_images_are_the_last_training_images_and_no_test_image(digits, data_dir):
    held_out = data.load("digits", data_dir, train_examples=500, validation_examples=400)
    np.testing.assert_array_equal(held_out.train_images, digits.train_images[:500])
    np.testing.assert_array_equal(held_out.test_images, digits.train_images[-400:])
    np.testing.assert_array_equal(held_out.test_labels, digits.train_labels[-400:])
    assert held_out.held_out and not digits.held_out


def test_validation_and_training_images_never_overlap(digits, data_dir):
    rest = data.load("digits", data_dir, validation_examples=400)
    np.testing.assert_array_equal(rest.train_images, digits.train_images[:1037])
    with pytest.raises(ValueError, match="leave 1038 of 1437.*validation_examples=400"):
        data.load("digits", data_dir, train_examples=1038, validation_examples=400)


def test_pooled_images_are_means_of_squares():
    image = np.uint8([[10, 11, 0, 0], [11, 11, 0, 255], [1, 2, 3, 4], [1, 2, 3, 4]])
    pooled = data.pooled(image[np.newaxis, ..., np.newaxis], 2)
    assert pooled.dtype == np.uint8
    # 10.75; 63.75; 1.5 and 3.5, ties to even.
    np.testing.assert_array_equal(pooled[0, ..., 0], [[11, 64], [2, 4]])


def test_resolution_and_shift_arrive(digits, data_dir):
    small = data.load("digits", data_dir, resolution=4, shift=0)
    assert small.image_shape == (4, 4, 1) and small.test_images.shape[1:] == (4, 4, 1)
    np.testing.assert_array_equal(small.train_images, data.pooled(digits.train_images, 4))
    assert small.info.shift == 0 and digits.info.shift == 1
    with pytest.raises(ValueError, match="divide the side of square images, here 8x8.*=3"):
        data.load("digits", data_dir, resolution=3)


def test_normalised_training_images_have_mean_0_and_std_1(digits):
    images = digits.normalize(digits.train_images)
    assert images.dtype == np.float32
    assert abs(images.mean()) < 1e-3 and abs(images.std() - 1) < 1e-3
    black, white = digits.normalize(np.uint8([[[[0]], [[255]]]])).ravel()
    np.testing.assert_allclose([black, white], [-0.3054 / 0.3760, (1 - 0.3054) / 0.3760], rtol=1e-6)


def test_plain_batches_are_the_normalised_images(digits):
    batches = list(digits.train_batches(1437, seed=0, augment=False))
    ((images, labels),) = batches
    order = np.lexsort(digits.normalize(digits.train_images).reshape(1437, -1).T)
    shuffled = np.lexsort(images.numpy().reshape(1437, -1).T)
    np.testing.assert_allclose(
        images.numpy()[shuffled], digits.normalize(digits.train_images)[order], atol=1e-6
    )
    np.testing.assert_array_equal(labels.numpy()[shuffled], digits.train_labels[order])


def epochs(batches, count):
    return [np.concatenate([images.numpy() for images, _ in batches]) for _ in range(count)]


def test_batches_follow_from_the_seed_and_change_by_epoch(digits):
    first, second = epochs(digits.train_batches(64, seed=3), 2)
    again = epochs(digits.train_batches(64, seed=3), 2)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    assert (first != second).any()
    assert (first != epochs(digits.train_batches(64, seed=4), 1)[0]).any()


def test_incomplete_last_batch_is_dropped(digits):
    assert [len(images) for images, _ in digits.train_batches(700, seed=0)] == [700, 700]


@pytest.mark.parametrize("batch_size", [0, 1438])
def test_batch_size_must_leave_a_batch(digits, batch_size):
    with pytest.raises(ValueError, match=f"between 1 and 1437.*batch_size={batch_size}"):
        digits.train_batches(batch_size, seed=0)


def test_calibration_images_follow_from_the_seed(digits):
    images = digits.calibration_images(100, seed=1)
    assert images.shape == (100, 8, 8, 1)
    np.testing.assert_array_equal(images, digits.calibration_images(100, seed=1))
    assert (images != digits.calibration_images(100, seed=2)).any()
    assert len(digits.calibration_images(5000, seed=0)) == 1437


def shifts(image, shift):
    padded = np.pad(image, [(shift, shift), (shift, shift), (0, 0)])
    height, width, _ = image.shape
    return [
        padded[y : y + height, x : x + width]
        for y in range(2 * shift + 1)
        for x in range(2 * shift + 1)
    ]


def test_augmentation_shifts_and_mirrors_and_does_nothing_else():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    images = np.repeat(image[np.newaxis], 400, axis=0)
    results = data.augment_images(
        tf.constant(images), tf.constant([5, 7], tf.int64), shift=1, flip=True
    ).numpy()
    assert results.dtype == np.uint8
    allowed = {bytes(s) for s in shifts(image, 1)} | {
        bytes(np.ascontiguousarray(s[:, ::-1])) for s in shifts(image, 1)
    }
    # 18 equally likely outcomes in 400 draws: each of them occurs, and nothing else.
    assert {bytes(result) for result in results} == allowed


def test_no_augmentation_is_the_identity():
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 5, 5, 1), np.uint8))
    results = data.augment_images(images, tf.constant([1, 2], tf.int64), shift=0, flip=False)
    np.testing.assert_array_equal(results, images)


def test_fashion_mnist_comes_from_idx_files(idx_dir, tmp_path):
    dataset = data.load("fashion_mnist", str(tmp_path / "tfds"), fashion_mnist_dir=idx_dir)
    assert dataset.image_shape == (28, 28, 1) and dataset.num_classes == 10
    images = fashion_mnist_idx.read_idx(idx_dir / "t10k-images-idx3-ubyte.gz")
    assert sorted(map(bytes, dataset.test_images)) == sorted(map(bytes, images))
    assert sorted(dataset.train_labels) == sorted(np.arange(12) % 10)


@pytest.mark.skipif(
    not fashion_mnist_idx.DEBIAN_DIR.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_fashion_mnist_of_debian_has_the_published_constants():
    images = fashion_mnist_idx.read_idx(
        fashion_mnist_idx.idx_files(fashion_mnist_idx.DEBIAN_DIR)[0]
    )
    assert images.shape == (60000, 28, 28)
    info = data.DATASETS["fashion_mnist"]
    np.testing.assert_allclose(
        [images.mean() / 255, images.std() / 255], [info.mean[0], info.std[0]], atol=1e-4
    )


@pytest.mark.parametrize(
    "content", [b"", b"no idx file", idx_bytes(np.zeros((2, 3), np.uint8))[:-1]]
)
def test_broken_idx_file_is_refused(tmp_path, content):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"x\.gz"):
        fashion_mnist_idx.read_idx(path)


def test_unknown_dataset_names_the_known_ones(tmp_path):
    with pytest.raises(
        ValueError, match="digits, fashion_mnist, cifar10, cifar100.*dataset='mnist'"
    ):
        data.load("mnist", str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_missing_dataset_names_the_ways_out(name, tmp_path, monkeypatch):
    def no_network(*arguments):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        data.DatasetMissingError, match="--data_dir.*--dataset=digits.*Name or service"
    ) as caught:
        data.load(name, str(tmp_path / "tfds"), fashion_mnist_dir=tmp_path)
    assert ("--fashion_mnist_dir" in str(caught.value)) == (name == "fashion_mnist")
    assert not (tmp_path / "tfds").exists()


def test_unwritable_data_dir_names_the_way_out(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(data.DatasetMissingError, match="writable --data_dir"):
        data.load("digits", str(blocked))
