import pytest

from experiments.config import Config
import tf_fpq


def test_rules_keep_first_and_last_layer_at_8_bits():
    first, rest = Config(weight_bits=2, activation_bits=3).rules()
    assert (first.weight_bits, first.activation_bits) == (8, 8)
    assert (
        first.matches("stem_conv")
        and first.matches("logits")
        and not first.matches("stage1_block1_conv1")
    )
    assert (rest.weight_bits, rest.activation_bits) == (2, 3) and rest.matches(
        "stage1_block1_conv1"
    )


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (["fpq"], [tf_fpq.FeaturePerturbation, tf_fpq.ChannelStandardizedDistillation]),
        (["sfp", "csd"], [tf_fpq.FeaturePerturbation, tf_fpq.ChannelStandardizedDistillation]),
        (["fpq", "sfp"], [tf_fpq.FeaturePerturbation, tf_fpq.ChannelStandardizedDistillation]),
        (["sfp"], [tf_fpq.FeaturePerturbation]),
        (["csd"], [tf_fpq.ChannelStandardizedDistillation]),
        (["none"], []),
    ],
)
def test_methods(methods, expected):
    assert [type(method) for method in Config(methods=methods).make_methods()] == expected


def test_method_arguments_arrive():
    config = Config(noise_probability=0.3, noise_position="post", csd_weight=0.5)
    noise, distillation = config.make_methods()
    assert (noise.probability, noise.position, distillation.weight) == (0.3, "post", 0.5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dataset", "mnist"),
        ("model", "resnet18"),
        ("methods", ("mixup",)),
        ("methods", ("none", "sfp")),
        ("methods", ()),
        ("weight_bits", 1),
        ("activation_bits", 9),
        ("noise_probability", 1.5),
        ("noise_position", "middle"),
        ("csd_weight", -1.0),
        ("width", 0),
        ("batch_size", 0),
        ("calibration_examples", 0),
        ("epochs", -1),
        ("float_epochs", -1),
        ("learning_rate", 0.0),
        ("float_learning_rate", float("nan")),
        ("step_size_learning_rate_factor", 0.0),
        ("weight_decay", -0.1),
        ("seed", -1),
        ("input_type", "int4"),
        ("output_type", "float16"),
        ("min_top1_agreement", 1.5),
        ("kernels", ("reference",)),
        ("kernels", ("xnnpack", "gpu")),
    ],
)
def test_bad_argument_is_refused_before_training(argument, value):
    names = {
        "weight_bits": "weight_bits",
        "noise_probability": "probability",
        "noise_position": "position",
        "csd_weight": "weight",
    }
    with pytest.raises(ValueError, match=f"{names.get(argument, argument)}.*Received"):
        Config(**{argument: value})


def test_missing_teacher_is_refused_before_training(tmp_path):
    with pytest.raises(FileNotFoundError, match="teacher=.*absent.keras"):
        Config(teacher=str(tmp_path / "absent.keras"))
