"""Packaging of tf_fpq and tflite_export; the experiments stay in the source tree."""

import pathlib

import setuptools

setuptools.setup(
    name="tf_fpq",
    version="0.2.0",
    description=(
        "Quantization-aware training for tf_keras whose exported TFLite model is the trained one,"
        " code for code."
    ),
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["tf_fpq*", "tflite_export*"]),
    entry_points={"console_scripts": ["tf-fpq = tflite_export.console:main"]},
    package_data={
        "tf_fpq": ["py.typed", "native/*.cc", "native/*.h"],
        "tflite_export": ["py.typed"],
    },
    # constraints.txt has the versions that all tests ran with; `nox -s oldest` runs a part of them
    # at these lower bounds. Before 2.1.3 MEAN and SUM of ai-edge-litert round otherwise.
    install_requires=[
        "absl-py>=1.4",
        "ai-edge-litert>=2.1.3",
        "flatbuffers>=24.3.25",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "tensorflow>=2.18",
        "tensorflow-model-optimization>=0.8",
        "tf_keras>=2.18",
        "tqdm>=4.60",
    ],
    extras_require={
        "experiments": [
            # tensorflow-datasets imports importlib_resources without asking for it.
            "importlib_resources>=6.0",
            "pillow>=10.0",
            "scikit-learn>=1.4",
            "scipy>=1.11",
            "tensorflow-datasets>=4.9.6",
        ],
        "docs": [
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=0.29",
        ],
        "notebooks": [
            "ipykernel>=6.29",
            "nbclient>=0.10",
        ],
        # Long checks: `make test-mutation`, `make test-matrix`.
        "maintenance": ["cosmic-ray>=8.7", "nox>=2024.4"],
        # A sweep on a cluster, `experiments.sweep --launcher=ray`; tested with 2.60.
        "ray": ["ray>=2.40"],
        "dev": [
            "clang-format>=20",
            "hypothesis>=6.100",
            "jax>=0.4",  # the other backend of Keras 3 that the tests bring models from
            "mypy>=1.11",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
            "tensorboard>=2.18",  # reads back what the callbacks write
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
