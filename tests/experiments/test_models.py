import numpy as np
import pytest

from experiments import models
from tf_fpq.keras_compat import keras

# Layers with weights as counted in the papers, plus the shortcuts' convolutions; parameters at
# width 16 on 8x8x1.
COUNTS = {
    "resnet8": (8 + 2, 78_426),
    "resnet20": (20 + 2, 273_754),
    "mobilenet_v2_tiny": (23, 38_762),
}


def kernels(model):
    return [
        x
        for x in model.layers
        if isinstance(x, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense)
    ]


@pytest.mark.parametrize("name", models.SMALL)
def test_layers_and_parameters(name):
    model = models.build(name, (8, 8, 1), 10)
    assert (len(kernels(model)), model.count_params()) == COUNTS[name]


# The same networks by others. Trainable parameters do not depend on strides.
OTHERS = {
    "resnet18": 11_173_962,  # for CIFAR-10 with option B, as the literature counts it
    "resnet50": 23_520_842,
    "mobilenet_v1": keras.applications.MobileNet,
    "mobilenet_v2": keras.applications.MobileNetV2,
    "regnet_x_200mf": keras.applications.RegNetX002,
}


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.PUBLISHED)
def test_published_networks_have_the_parameters_of_others_implementations(name):
    model = models.PUBLISHED[name]((32, 32, 3), 10)
    other = OTHERS[name]
    if not isinstance(other, int):
        other = trainable(other(input_shape=(32, 32, 3), weights=None, classes=10))
    assert trainable(model) == other
    assert kernels(model)[0].name == "stem_conv" and kernels(model)[-1].name == "logits"
    assert model.get_layer("pool").input_shape[1] >= 2


# On ImageNet, as torchvision and Keras count them.
ON_IMAGENET = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", models.PUBLISHED)
def test_published_networks_halve_large_images_five_times(name):
    model = models.PUBLISHED[name]((224, 224, 3), 1000)
    assert model.get_layer("pool").input_shape[1:3] == (7, 7)
    if name in ON_IMAGENET:
        assert trainable(model) == ON_IMAGENET[name]


@pytest.mark.parametrize("name", models.SMALL)
def test_first_and_last_layer_have_stable_names(name):
    names = [layer.name for layer in kernels(models.build(name, (8, 8, 1), 10, width=4))]
    assert names[0] == "stem_conv" and names[-1] == "logits"


@pytest.mark.parametrize("name", models.SMALL)
def test_two_builds_have_the_same_names(name):
    first, second = (models.build(name, (8, 8, 1), 10, width=4) for _ in range(2))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]


@pytest.mark.parametrize("name", models.SMALL)
@pytest.mark.parametrize("image_shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_images_are_quartered_before_the_pool(name, image_shape):
    model = models.build(name, image_shape, 7, width=4)
    assert model.get_layer("pool").input_shape[1:3] == (image_shape[0] // 4, image_shape[1] // 4)
    logits = model(np.zeros((2, *image_shape), np.float32))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", models.SMALL)
def test_convolutions_leave_bias_and_activation_to_layers_of_their_own(name):
    for layer in kernels(models.build(name, (8, 8, 1), 10, width=4)):
        assert layer.activation is keras.activations.linear
        assert layer.use_bias == (layer.name == "logits")


@pytest.mark.parametrize(
    ("name", "adds"), [("resnet8", 3), ("resnet20", 9), ("mobilenet_v2_tiny", 3)]
)
def test_residuals(name, adds):
    layers = models.build(name, (8, 8, 1), 10, width=4).layers
    assert sum(isinstance(layer, keras.layers.Add) for layer in layers) == adds


def test_mobilenet_bottlenecks_are_linear():
    model = models.build("mobilenet_v2_tiny", (8, 8, 1), 10, width=4)
    for layer in model.layers:
        if layer.name.endswith("project_bn"):
            readers = {node.layer.name for node in layer._outbound_nodes}
            assert all(name.endswith(("_add", "_conv")) for name in readers)


def test_width_scales_channels():
    widths = [
        models.build("resnet8", (8, 8, 1), 10, width=w).get_layer("stage3_block1_conv2").filters
        for w in (4, 16)
    ]
    assert widths == [16, 64]


def test_unknown_model_names_the_known_ones():
    with pytest.raises(ValueError, match="resnet8, resnet20, mobilenet_v2_tiny.*model='resnet19'"):
        models.build("resnet19", (8, 8, 1), 10)


@pytest.mark.parametrize(("classes", "width"), [(0, 16), (10, 0)])
def test_sizes_must_be_positive(classes, width):
    with pytest.raises(ValueError, match=f"width={width}, num_classes={classes}"):
        models.build("resnet8", (8, 8, 1), classes, width)
