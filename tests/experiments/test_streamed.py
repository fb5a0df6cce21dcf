"""Folders of images, and ImageNet in TFDS's format: what a training reads from disk."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from experiments import data, pipeline, streamed
from experiments.config import Config

# Red, green and blue of each class; all images of a class are alike but for their size.
COLOURS = {"robin": (200, 40, 10), "wren": (60, 120, 200)}
SIZES = ((16, 16), (20, 12), (9, 31), (40, 40))


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_png if path.suffix == ".png" else tf.io.encode_jpeg
    path.write_bytes(encode(image).numpy())


@pytest.fixture
def folder(tmp_path):
    """Eight training images and four test images of two classes."""
    for split, count in (("train", 4), ("test", 2)):
        for name, colour in COLOURS.items():
            for index in range(count):
                image = np.full((*SIZES[index], 3), colour, np.uint8)
                suffix = "png" if index % 2 == 0 else "jpg"
                write(tmp_path / "birds" / split / name / f"{index}.{suffix}", image)
    return tmp_path / "birds"


def load(folder, **changes):
    return streamed.load(f"folder:{folder}", **{"resolution": 8, **changes})


def test_classes_are_folders_and_images_of_all_sizes_become_squares(folder):
    dataset = load(folder)
    assert (dataset.num_classes, dataset.image_shape, dataset.held_out) == (2, (8, 8, 3), False)
    images, labels = dataset.test_part(10)
    assert images.shape == (4, 8, 8, 3) and sorted(labels) == [0, 0, 1, 1]
    pixels = (images * dataset.info.std + dataset.info.mean) * 255
    for image, label in zip(pixels, labels):
        colour = list(COLOURS.values())[label]  # classes in alphabetical order
        np.testing.assert_allclose(image, np.broadcast_to(colour, image.shape), atol=2.5)  # JPEG


def test_mean_and_deviation_are_those_of_the_training_images(folder):
    info = load(folder).info
    expected = np.array(list(COLOURS.values())) / 255
    np.testing.assert_allclose(info.mean, expected.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(info.std, expected.std(axis=0), atol=0.01)
    assert info.shift == 1 and load(folder, shift=2).info.shift == 2


def test_the_middle_is_seven_eighths_of_the_shorter_side():
    image = tf.reshape(tf.range(16 * 24 * 3), [16, 24, 3])
    np.testing.assert_array_equal(streamed._middle(image), image[1:15, 5:19])


def test_batches_follow_from_the_seed_change_by_epoch_and_keep_their_labels(folder):
    dataset = load(folder)
    batches = dataset.train_batches(3, seed=5)
    assert len(batches) == 2  # of eight images
    first, second, again = (
        [(images.numpy(), labels.numpy()) for images, labels in source]
        for source in (batches, batches, dataset.train_batches(3, seed=5))
    )
    for (images, labels), (others, others_labels) in zip(first, again):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, others_labels)
    assert any((a[1] != b[1]).any() for a, b in zip(first, second))
    for images, labels in first:
        red = images.mean(axis=(1, 2))[:, 0]
        np.testing.assert_array_equal(red > 0, labels == 0)  # robins


def test_random_parts_differ_and_none_is_larger_than_the_image(folder):
    image = tf.cast(np.random.default_rng(0).integers(0, 256, (24, 30, 3)), tf.uint8)
    shapes = {tuple(streamed._random_part(image, tf.constant([1, s])).shape) for s in range(40)}
    assert len(shapes) > 20
    for height, width, _ in shapes:
        # A pixel of rounding on either side.
        assert 0.08 * 720 * 0.8 <= height * width <= 720 and 0.6 < width / height < 1.7


def test_held_out_images_are_the_last_of_a_fixed_order(folder):
    everything, labels = load(folder).train_part(8)
    dataset = load(folder, validation_examples=3, train_examples=4)
    assert (dataset.train.count, dataset.tested.count, dataset.held_out) == (4, 3, True)
    np.testing.assert_array_equal(dataset.test_part(9)[1], labels[5:])
    np.testing.assert_array_equal(dataset.train_part(9)[1], labels[:4])
    with pytest.raises(ValueError, match="leave 6 of 8.*validation_examples=3"):
        load(folder, validation_examples=3, train_examples=6)


def test_calibration_images_are_not_augmented(folder):
    images = load(folder).calibration_images(5, seed=1)
    assert images.shape == (5, 8, 8, 3)
    assert np.ptp(images, axis=(1, 2)).max() < 0.1  # of one colour each
    assert len(load(folder).calibration_images(100, seed=1)) == 8


def test_a_folder_that_is_not_as_it_must_be_is_described(folder, tmp_path):
    with pytest.raises(ValueError, match="folder train and one folder test or val.*not exist"):
        load(tmp_path / "nowhere")
    (folder / "val").mkdir()
    with pytest.raises(ValueError, match=r"one folder test or val.*'test', 'train', 'val'"):
        load(folder)
    (folder / "val").rmdir()
    (folder / "train" / "owl").mkdir()
    with pytest.raises(ValueError, match=r"same in both.*'owl', 'robin', 'wren'"):
        load(folder)
    (folder / "test" / "owl").mkdir()
    with pytest.raises(ValueError, match=r"must have images.*none in train: owl"):
        load(folder)


def test_a_broken_image_is_named(folder):
    (folder / "train" / "wren" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot be read.*wren/2\.png"):
        load(folder)


def test_a_configuration_names_a_folder_and_the_pipeline_opens_it(folder):
    config = Config(dataset=f"folder:{folder}", resolution=8)
    assert isinstance(pipeline.load(config), streamed.StreamedDataset)
    with pytest.raises(ValueError, match="imagenet2012, folder:PATH.*dataset='birds'"):
        Config(dataset="birds")


def imagenet_examples(count):
    generator = np.random.default_rng(count)
    for index in range(count):
        image = generator.integers(0, 256, (40 + index, 50, 3), np.uint8)
        yield f"{index}.JPEG", {"file_name": f"{index}.JPEG", "image": image, "label": 7 * index}


@pytest.fixture(scope="module")
def imagenet_dir(tmp_path_factory):
    """A TFDS data directory with random images as ImageNet."""
    folder = tmp_path_factory.mktemp("imagenet")
    builder = tfds.builder("imagenet2012", data_dir=folder)
    builder._split_generators = lambda manager: {
        "train": imagenet_examples(12),
        "validation": imagenet_examples(5),
    }
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(folder))
    )
    return str(folder)


def test_imagenet_is_streamed_from_tfdss_files(imagenet_dir):
    dataset = streamed.load("imagenet2012", imagenet_dir, resolution=32)
    assert (dataset.num_classes, dataset.train.count, dataset.tested.count) == (1000, 12, 5)
    assert sorted(dataset.test_part(9)[1]) == [0, 7, 14, 21, 28]
    batches = dataset.train_batches(4, seed=2)
    labels = [[label for _, part in batches for label in part.numpy()] for _ in range(2)]
    assert labels[0] != labels[1] and sorted(labels[0]) == [7 * index for index in range(12)]
    again = dataset.train_batches(4, seed=2)
    assert labels[0] == [label for _, part in again for label in part.numpy()]
    black = dataclasses.replace(dataset)._normalized(tf.zeros([9, 9, 3]))
    np.testing.assert_allclose(black[0, 0], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_without_imagenet_the_download_by_hand_is_described(tmp_path):
    with pytest.raises(data.DatasetMissingError, match=r"image-net\.org.*downloads/manual"):
        streamed.load("imagenet2012", str(tmp_path))
