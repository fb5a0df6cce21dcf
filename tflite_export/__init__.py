"""tflite_export: `.tflite` files whose integers are the trained ones, and the proof of it.

    exported = tflite_export.export(model.student, "x.tflite")
    report = tflite_export.verify(model.student, exported, test)
    report.save("report.html")

Names load on first use, so that reading, running and comparing files needs no TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tflite_export.errors import InterpreterError
    from tflite_export.exported_model import ExportedModel, export, open_exported, quant_params
    from tflite_export.extending import OperatorKind, register_operator
    from tflite_export.flatbuffer.metadata import Metadata, read_metadata
    from tflite_export.flatbuffer.reader import read
    from tflite_export.lowering.records import Pending
    from tflite_export.twin.evaluation import TwinEvaluation
    from tflite_export.twin.integer_twin import IntegerTwin
    from tflite_export.twin.trainable_twin import TrainableTwin
    from tflite_export.verification.file_pair import compare_files
    from tflite_export.verification.report import Report
    from tflite_export.verification.verifier import VerificationError, verify

_HOMES = {
    "ExportedModel": "exported_model",
    "IntegerTwin": "twin.integer_twin",
    "InterpreterError": "errors",
    "Metadata": "flatbuffer.metadata",
    "OperatorKind": "extending",
    "Pending": "lowering.records",
    "Report": "verification.report",
    "TrainableTwin": "twin.trainable_twin",
    "TwinEvaluation": "twin.evaluation",
    "VerificationError": "verification.verifier",
    "compare_files": "verification.file_pair",
    "export": "exported_model",
    "open_exported": "exported_model",
    "quant_params": "exported_model",
    "read": "flatbuffer.reader",
    "read_metadata": "flatbuffer.metadata",
    "register_operator": "extending",
    "verify": "verification.verifier",
}

__all__ = [
    "ExportedModel",
    "IntegerTwin",
    "InterpreterError",
    "Metadata",
    "OperatorKind",
    "Pending",
    "Report",
    "TrainableTwin",
    "TwinEvaluation",
    "VerificationError",
    "compare_files",
    "export",
    "open_exported",
    "quant_params",
    "read",
    "read_metadata",
    "register_operator",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
