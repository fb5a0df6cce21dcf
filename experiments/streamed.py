"""Images that are read while they are needed: ImageNet by TFDS, and folders of images.

A folder has `train/` and `test/` (or `val/`), each with a folder of images for every class:

    birds/train/robin/1.jpg     birds/train/wren/7.png     birds/test/robin/3.jpg     ...

    python -m experiments.train --dataset=folder:birds --resolution=96

Files are encoded until the last moment, so that memory holds a shuffle buffer of them and a few
batches. Images are cropped and resized to squares as is usual for ImageNet (C. Szegedy et al.,
arXiv 1409.4842, section 6). In training that is a random part of 8 to 100 % of the area with sides
of 3:4 to 4:3, mirrored or not. Elsewhere it is the middle square of 7/8 of the shorter side: 224 of
256.
"""

from collections.abc import Callable, Iterator
import dataclasses
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from experiments import data, data_checks, records

FOLDER = "folder:"
IMAGENET = "imagenet2012"
RESOLUTION = 224

# Of the training images in [0, 1], as everywhere in use.
_IMAGENET_INFO = data.DatasetInfo(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), shift=28, flip=True
)
# Encoded images, some 0.9 GB of ImageNet's.
_SHUFFLED = 8192
# Training images whose accuracy is measured.
_MEASURED = 10_000
_MIDDLE = 7 / 8
_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)

# From a seed, or None for the fixed order, to examples {"image": encoded, "label": class}.
Reader = Callable[[int | None], tf.data.Dataset]


def is_streamed(name: str) -> bool:
    """Whether a dataset of that name is read by this module."""
    return name == IMAGENET or name.startswith(FOLDER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Images and their labels.

    Attributes:
      read: Reads them.
      count: Number of images.
    """

    read: Reader
    count: int

    def first(self, count: int | None) -> "Split":
        """The first images of the fixed order; all for None."""
        if count is None or count >= self.count:
            return self
        return Split(read=lambda seed: self.read(None).take(count), count=count)

    def without_last(self, count: int) -> tuple["Split", "Split"]:
        """All but the last images of the fixed order, and those."""
        left = self.count - count
        last = Split(read=lambda seed: self.read(None).skip(left), count=count)
        return self.first(left), last


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedDataset:
    """A dataset on disk, with what `data.Dataset` offers to a training.

    Attributes:
      name: "imagenet2012", or "folder:" and a path.
      train: Training images.
      tested: Test images, or held out ones.
      num_classes: Number of classes.
      resolution: Side of the images that a network reads.
      info: Constants of the normalisation. `shift` is that of the weak view of CR.
      held_out: Whether the images under `tested` are held out of the training split.
    """

    name: str
    train: Split
    tested: Split
    num_classes: int
    resolution: int
    info: data.DatasetInfo
    held_out: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of an image."""
        return self.resolution, self.resolution, 3

    @property
    def test(self) -> tf.data.Dataset:
        """Batches of normalised test images and their labels."""
        return self.test_batches()

    def test_batches(self, batch_size: int = 256) -> tf.data.Dataset:
        """Batches of normalised test images and labels, in order."""
        return self._plain(self.tested, batch_size)

    def plain_train_batches(self, batch_size: int = 256) -> tf.data.Dataset:
        """The first 10,000 training images, as they are tested."""
        return self._plain(self.train.first(_MEASURED), batch_size)

    def train_batches(self, batch_size: int, seed: int, augment: bool = True) -> tf.data.Dataset:
        """Batches of shuffled, augmented, normalised training images and labels; an incomplete last
        batch is dropped.

        Args:
          batch_size: Images per batch, at most the number of training images.
          seed: Of the shuffling and the augmentation.
          augment: Whether to crop at random and mirror.

        Raises:
          ValueError: If `batch_size` leaves no complete batch.
        """
        data_checks.check_batch_size(batch_size, self.train.count)
        examples = self.train.read(seed).shuffle(min(self.train.count, _SHUFFLED), seed=seed)
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

        def prepare(example: dict[str, tf.Tensor], draw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = _decoded(example["image"])
            part = _mirrored(_random_part(image, draw), draw) if augment else _middle(image)
            return self._normalized(part), example["label"]

        images = tf.data.Dataset.zip((examples, seeds)).map(prepare, tf.data.AUTOTUNE)
        batches = images.batch(batch_size, drop_remainder=True)
        count = self.train.count // batch_size
        return batches.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)

    def calibration_images(self, count: int, seed: int) -> np.ndarray:
        """`count` normalised training images (all, if there are fewer), without augmentation: those
        that a training of that seed begins with.
        """
        batches = self.train_batches(min(count, self.train.count), seed, augment=False)
        return next(batches.as_numpy_iterator())[0]

    def train_part(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first training images, normalised and not augmented, and their labels."""
        return next(self._plain(self.train, count).as_numpy_iterator())

    def test_part(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first test images, normalised, and their labels."""
        return next(self._plain(self.tested, count).as_numpy_iterator())

    def _plain(self, split: Split, batch_size: int) -> tf.data.Dataset:
        def prepare(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            return self._normalized(_middle(_decoded(example["image"]))), example["label"]

        return split.read(None).map(prepare, tf.data.AUTOTUNE).batch(batch_size).prefetch(2)

    def _normalized(self, image: tf.Tensor) -> tf.Tensor:
        """A part of an image at the network's resolution, in whole numbers as on a phone first."""
        size = [self.resolution, self.resolution]
        image = tf.round(tf.image.resize(image, size, antialias=True))
        return (image / 255.0 - tf.constant(self.info.mean)) / tf.constant(self.info.std)


Images = data.Dataset | StreamedDataset


def load(
    name: str,
    data_dir: str | None = None,
    *,
    train_examples: int | None = None,
    validation_examples: int = 0,
    resolution: int | None = None,
    shift: int | None = None,
) -> StreamedDataset:
    """Opens a dataset; images are read later. Arguments are those of `data.load`.

    Mean and standard deviation of a folder are measured on its training images, which are read once
    for that.

    Raises:
      ValueError: If a folder is not as this module says, an image of it cannot be read, or counts
        are out of range.
      DatasetMissingError: If ImageNet is not on this machine; it is downloaded by hand.
    """
    train, test, classes = (
        _folder(name.removeprefix(FOLDER)) if name.startswith(FOLDER) else _imagenet(data_dir)
    )
    if validation_examples:
        data_checks.check_left(train.count, validation_examples, train_examples)
        train, test = train.without_last(validation_examples)
    found = StreamedDataset(
        name=name,
        train=train.first(train_examples),
        tested=test,
        num_classes=classes,
        resolution=resolution or RESOLUTION,
        info=_IMAGENET_INFO,
        held_out=bool(validation_examples),
    )
    if name.startswith(FOLDER):
        found = dataclasses.replace(found, info=_measured(found))
    if shift is not None:
        found = dataclasses.replace(found, info=dataclasses.replace(found.info, shift=shift))
    return found


def _imagenet(data_dir: str | None) -> tuple[Split, Split, int]:
    """ImageNet's training and validation images; the labels of its test images are not public."""
    try:
        builder = data.prepared(lambda: (tfds.builder(IMAGENET, data_dir=data_dir), None))
    except Exception as error:  # TFDS lets through whatever its file system or generator raises.
        raise data.DatasetMissingError(
            f"Dataset {IMAGENET!r} could not be prepared. Ways out: register at image-net.org,"
            " download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar by hand and put them"
            " into downloads/manual of TFDS's data directory; copy a prepared imagenet2012 folder"
            " of another machine's TFDS data directory, and pass --data_dir; or use images of your"
            f" own by --dataset=folder:/path. Received: data_dir={data_dir!r};"
            f" {type(error).__name__}: {records.first_line(error)}"
        ) from error

    def split(name: str) -> Split:
        def read(seed: int | None) -> tf.data.Dataset:
            return builder.as_dataset(
                split=name,
                shuffle_files=seed is not None,
                decoders={"image": tfds.decode.SkipDecoding()},
                read_config=tfds.ReadConfig(shuffle_seed=seed),
            )

        return Split(read=read, count=builder.info.splits[name].num_examples)

    return split("train"), split("validation"), builder.info.features["label"].num_classes


def _folder(path: str) -> tuple[Split, Split, int]:
    """Training and test images of a folder, by TFDS' `ImageFolder`."""
    root = pathlib.Path(path).expanduser()
    test = _check_folder(root)
    builder = tfds.ImageFolder(str(root))

    def split(name: str) -> Split:
        def read(seed: int | None) -> tf.data.Dataset:
            del seed  # the fixed order is a mixed one
            return builder.as_dataset(split=name, decoders={"image": tfds.decode.SkipDecoding()})

        return Split(read=read, count=builder.info.splits[name].num_examples)

    return split("train"), split(test), builder.info.features["label"].num_classes


def _check_folder(root: pathlib.Path) -> str:
    """Checks what can be checked without reading an image; returns the name of the test folder."""
    received = f"Received: dataset='{FOLDER}{root}'"
    tests = [name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir() or len(tests) != 1:
        there = sorted(entry.name for entry in root.iterdir()) if root.is_dir() else None
        raise ValueError(
            f"A dataset folder must have a folder train and one folder test or val. {received},"
            f" {'which does not exist' if there is None else f'where there is: {there}'}."
        )
    classes = {
        split: sorted(entry.name for entry in (root / split).iterdir() if entry.is_dir())
        for split in ("train", tests[0])
    }
    if not classes["train"] or classes["train"] != classes[tests[0]]:
        raise ValueError(
            f"train and {tests[0]} must have one folder for each class, the same in both."
            f" {received} with {classes}."
        )
    for split, names in classes.items():
        empty = [name for name in names if not list(_images(root / split / name))]
        if empty:
            raise ValueError(
                f"Each class must have images (.jpg, .jpeg or .png). {received}, with none in"
                f" {split}: {', '.join(empty)}."
            )
    return tests[0]


def _images(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    suffixes = (".jpg", ".jpeg", ".png")
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes)


def _measured(dataset: StreamedDataset) -> data.DatasetInfo:
    """Mean and standard deviation of the training images at the network's resolution."""
    unit = data.DatasetInfo(
        mean=(0.0,) * 3, std=(1.0,) * 3, shift=dataset.resolution // 8, flip=True
    )
    plain = dataclasses.replace(dataset, info=unit)
    sums, squares = np.zeros(3), np.zeros(3)
    try:
        for images, _ in plain._plain(dataset.train, 64).as_numpy_iterator():
            images = images.astype(np.float64)
            sums += images.sum(axis=(0, 1, 2))
            squares += np.square(images).sum(axis=(0, 1, 2))
    except tf.errors.OpError as error:
        root = pathlib.Path(dataset.name.removeprefix(FOLDER)).expanduser()
        raise ValueError(
            f"An image cannot be read. Received: {_first_broken(root / 'train')}"
            f" ({records.first_line(error)})"
        ) from error
    count = dataset.train.count * dataset.resolution**2
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    # A channel that is the same everywhere is not scaled.
    std = np.where(std > 0, std, 1.0)
    return dataclasses.replace(unit, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _first_broken(folder: pathlib.Path) -> str:
    for name in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        for path in _images(name):
            try:
                _decoded(tf.io.read_file(str(path)))
            except tf.errors.OpError:
                return str(path)
    return str(folder)


def _decoded(encoded: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _middle(image: tf.Tensor) -> tf.Tensor:
    """The middle square, 7/8 of the shorter side."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.maximum(
        tf.cast(_MIDDLE * tf.cast(tf.minimum(height, width), tf.float32), tf.int32), 1
    )
    return image[(height - side) // 2 :, (width - side) // 2 :][:side, :side]


def _random_part(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=draw,
        min_object_covered=0.0,
        aspect_ratio_range=_ASPECT,
        area_range=_AREA,
    )
    return tf.ensure_shape(tf.slice(image, begin, size), [None, None, 3])


def _mirrored(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    return tf.image.stateless_random_flip_left_right(image, seed=draw + 1)
