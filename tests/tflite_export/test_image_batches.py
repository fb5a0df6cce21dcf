"""Images and labels of every structure come in checked batches."""

import dataclasses

import numpy as np
import pytest

from tflite_export import image_batches

X = np.arange(3.0)
Y = np.arange(6.0).reshape(3, 2)


def taken(images, shapes, batch_size=2):
    """Inputs and labels of each batch, as lists."""
    return [
        ([array.tolist() for array in batch.inputs], batch.labels)
        for batch in image_batches.batches(images, shapes, batch_size)
    ]


class Dataset:
    """Elements as TensorFlow's datasets give them."""

    def __init__(self, *elements):
        self._elements = elements

    def as_numpy_iterator(self):
        return iter(self._elements)


@pytest.mark.parametrize("images", [X, X.tolist(), X > 0, X.astype(np.uint8), {"x": X}])
def test_one_input_is_an_array_of_numbers(images):
    first, last = image_batches.batches(images, {"x": ()}, 2)
    assert first.labels is None and (len(first), len(last)) == (2, 1)
    assert first.inputs[0].dtype == np.float32
    numbers = np.asarray(images["x"] if isinstance(images, dict) else images)
    assert [*first.inputs[0], *last.inputs[0]] == numbers.tolist()
    assert image_batches.number_of(images, ["x"]) == 3


@pytest.mark.parametrize("images", [(X, Y), [X, Y], {"y": Y, "x": X}, Dataset((X, Y))])
def test_several_inputs_are_arrays_in_order_or_by_name(images):
    found = taken(images, {"x": (), "y": (2,)})
    assert found == [([[0, 1], [[0, 1], [2, 3]]], None), ([[2], [[4, 5]]], None)]


@pytest.mark.parametrize("images", [((X, Y), X), ([X, Y], X), ({"y": Y, "x": X}, X, Y[:, 1])])
def test_several_inputs_with_labels_are_a_pair(images):
    first, last = image_batches.batches(images, {"x": (), "y": (2,)}, 2)
    assert first.labels.tolist() == [0, 1] and last.labels.tolist() == [2]
    assert last.inputs[1].tolist() == [[4, 5]]
    assert image_batches.number_of(images, ["x", "y"]) == 3


def test_the_number_of_images_is_known_of_arrays_only():
    assert image_batches.number_of(Dataset(X), ["x"]) is None
    assert image_batches.number_of((X, Y[:2]), ["x"]) == 3
    assert image_batches.number_of([Y[:2], X], ["x", "y"]) == 2
    assert image_batches.number_of((X, Y[:2]), ["x", "y"]) == 3
    assert image_batches.number_of(7, ["x"]) is None


def test_batches_go_on_over_the_elements_of_a_dataset():
    found = taken(Dataset((X, X + 4), (X[:1] + 9, X[:1] + 8)), {"x": ()})
    assert [inputs for inputs, _ in found] == [[[0, 1]], [[2]], [[9]]]
    assert [labels.tolist() for _, labels in found] == [[4, 5], [6], [8]]


def test_the_first_images_of_a_batch_keep_their_labels():
    batch = image_batches.Batch((X, Y), np.array([5, 6, 7]))
    assert [part.tolist() for part in batch.first(1).inputs] == [[0], [[0, 1]]]
    assert batch.first(2).labels.tolist() == [5, 6] and len(batch.first(9)) == 3
    assert image_batches.Batch((X,), None).first(2).labels is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.labels = None


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        ([2, 0, 1], [2, 0, 1]),
        ((2, 0, 1), [2, 0, 1]),
        (np.array([[2], [0], [1]]), [2, 0, 1]),
        (np.eye(3)[[2, 0, 1]], [2, 0, 1]),
        (np.eye(2)[[1, 0, 1]], [1, 0, 1]),
        ((np.array([2, 0, 1]), np.zeros((3, 2))), [2, 0, 1]),
        ((np.eye(3)[[2, 0, 1]], np.zeros(3)), [2, 0, 1]),
        ((np.array([2, 0, 1]),), [2, 0, 1]),
    ],
)
def test_labels_are_class_numbers_or_one_hot_and_of_several_outputs_the_firsts(labels, numbers):
    (batch,) = image_batches.batches((X, labels), {"x": ()}, 3)
    assert batch.labels.tolist() == numbers


def test_labels_may_be_many():
    (batch,) = image_batches.batches((np.zeros(1000), np.arange(1000)), {"x": ()}, 1000)
    assert batch.labels.tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(2), "labels must be one per image. Received: 2 labels for 3 images."),
        (np.zeros(4), "labels must be one per image. Received: 4 labels for 3 images."),
        (np.zeros((3, 2, 3)), "labels must be one per image. Received: 18 labels for 3 images."),
        ((), "labels must be one per image. Received: 0 labels for 3 images."),
        (list("abc"), "labels must be class numbers. Received: labels of dtype <U1."),
    ],
)
def test_labels_that_are_not_one_per_image_are_refused(labels, message):
    with pytest.raises(ValueError) as caught:
        taken((X, labels), {"x": ()})
    assert str(caught.value) == message


NUMBERS = "images must be numbers of shape {}, as the model's input; a Dataset must be batched."
EMPTY = "images is empty: verification needs at least one image. Received: 0 images."
NOT_FINITE = "images contain NaN or infinity, among images"


@pytest.mark.parametrize(
    ("images", "shape", "message"),
    [
        (Y, (3,), f"{NUMBERS.format((None, 3))} Received: shape (3, 2), dtype float64."),
        (Y, (1,), f"{NUMBERS.format((None, 1))} Received: shape (3, 2), dtype float64."),
        (X, (3,), f"{NUMBERS.format((None, 3))} Received: shape (3,), dtype float64."),
        (7, (), f"{NUMBERS.format((None,))} Received: shape (), dtype int64."),
        (["a"], (), f"{NUMBERS.format((None,))} Received: shape (1,), dtype <U1."),
        (X[:0], (), EMPTY),
        (Dataset(), (), EMPTY),
        (np.r_[X, X, np.nan], (), f"{NOT_FINITE} 6 to 6."),
        (np.r_[X, np.inf, X], (), f"{NOT_FINITE} 2 to 3."),
        (Dataset(X, np.r_[X, -np.inf]), (), f"{NOT_FINITE} 5 to 6."),
        ((), (), "images must be an array or a pair (images, labels). Received: 0 parts."),
    ],
)
def test_images_that_no_network_could_take_are_refused(images, shape, message):
    with pytest.raises(ValueError) as caught:
        taken(images, {"x": shape})
    assert str(caught.value) == message


def test_of_several_inputs_the_one_that_does_not_fit_is_named():
    for images, message in (
        ((X, Y[:, :1]), "input 'y' must be numbers of shape (None, 2)"),
        ((X, np.where(Y == 5, np.nan, Y)), "NaN or infinity, among images 2 to 2"),
        ((X, Y[:2]), "Received: 3 for 'x', 2 for 'y'"),
        ((), "Received: 0 arrays"),
    ):
        with pytest.raises(ValueError) as caught:
            taken(images, {"x": (), "y": (2,)})
        assert message in str(caught.value)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_an_image_at_least(size):
    with pytest.raises(ValueError) as caught:
        taken(X, {"x": ()}, size)
    assert str(caught.value) == f"batch_size must be positive. Received: batch_size={size}."
    assert len(taken(X, {"x": ()}, 1)) == 3


def test_images_are_streamed():
    class Endless:
        """Counts what was taken; an eager reader would never return."""

        taken = 0

        def as_numpy_iterator(self):
            while True:
                self.taken += 1
                yield np.zeros((8, 8, 8, 2), np.float32)

    endless = Endless()
    stream = image_batches.batches(endless, {"image": (8, 8, 2)}, 4)
    for _ in range(6):
        assert next(stream).inputs[0].shape == (4, 8, 8, 2)
    assert endless.taken == 3


@pytest.mark.parametrize(("parts", "taken"), [(1, False), (2, True), (3, True), (4, False)])
def test_images_may_come_with_labels_and_these_with_sample_weights(parts, taken):
    images = tuple(np.zeros(shape, np.float32) for shape in ((6, 2), (6,), (6,), (6,))[:parts])
    stream = image_batches.batches(images, {"image": (2,)}, 4)
    if taken:
        assert [(len(batch), batch.labels.shape) for batch in stream] == [(4, (4,)), (2, (2,))]
    else:
        with pytest.raises(
            ValueError, match=rf"a pair \(images, labels\). Received: {parts} parts"
        ):
            next(stream)


@pytest.mark.parametrize(
    ("images", "most", "total", "counts"),
    [
        (X, None, 3, [2, 1]),
        (X, 4, 3, [2, 1]),
        (X, 3, 3, [2, 1]),
        (X, 2, 2, [2]),
        (X, 1, 1, [1]),
        (Dataset(X), 2, 2, [2]),
        (Dataset(X), None, None, [2, 1]),
    ],
)
def test_progress_is_shown_in_images_until_they_are_done(monkeypatch, images, most, total, counts):
    """The bar redraws once a second at most, and is gone when the work is."""
    seen = []

    class Bar:
        def __init__(self, **options):
            seen.append(options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            seen.append("closed")

        def update(self, count):
            seen.append(count)

    monkeypatch.setattr(image_batches.tqdm, "tqdm", Bar)
    found = list(image_batches.shown(images, {"x": ()}, 2, 1, "verify x", most))
    assert [len(batch) for batch in found] == counts
    options = {"desc": "verify x", "unit": "image", "disable": False, "leave": False}
    assert seen == [{"total": total, "mininterval": 1, **options}, *counts, "closed"]
    seen.clear()
    list(image_batches.shown(images, {"x": ()}, 2, 0))
    assert seen[0]["disable"] and seen[0]["desc"] == ""


def test_what_is_behind_the_first_images_is_not_read():
    def elements():
        yield X
        raise AssertionError("read on")

    dataset = Dataset()
    dataset.as_numpy_iterator = elements
    for most, counts in ((3, [2, 1]), (1, [1])):
        found = image_batches.shown(dataset, {"x": ()}, 2, 0, most=most)
        assert [len(batch) for batch in found] == counts


@pytest.mark.parametrize(
    ("shape", "classes"),
    [
        ((5, 2), True),
        ((2, 5), True),
        ((5, 1), False),
        ((5,), False),
        ((5, 2, 2), False),
        ((), False),
    ],
)
def test_scores_of_classes_are_a_table_of_two_columns_or_more(shape, classes):
    assert image_batches.has_classes(shape) == classes
