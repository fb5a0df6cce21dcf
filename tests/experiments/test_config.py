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
        (["float"], []),
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
        ("model", "resnet19"),
        ("methods", ("mixup",)),
        ("methods", ("none", "sfp")),
        ("methods", ("float", "sfp")),
        ("method_arguments", {"sfp": {"loudness": 1}}),
        ("method_arguments", {"noise": {"probability": 1}}),
        ("schedules", {"kd.weight": [[0, 1]]}),
        ("schedules", {"sfp.loudness": [[0, 1]]}),
        ("schedules", {"sfp.probability": [[0, 1, 2]]}),
        ("schedules", {"sfp.probability": []}),
        ("validation_examples", -1),
        ("float_weight_decay", -0.1),
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
        ("task_weight", -1.0),
        ("mixup", -0.1),
        ("average_from", 1.0),
        ("stages", ("4",)),
        ("stages", ("W1A4",)),
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
        "method_arguments": "methods?_?a?r?g?u?m?e?n?t?s?",
        "schedules": "(schedules|coefficient)",
    }
    with pytest.raises(ValueError, match=f"{names.get(argument, argument)}.*Received"):
        Config(**{argument: value})


def test_missing_teacher_is_refused_before_training(tmp_path):
    with pytest.raises(FileNotFoundError, match="teacher=.*absent.keras"):
        Config(teacher=str(tmp_path / "absent.keras"))


def test_arguments_of_every_method_arrive():
    config = Config(
        methods=("kd", "csd"), csd_weight=0.5, method_arguments={"kd": {"temperature": 2.0}}
    )
    kd, csd = config.make_methods()
    assert (kd.temperature, csd.weight) == (2.0, 0.5)


def test_a_schedule_goes_straight_from_point_to_point():
    config = Config(methods=("csd",), schedules={"csd.weight": [[0, 1.0], [0.5, 0.2], [1, 0.2]]})
    (method,) = config.make_methods()
    (callback,) = config.schedule_callbacks([method])
    callback.set_params({"epochs": 4, "steps": 10})
    for epoch, expected in enumerate([1.0, 0.6, 0.2, 0.2]):
        callback.on_epoch_begin(epoch)
        callback.on_train_batch_begin(0)
        assert float(method.coefficient("weight")) == pytest.approx(expected)


def test_the_teacher_has_its_own_decay_if_it_is_given_one():
    assert Config(weight_decay=0.1).of_teacher().weight_decay == 0.1
    other = Config(weight_decay=0.1, float_weight_decay=0.2).of_teacher()
    assert other == Config(weight_decay=0.2)


def test_stages_share_the_epochs_and_the_last_has_what_is_left():
    config = Config(weight_bits=2, activation_bits=2, epochs=11, stages=["W8A8", "W4A4"], mixup=1.0)
    stages = config.in_stages()
    widths = [(stage.weight_bits, stage.activation_bits, stage.epochs) for stage in stages]
    assert widths == [(8, 8, 3), (4, 4, 3), (2, 2, 5)]
    assert {(stage.stages, stage.mixup) for stage in stages} == {((), 1.0)}
    assert Config().in_stages() == [Config()]


def test_the_teacher_trains_as_it_did_whatever_changes_the_students_training():
    changed = Config(task_weight=0.0, mixup=1.0, average_from=0.5, stages=("W4A4",))
    assert changed.of_teacher() == Config()
