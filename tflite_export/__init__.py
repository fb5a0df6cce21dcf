"""tflite_export: `.tflite` files whose integers are the trained ones, and the proof of it.

    exported = tflite_export.export(model.student, "x.tflite")
    report = tflite_export.verify(model.student, exported, test)
    report.save("report.html")

Names load on first use, so that reading, running and comparing files needs no TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tflite_export.exporting import ExportedModel, export, open_exported, quant_params
    from tflite_export.file_pair import compare_files
    from tflite_export.interpreter import InterpreterError
    from tflite_export.metadata import Metadata, read_metadata
    from tflite_export.parameters import read
    from tflite_export.report import Report
    from tflite_export.trainable_twin import TrainableTwin
    from tflite_export.twin import IntegerTwin
    from tflite_export.verification import VerificationError, verify

_HOMES = {
    "ExportedModel": "exporting",
    "IntegerTwin": "twin",
    "InterpreterError": "interpreter",
    "Metadata": "metadata",
    "Report": "report",
    "TrainableTwin": "trainable_twin",
    "VerificationError": "verification",
    "compare_files": "file_pair",
    "export": "exporting",
    "open_exported": "exporting",
    "quant_params": "exporting",
    "read": "parameters",
    "read_metadata": "metadata",
    "verify": "verification",
}

__all__ = [
    "ExportedModel",
    "IntegerTwin",
    "InterpreterError",
    "Metadata",
    "Report",
    "TrainableTwin",
    "VerificationError",
    "compare_files",
    "export",
    "open_exported",
    "quant_params",
    "read",
    "read_metadata",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
