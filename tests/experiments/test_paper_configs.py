"""Studies of published tables: printed cells have their runs, which run on generated images."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import launchers, study, tables
from experiments.configs import papers

NAMES = ("fpq_cifar10", "fpq_cifar100", "cr_cifar10")
IMAGENET = ("lsq_imagenet", "cr_imagenet")


@pytest.mark.parametrize("name", NAMES)
def test_every_run_is_of_the_papers_recipe_and_no_two_are_the_same(name):
    found = study.load(f"experiments/configs/{name}.py")
    runs = list(found.runs([]))
    assert len(found.known([])) == len(runs)
    assert {(run.epochs, run.batch_size, run.learning_rate) for run in runs} == {(200, 256, 0.01)}
    assert {run.csd_weight for run in runs} == {1.0} and {run.seed for run in runs} == set(range(5))
    assert found.expected and "arXiv" in found.source and "Not reproduced" in found.hardware


@pytest.mark.parametrize("name", IMAGENET)
def test_every_run_on_imagenet_has_the_weight_decay_of_its_width(name):
    found = study.load(f"experiments/configs/{name}.py")
    runs = list(found.runs([]))
    assert len(found.known([])) == len(runs)
    assert {(run.dataset, run.epochs, run.learning_rate) for run in runs} == {
        ("imagenet2012", 90, 0.01)
    }
    for run in runs:
        # A teacher of all widths: its own decay does not change.
        assert run.weight_decay == {4: 1e-3, 3: 5e-4, 2: 2.5e-4}[run.weight_bits]
        assert run.of_teacher().weight_decay == 1e-3
    assert "arXiv" in found.source and "Not reproduced" in found.hardware


@pytest.mark.parametrize("name", [*NAMES[:2], IMAGENET[0]])
def test_every_printed_figure_has_its_runs(name):
    found = study.load(f"experiments/configs/{name}.py")
    lines = {(line["quantizer"], line["methods"]): title for title, line in papers.LINES.items()}
    cells = {
        f"{run.model} W{run.weight_bits}A{run.activation_bits} {lines[run.quantizer, run.methods]}"
        for run in found.runs([])
    }
    # FPQ prints nothing on ImageNet.
    without = {cell for cell in cells if name == "lsq_imagenet" and cell.endswith("FPQ")}
    assert cells - without == set(found.expected)
    # Two figures that the paper's text repeats.
    if name == "fpq_cifar10":
        assert found.expected["resnet18 W4A4 FPQ"] == 90.16
        assert found.expected["mobilenet_v2 W4A4 FPQ"] == 85.53


# The last line of each, FPQ or CR, at these widths.
SMOKES = (
    ("resnet18", "fpq_cifar10", (2, 2)),
    # At W2A2 the student diverges in its second step, as its row says: some dozens of steps on
    # random images settle no batch norms of 50 layers.
    ("resnet50", "fpq_cifar10", (2, 4)),
    ("mobilenet_v1", "fpq_cifar100", (2, 2)),
    ("mobilenet_v2", "cr_cifar10", (2, 2)),
    ("regnet_x_200mf", "cr_cifar10", (2, 2)),
    ("resnet18", "lsq_imagenet", (2, 2)),
    ("mobilenet_v2", "cr_imagenet", (2, 2)),
)


def examples(builder, count):
    generator = np.random.default_rng(count)
    for index in range(count):
        example = {
            "id": str(index),
            "file_name": str(index),
            "image": generator.integers(0, 256, (32, 32, 3), np.uint8),
            "label": index % builder.info.features["label"].num_classes,
            "coarse_label": 0,
        }
        yield index, {name: example[name] for name in builder.info.features}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A TFDS data directory with random images as CIFAR-10, CIFAR-100 and ImageNet."""
    folder = tmp_path_factory.mktemp("tfds")
    by_hand = tfds.download.DownloadConfig(manual_dir=str(folder))
    for name, test in (("cifar10", "test"), ("cifar100", "test"), ("imagenet2012", "validation")):
        builder = tfds.builder(name, data_dir=folder)
        builder._split_generators = lambda manager, builder=builder, test=test: {
            "train": examples(builder, 32),
            test: examples(builder, 16),
        }
        builder.download_and_prepare(download_config=by_hand)
    return str(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("network", "name", "widths"), SMOKES)
def test_each_network_runs_on_generated_images_in_tfdss_format(
    network, name, widths, generated, tmp_path
):
    """Narrow and short, through the sweep: from TFDS's files to a row."""
    found = study.load(f"experiments/configs/{name}.py")
    lines = [(run.model, run.weight_bits, run.activation_bits) for run in found.runs([])]
    last = max(i for i, line in enumerate(lines) if line == (network, *widths))
    run = list(found.runs([]))[last]
    # Eight epochs at a low rate settle the moving statistics of 50 layers, on which the student
    # starts: at the papers' 0.1 the float loss rises in so few steps, and the student diverges.
    short = {"epochs": 1, "float_epochs": 8, "batch_size": 8, "calibration_examples": 8}
    short["float_learning_rate"] = 0.01
    short |= {"width": 4 if network == "resnet18" else 8, "data_dir": generated}
    if run.dataset == "imagenet2012":
        short["resolution"] = 96  # as many pixels as make the stem that of ImageNet
    run = dataclasses.replace(run, **short)
    smoke = dataclasses.replace(
        found, results=str(tmp_path / "rows.jsonl"), runs=lambda rows: [run]
    )
    launchers.run_missing(smoke, tmp_path / "runs")
    (row,) = smoke.open_results().rows()
    assert (row["model"], row["dataset"]) == (network, run.dataset)
    assert not list(tables.failures([row]))
    assert row["codes_differing"] == 0 and row["codes_compared"] > 0
