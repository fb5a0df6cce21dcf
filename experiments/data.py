"""Image data for the experiments: TFDS builders in, uint8 arrays in memory, standardised float
batches out.

Every image is uint8 until the last step of a pipeline, which turns it into the float image a
network reads:

    normalize(image) = (image / 255 - mean) / std          per channel, with the training split's
    mean and std

so values lie between `-mean / std` (black) and `(1 - mean) / std` (white). The deployed int8
network takes the same standardised image on its input grid, `codes = round(normalize(image) /
scale) + zero_point`.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import socket
import urllib.parse
import urllib.request

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from experiments import data_checks, datasets, records
from experiments.datasets import fashion_mnist_idx


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What the experiments know about a dataset before they load it.

    Attributes:
      mean: Mean of the training images / 255, per channel.
      std: Standard deviation of the training images / 255, per channel.
      shift: Augmentation moves an image by up to so many pixels in both directions; black enters at
        the edge.
      flip: Whether augmentation mirrors every second image.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int
    flip: bool


DATASETS: Mapping[str, DatasetInfo] = {
    "digits": DatasetInfo(mean=(0.3054,), std=(0.3760,), shift=1, flip=False),
    "fashion_mnist": DatasetInfo(mean=(0.2860,), std=(0.3530,), shift=4, flip=True),
    "cifar10": DatasetInfo(
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), shift=4, flip=True
    ),
    "cifar100": DatasetInfo(
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), shift=4, flip=True
    ),
}


class DatasetMissingError(RuntimeError):
    """A dataset is neither on this machine nor can it be downloaded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset in memory.

    Attributes:
      name: One of `DATASETS`.
      train_images: uint8 `[N, H, W, C]`.
      train_labels: int64 `[N]`.
      test_images: uint8 `[M, H, W, C]`.
      test_labels: int64 `[M]`.
      num_classes: Number of classes.
      info: Constants of the normalisation and the augmentation.
      held_out: Whether the images under `test_images` are held out of the training split, so that
        something may be chosen by them.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    info: DatasetInfo
    held_out: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of an image."""
        return self.train_images.shape[1:]

    def normalize(self, images: np.ndarray) -> np.ndarray:
        """Returns uint8 images as the float32 images that a network reads, `(image / 255 - mean) /
        std`.
        """
        mean, std = np.float32(self.info.mean), np.float32(self.info.std)
        return (np.asarray(images, np.float32) / np.float32(255) - mean) / std

    @property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """Normalised test images and their labels."""
        return self.normalize(self.test_images), self.test_labels

    def test_batches(self, batch_size: int = 256) -> tf.data.Dataset:
        """Batches of normalised test images and labels, in order."""
        return _in_memory(tf.data.Dataset.from_tensor_slices(self.test).batch(batch_size))

    def train_batches(self, batch_size: int, seed: int, augment: bool = True) -> tf.data.Dataset:
        """Batches of shuffled, augmented, normalised training images and labels; an incomplete last
        batch is dropped.

        The order and the augmentation follow from `seed` alone, and differ from epoch to epoch.

        Args:
          batch_size: Images per batch, at most the number of training images.
          seed: Of the shuffling and the augmentation.
          augment: Whether to shift and flip.

        Raises:
          ValueError: If `batch_size` leaves no complete batch.
        """
        count = len(self.train_images)
        data_checks.check_batch_size(batch_size, count)
        batches = tf.data.Dataset.from_tensor_slices((self.train_images, self.train_labels))
        batches = batches.shuffle(count, seed=seed).batch(batch_size, drop_remainder=True)
        # Two random integers per batch seed the stateless augmentation, so parallel calls cannot
        # change it.
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(
            2, drop_remainder=True
        )

        def prepare(
            batch: tuple[tf.Tensor, tf.Tensor], batch_seed: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            images, labels = batch
            if augment:
                images = augment_images(
                    images, batch_seed, shift=self.info.shift, flip=self.info.flip
                )
            images = tf.cast(images, tf.float32) / 255.0
            return (images - tf.constant(self.info.mean)) / tf.constant(self.info.std), labels

        drawn = tf.data.Dataset.zip((batches, seeds))
        return _in_memory(drawn.map(prepare, num_parallel_calls=2))

    def plain_train_batches(self, batch_size: int = 256) -> tf.data.Dataset:
        """Batches of all normalised training images and labels, in order, not augmented."""
        images = self.normalize(self.train_images), self.train_labels
        return _in_memory(tf.data.Dataset.from_tensor_slices(images).batch(batch_size))

    def train_part(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first training images, normalised and not augmented, and their labels."""
        return self.normalize(self.train_images[:count]), self.train_labels[:count]

    def test_part(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first test images, normalised, and their labels."""
        return self.normalize(self.test_images[:count]), self.test_labels[:count]

    def calibration_images(self, count: int, seed: int) -> np.ndarray:
        """Returns `count` normalised training images (all, if there are fewer), without
        augmentation, drawn by `seed`.
        """
        order = np.random.default_rng(seed).permutation(len(self.train_images))
        return self.normalize(self.train_images[order[:count]])


def _in_memory(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The same batches, two of them made ahead.

    TensorFlow does not tune their making: an iterator that is tuned waits for up to 0.1 s when it
    ends, which is as much as ten steps of a small network, in every epoch.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)


def augment_images(images: tf.Tensor, seed: tf.Tensor, *, shift: int, flip: bool) -> tf.Tensor:
    """Shifts each image by up to `shift` pixels (pad with black, crop at random) and mirrors half
    of them.

    Args:
      images: `[N, H, W, C]`, any type.
      seed: Two integers.
      shift: Largest shift, in pixels; 0 for none.
      flip: Whether to mirror left to right.

    Returns:
      Images of the same shape and type.
    """
    seed = tf.bitcast(tf.cast(seed, tf.int64), tf.int32)[:, 0]
    count, height, width = tf.shape(images)[0], tf.shape(images)[1], tf.shape(images)[2]
    draw = tf.random.stateless_uniform(
        [3, count], tf.stack([seed[0], seed[1]]), 0, 2 * shift + 1, tf.int32
    )
    padded = tf.pad(images, [[0, 0], [shift, shift], [shift, shift], [0, 0]])
    rows = draw[0][:, tf.newaxis] + tf.range(height)[tf.newaxis]
    columns = draw[1][:, tf.newaxis] + tf.range(width)[tf.newaxis]
    result = tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    if flip:
        coin = tf.random.stateless_uniform([count, 1, 1, 1], tf.stack([seed[1], seed[0]])) < 0.5
        result = tf.where(coin, tf.reverse(result, axis=[2]), result)
    return tf.ensure_shape(result, images.shape)


def load(
    name: str,
    data_dir: str | None = None,
    *,
    fashion_mnist_dir: str | pathlib.Path = fashion_mnist_idx.DEBIAN_DIR,
    train_examples: int | None = None,
    validation_examples: int = 0,
    resolution: int | None = None,
    shift: int | None = None,
) -> Dataset:
    """Loads a dataset, preparing it by TFDS on first use.

    With `validation_examples` so many training images, the last of TFDS's fixed order, are held out
    of the training and take the place of the test images: what is chosen by their accuracy was
    chosen without the test images.

    Args:
      name: One of `DATASETS`.
      data_dir: TFDS data directory, `~/tensorflow_datasets` (or `$TFDS_DATA_DIR`) by default.
      fashion_mnist_dir: Folder of the four IDX files of Fashion-MNIST; if they are not there, TFDS
        downloads the data.
      train_examples: Keep only so many training images, the first of TFDS's fixed order; all by
        default.
      validation_examples: Training images to hold out; 0 for none, with the test images in their
        own place.
      resolution: Side of the images, which are the means of equal squares; None as they come.
      shift: Augmentation moves an image by up to so many pixels; None as `DATASETS` says.

    Raises:
      ValueError: If there is no dataset of that name, `train_examples` is not positive, fewer
        images than `train_examples` are left, or squares do not fill the images.
      DatasetMissingError: If it is not on this machine and cannot be downloaded.
    """
    if name not in DATASETS:
        raise ValueError(
            f"dataset must be one of {', '.join(DATASETS)}. Received: dataset={name!r}."
        )
    if train_examples is not None and train_examples < 1:
        raise ValueError(f"train_examples must be positive. Received: {train_examples=}.")
    builder = _prepared_builder(name, data_dir, pathlib.Path(fashion_mnist_dir))
    splits = tfds.as_numpy(builder.as_dataset(batch_size=-1))
    train, test = ((splits[s]["image"], splits[s]["label"]) for s in ("train", "test"))
    if validation_examples:
        train, test = _held_out(train, validation_examples, train_examples)
    info = DATASETS[name]
    return Dataset(
        name=name,
        train_images=pooled(train[0][:train_examples], resolution),
        train_labels=train[1][:train_examples],
        test_images=pooled(test[0], resolution),
        test_labels=test[1],
        num_classes=builder.info.features["label"].num_classes,
        info=info if shift is None else dataclasses.replace(info, shift=shift),
        held_out=bool(validation_examples),
    )


Split = tuple[np.ndarray, np.ndarray]


def _held_out(train: Split, count: int, train_examples: int | None) -> tuple[Split, Split]:
    """The training split without its last `count` images, and those."""
    left = data_checks.check_left(len(train[0]), count, train_examples)
    return (train[0][:left], train[1][:left]), (train[0][left:], train[1][left:])


def pooled(images: np.ndarray, resolution: int | None) -> np.ndarray:
    """uint8 images `[N, side, side, C]` as means of equal squares, rounded.

    A worked number: 28x28 at `resolution=14` are the means of 2x2 pixels, so 10, 11, 11, 11 become
    11 (10.75).

    Args:
      images: The images.
      resolution: Side of the result; None for the images as they are.

    Raises:
      ValueError: If squares of whole pixels do not fill the images.
    """
    if resolution is None:
        return images
    count, height, width, channels = images.shape
    if resolution < 1 or height != width or height % resolution:
        raise ValueError(
            f"resolution must divide the side of square images, here {height}x{width}. Received:"
            f" resolution={resolution}."
        )
    size = height // resolution
    squares = images.reshape(count, resolution, size, resolution, size, channels)
    return np.rint(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


def _prepared_builder(
    name: str, data_dir: str | None, fashion_mnist_dir: pathlib.Path
) -> tfds.core.DatasetBuilder:
    """The dataset's builder after `download_and_prepare`, which does nothing when the data are
    there.
    """
    try:
        return prepared(lambda: _builder(name, data_dir, fashion_mnist_dir))
    except (
        Exception
    ) as error:  # TFDS lets through whatever its transport, file system or generator raises.
        raise DatasetMissingError(
            _missing_message(name, data_dir, fashion_mnist_dir, error)
        ) from error


# A builder, and what it needs to prepare its data.
Builder = tuple[tfds.core.DatasetBuilder, tfds.download.DownloadConfig | None]


def prepared(make: Callable[[], Builder]) -> tfds.core.DatasetBuilder:
    """The builder that `make` makes, with its data; one process prepares them."""
    builder, config = make()
    if not builder.data_path.exists():
        with _alone_in(builder.data_path.parent):
            # Once more: another process may have prepared the data meanwhile.
            builder, config = make()
            builder.download_and_prepare(download_config=config)
    return builder


def _builder(name: str, data_dir: str | None, fashion_mnist_dir: pathlib.Path) -> Builder:
    """The builder, and what it needs to prepare the data."""
    if name == "digits":
        return datasets.Digits(data_dir=data_dir), None
    if name == "fashion_mnist" and all(
        file.is_file() for file in fashion_mnist_idx.idx_files(fashion_mnist_dir)
    ):
        config = tfds.download.DownloadConfig(manual_dir=str(fashion_mnist_dir))
        return datasets.FashionMnistIdx(data_dir=data_dir), config
    builder = tfds.builder(name, data_dir=data_dir)
    _check_hosts(builder)
    return builder, None


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process prepares data in a folder: TFDS fails where two do."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks, or none of this machine
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _check_hosts(builder: tfds.core.DatasetBuilder) -> None:
    """Raises OSError if a download is needed and its host has no address: TFDS would try for
    minutes before it says so.
    """
    if builder.data_path.exists() or urllib.request.getproxies():
        return
    for host in sorted({urllib.parse.urlparse(url).hostname for url in builder.url_infos}):
        socket.getaddrinfo(host, None)


def _missing_message(
    name: str, data_dir: str | None, fashion_mnist_dir: pathlib.Path, error: Exception
) -> str:
    ways = [
        "connect to the internet, and TFDS downloads it",
        (
            f"copy a prepared `{name}` folder of another machine's TFDS data directory, and pass"
            " --data_dir"
        ),
        "use --dataset=digits, which comes with scikit-learn",
    ]
    if name == "fashion_mnist":
        ways.insert(
            0,
            "install Debian's package dataset-fashion-mnist, or pass --fashion_mnist_dir with its"
            " four files",
        )
    if name == "digits":
        ways = [
            "pass a writable --data_dir",
            "install the extra: pip install 'tf_fpq[experiments]'",
        ]
    return (
        f"Dataset {name!r} could not be prepared. Ways out: {'; '.join(ways)}. Received:"
        f" data_dir={data_dir!r}, fashion_mnist_dir={str(fashion_mnist_dir)!r};"
        f" {type(error).__name__}: {records.first_line(error)}"
    )
