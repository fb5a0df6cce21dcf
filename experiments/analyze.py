r"""Looks at the landscape of what a study trained: rows of sharpness, and pictures.

    python -m experiments.analyze --config=experiments/configs/interpolating.py --seeds=0,1,2,3,4
    python -m experiments.analyze --config=experiments/configs/interpolating.py --seeds=0,1,2 \
        --methods=none,fpq --pictures=runs/pictures --follow

Read are the students that experiments.sweep kept in --sweep_workdir, and their float teachers. For
each, --results gets a row with the Hessian's trace and largest eigenvalue, on the same training
images and with the same probes for all: plain cross entropy, inference mode, kernels only. Students
without a row are measured; others are not measured again. --pictures draws, for the first seed,
density.png, landscape.png, noise.png and features.png. --follow trains again and measures the trace
and the share of oscillating weights over the epochs: rows beside --results, in a file that ends in
_epochs.jsonl, and epochs.png.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import pathlib
from typing import Any, NamedTuple

from absl import app, flags

from experiments import grid_runs, pictures, pipeline, records, study, tables
from experiments.config import FLOAT, Config
from experiments.results_file import ResultsFile
from experiments.streamed import Images
from tf_fpq import callbacks, programs, sharpness
from tf_fpq.keras_compat import keras

FLAGS = flags.FLAGS
RESULTS = "experiments/results/sharpness.jsonl"
Row = dict[str, Any]


class Subject(NamedTuple):
    """A trained network.

    Attributes:
      name: Methods as tables name them, or "teacher".
      config: The run that it is of.
      path: Its file.
    """

    name: str
    config: Config
    path: pathlib.Path

    @property
    def title(self) -> str:
        """Its name in a picture."""
        return title(self.name, self.config.quantizer)

    def load(self) -> keras.Model:
        """The network."""
        return keras.models.load_model(self.path, compile=False)


def title(methods: str, quantizer: str) -> str:
    """A student's name in a picture: without a method it is that of the base quantizer."""
    return quantizer.upper() if methods == "none" else methods


def chosen(rows: Sequence[Row], model: str, scheme: str, methods: Sequence[str]) -> list[Row]:
    """Rows of a network at widths such as "W2A2", of some methods or, if none is named, of all."""
    return [
        row
        for row in rows
        if (row["model"], tables.scheme(row)) == (model, scheme)
        and (not methods or row["methods"] in methods)
    ]


def subjects(
    rows: Sequence[Row], workdir: pathlib.Path, split: str, seeds: Sequence[int]
) -> Iterator[Subject]:
    """The teachers and students of rows whose files are there, seed by seed."""
    for seed in seeds:
        teachers = set()
        for row in rows:
            if row["seed"] != seed or row["split"] != split or row["methods"] == FLOAT:
                continue
            config = Config(**row["config"])
            teacher = grid_runs.teacher_path(config, workdir)
            if teacher not in teachers and teacher.exists():
                teachers.add(teacher)
                yield Subject("teacher", _of_teacher_alone(config), teacher)
            student = workdir / grid_runs.folder_name(config) / "student.keras"
            if student.exists() and "failed" not in row:
                yield Subject(tables.name_of(row), config, student)


def _of_teacher_alone(config: Config) -> Config:
    """The same for all students of a teacher in a cell, so that it is measured once."""
    return dataclasses.replace(
        config.of_teacher(),
        methods=(FLOAT,),
        method_arguments={},
        schedules={},
        epochs=0,
        learning_rate=Config.learning_rate,
        noise_probability=Config.noise_probability,
        csd_weight=Config.csd_weight,
    )


def measure(subject: Subject, images: int, probes: int) -> Row:
    """Trace and largest eigenvalue on the first training images."""
    hessian = hessian_of(subject, pipeline.load(subject.config), images)
    trace = sharpness.hessian_trace(hessian, probes=probes, tolerance=0)
    (top,) = sharpness.top_eigenvalues(hessian)
    return {
        "loss": hessian.loss(),
        "hessian_trace": trace.mean,
        "hessian_trace_error": trace.standard_error,
        "top_eigenvalue": top,
    }


def hessian_of(subject: Subject, dataset: Images, images: int) -> sharpness.LossHessian:
    """The Hessian of a network's loss on the first training images, which are not augmented."""
    return sharpness.LossHessian(subject.load(), *dataset.train_part(images))


def results_file(path: str) -> ResultsFile:
    """Rows of sharpness, one for a network, a number of images and of probes."""
    return ResultsFile(
        path,
        lambda row: f"{row['methods']} {row['images']} {row['probes']} {study.row_key(row)}",
    )


def add_missing(
    found: Sequence[Subject],
    results: ResultsFile,
    images: int,
    probes: int,
    measured: Callable[[Subject, int, int], Row] = measure,
) -> list[Row]:
    """Measures what has no row yet; returns the rows of all."""
    wanted = []
    for subject in found:
        config = subject.config
        row = {
            **grid_runs.labels(config, ""),
            **{"methods": subject.name, "images": images, "probes": probes},
            "config": study.plain(config),
        }
        wanted.append(results.key(row))
        if results.key(row) not in results.keys():
            row["commit"] = records.commit()
            results.add({**row, **measured(subject, images, probes)})
            keras.backend.clear_session()
    return [row for row in results.rows() if results.key(row) in wanted]


def draw(found: Sequence[Subject], images: int, folder: pathlib.Path) -> None:
    """The pictures of one seed's networks."""
    dataset = pipeline.load(found[0].config)
    hessians = {subject.title: hessian_of(subject, dataset, images) for subject in found}
    pictures.densities(
        {name: sharpness.spectral_density(h) for name, h in hessians.items()},
        folder / "density.png",
    )
    pictures.landscapes(
        {name: sharpness.landscape(h) for name, h in hessians.items()}, folder / "landscape.png"
    )
    held_out, labels = dataset.test_part(images)
    pictures.noises(hessians, held_out, labels, folder / "noise.png")
    pictures.features(
        {name: h.model for name, h in hessians.items()}, held_out, folder / "features.png"
    )


def follow(subject: Subject, images: int, probes: int) -> Row:
    """Trains a student again: what its trace and its oscillation do meanwhile."""
    teacher = grid_runs.teacher_path(subject.config, subject.path.parent.parent)
    config = dataclasses.replace(subject.config, teacher=str(teacher))
    pipeline.seed_everything(config)
    dataset = pipeline.load(config)
    network, _ = pipeline.float_teacher(config, dataset, watch=False)
    student = pipeline.quantized_student(config, network, dataset)
    tracker = sharpness.SharpnessTracker(
        *dataset.train_part(images),
        every=max(1, config.epochs // 20),
        probes=probes,
    )
    history = pipeline.train_student(
        config,
        student,
        network,
        dataset,
        watch=False,
        callbacks=[callbacks.OscillationTracker(), tracker],
    )
    return {
        "measured": [epoch + 1 for epoch, _, _ in tracker.history],
        "traces": [trace for _, trace, _ in tracker.history],
        "oscillating": history["oscillating"],
    }


def draw_epochs(rows: Sequence[Row], path: pathlib.Path) -> None:
    """The picture of what `follow` saw, all seeds of a method in one colour."""
    curves: dict[str, list[pictures.Curves]] = {}
    for row in rows:
        fields = (row[field.name] for field in dataclasses.fields(pictures.Curves))
        name = title(row["methods"], row["quantizer"])
        curves.setdefault(name, []).append(pictures.Curves(*fields))
    pictures.epochs(curves, path)


def main(argv: Sequence[str]) -> None:
    """Measures and draws."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
    try:
        known = study.load(FLAGS.config)
    except (ValueError, OSError) as error:
        raise app.UsageError(str(error)) from error
    workdir, folder = pathlib.Path(FLAGS.sweep_workdir), pathlib.Path(FLAGS.pictures or ".")
    seeds = [int(seed) for seed in FLAGS.seeds]
    rows = chosen(known.open_results().rows(), FLAGS.model, FLAGS.scheme, FLAGS.methods)
    found = list(subjects(rows, workdir, FLAGS.split, seeds))
    if not found:
        raise app.UsageError(
            f"No students of these runs are in {workdir}: run experiments.sweep first."
        )
    results = results_file(FLAGS.results)
    print(tables.sharpness(add_missing(found, results, FLAGS.images, FLAGS.probes)))
    first = [subject for subject in found if subject.config.seed == seeds[0]]
    if FLAGS.pictures:
        draw(first, FLAGS.images, folder)
    if FLAGS.follow:
        path = pathlib.Path(FLAGS.results)
        over_epochs = results_file(str(path.with_stem(f"{path.stem}_epochs")))
        students = [subject for subject in found if subject.name != "teacher"]
        followed = add_missing(students, over_epochs, FLAGS.images, FLAGS.probes, follow)
        draw_epochs(followed, folder / "epochs.png")


def _define_flags() -> None:
    """Defines the flags: here and not on import, as other programs have some of the same names."""
    flags.DEFINE_string("config", None, "A file that defines a STUDY.", required=True)
    flags.DEFINE_string("sweep_workdir", "runs/sweep", "Where the sweep kept its students.")
    flags.DEFINE_string("results", RESULTS, "Rows to add to.")
    flags.DEFINE_string("model", "resnet8", "Network.")
    flags.DEFINE_string("scheme", "W2A2", "Widths.")
    flags.DEFINE_enum("split", "test", ["test", "validation"], "Which runs of the study.")
    flags.DEFINE_list("seeds", ["0"], "Seeds.")
    flags.DEFINE_list(
        "methods", [], "Students of these methods, as none,fpq; all if there are none."
    )
    flags.DEFINE_integer("images", 500, "Training images of the loss.", lower_bound=1)
    flags.DEFINE_integer("probes", 50, "Probes of a trace.", lower_bound=1)
    flags.DEFINE_string("pictures", None, "Folder for pictures; none without it.")
    flags.DEFINE_bool("follow", False, "Train again and follow the trace over the epochs.")


if __name__ == "__main__":
    _define_flags()
    programs.run(main)
