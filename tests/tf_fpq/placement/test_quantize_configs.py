"""Configs: names, classes and partials, and what they make of a layer."""

import functools

import pytest

from tf_fpq import quantizers
from tf_fpq.keras_compat import deserialize, keras, register, serialize
from tf_fpq.placement import quantize_configs
from tf_fpq.placement.quantize_configs import QUANTIZE_CONFIGS, GridQuantizeConfig, config_maker


@register
class HalvingQuantizer(quantizers.LsqQuantizer):
    """A quantizer of a user."""

    def __init__(self, num_bits, *, halves=1, **kwargs):
        super().__init__(num_bits, **kwargs)
        self.halves = halves

    def get_config(self):
        return {**super().get_config(), "halves": self.halves}


CONFIGS = [
    *QUANTIZE_CONFIGS.values(),
    functools.partial(GridQuantizeConfig, quantizer=HalvingQuantizer),
]


def _conv():
    layer = keras.layers.Conv2D(4, 3)
    layer.build((None, 8, 8, 2))
    return layer


@pytest.mark.parametrize("config_class", CONFIGS)
def test_kernel_gets_the_deployable_grid(config_class):
    config = config_class(weight_bits=3, activation_bits=5)
    ((weight, quantizer),) = config.get_weights_and_quantizers(_conv())
    assert weight.shape == (3, 3, 2, 4)
    spec = quantizer.spec
    assert (spec.num_bits, spec.symmetric, spec.narrow_range) == (3, True, True)
    assert spec.axis == ((3,) if config.per_channel else None)
    (output,) = config.get_output_quantizers(_conv())
    assert (output.spec.num_bits, output.spec.symmetric, output.spec.axis) == (5, False, None)
    assert type(quantizer) is type(output) is config.quantizer
    assert config.get_activations_and_quantizers(_conv()) == []
    assert config.get_weights_and_quantizers(keras.layers.ReLU()) == []


def test_granularity_is_the_papers_unless_said_otherwise():
    own = {name: config().per_channel for name, config in QUANTIZE_CONFIGS.items()}
    assert own == {
        "lsq": True,
        "lsq_plus": True,
        "pact": False,
        "dorefa": False,
        "ewgs": True,
        "min_max": True,
    }
    for config in QUANTIZE_CONFIGS.values():
        for per_channel in (True, False):
            ((_, quantizer),) = config(per_channel=per_channel).get_weights_and_quantizers(_conv())
            assert quantizer.spec.axis == ((3,) if per_channel else None)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_none_leaves_float(config_class):
    config = config_class(weight_bits=None, activation_bits=4)
    assert (
        config.get_weights_and_quantizers(_conv()) == []
        and len(config.get_output_quantizers(_conv())) == 1
    )
    config.set_quantize_weights(_conv(), [])
    config = config_class(weight_bits=4, activation_bits=None)
    assert (
        len(config.get_weights_and_quantizers(_conv())) == 1
        and config.get_output_quantizers(_conv()) == []
    )


@pytest.mark.parametrize("config_class", CONFIGS)
def test_round_trip(config_class):
    options = {"halves": 3} if isinstance(config_class, functools.partial) else {}
    config = config_class(2, None, options, per_channel=False)
    again = deserialize(serialize(config))
    assert again == config and hash(again) == hash(config) and type(again) is type(config)
    assert again.weight_quantizer((3,)) == config.weight_quantizer((3,))
    assert config.with_bits(3, 4) == config_class(3, 4, options, per_channel=False) != config


def test_every_argument_is_alive():
    start = GridQuantizeConfig()
    for arguments in (
        {"weight_bits": 4},
        {"activation_bits": 4},
        {"per_channel": False},
        {"quantizer": HalvingQuantizer},
        {"quantizer": HalvingQuantizer, "options": {"halves": 2}},
    ):
        config = GridQuantizeConfig(**arguments)
        assert config != start
        made, base = ([c.weight_quantizer((3,)), c.activation_quantizer()] for c in (config, start))
        assert made != base


def test_set_quantize_weights_replaces_the_kernel():
    layer = _conv()
    kernel = layer.kernel
    config = QUANTIZE_CONFIGS["lsq"]()
    config.set_quantize_weights(layer, [kernel * 0])
    assert layer.kernel is not kernel
    with pytest.raises(ValueError, match="has 1 quantized weights. Received: 2"):
        config.set_quantize_weights(layer, [kernel, kernel])


def test_bad_arguments():
    for name in ("weight_bits", "activation_bits"):
        with pytest.raises(ValueError, match="Received: num_bits=9"):
            QUANTIZE_CONFIGS["lsq"](**{name: 9})
    with pytest.raises(TypeError, match="subclass of tf_fpq.quantizers.GridQuantizer"):
        GridQuantizeConfig(quantizer=dict)
    with pytest.raises(ValueError, match="Unknown class 'nobody>Nothing'"):
        GridQuantizeConfig(quantizer="nobody>Nothing")
    with pytest.raises(TypeError, match="bogus"):
        QUANTIZE_CONFIGS["lsq"](options={"bogus": 1})


def test_config_maker_takes_names_classes_and_partials():
    for name, config_class in QUANTIZE_CONFIGS.items():
        for quantizer in (name, config_class.quantizer, functools.partial(config_class.quantizer)):
            assert config_maker(quantizer)(4, 3, per_channel=True) == config_class(
                4, 3, per_channel=True
            )
    made = config_maker(functools.partial(quantizers.PactQuantizer, l2=0.5))(4, 4)
    assert (
        type(made) is quantize_configs.PactQuantizeConfig and made.activation_quantizer().l2 == 0.5
    )
    made = config_maker(functools.partial(HalvingQuantizer, halves=7))(4, 4)
    assert made.weight_quantizer(None).halves == 7 and deserialize(serialize(made)) == made


@pytest.mark.parametrize(
    "quantizer, error, message",
    [
        ("lsqq", ValueError, "quantizer must be one of lsq, lsq_plus, pact, dorefa, ewgs, min_max"),
        (dict, TypeError, "subclass of tf_fpq.quantizers.GridQuantizer"),
        (None, TypeError, "Received: quantizer=None"),
        (quantizers.LsqQuantizer(4), TypeError, "must be a subclass"),
        (
            functools.partial(quantizers.LsqQuantizer, num_bits=4),
            ValueError,
            "may not set num_bits",
        ),
        (
            functools.partial(quantizers.LsqQuantizer, 4),
            ValueError,
            "may not set positional arguments",
        ),
        (functools.partial(dict), TypeError, "subclass of tf_fpq.quantizers.GridQuantizer"),
    ],
)
def test_config_maker_refuses_the_rest(quantizer, error, message):
    with pytest.raises(error, match=message):
        config_maker(quantizer)
