"""Why some of tfmot's own tests do not pass with this library's scheme, by a pattern of their
names.
"""

_WRAPPER = (
    "Looks for tfmot's `QuantizeWrapper` or `QuantizeLayer` at each layer's place, with output"
    " quantizers inside. Here what quantizes a tensor is a layer of its own, one for each tensor of"
    " the integer graph, so the student has other layers."
)

REASONS: dict[str, str] = {
    r"testFixInputOutputRangeModel\d": (
        "Reads the scales out of what `TFLiteConverter` makes of the student. A student is"
        " converted by `tflite_export.export`; `TFLiteConverter` knows FakeQuant operators only and"
        " writes a float file. `fix_input_output_range` itself works on a student."
    ),
    r"testAppliesQuantization.*(Sequential|Functional)$": _WRAPPER,
    r"testQuantizesInputLayer_OutboundLayerIsQuantized": _WRAPPER,
    r"testQuantize_(UsesBuiltin|UsesQuantizeConfigFromUser|PreferenceToUser)": _WRAPPER,
    r"testQuantizeApply_KeepTrainableWeightOrder": (
        "Asks that nothing but the layer's weights trains; the step size of its output trains too."
    ),
    r"testQuantize_RaisesErrorIfNoQuantizeConfig": (
        "Asks for a RuntimeError; it is a ValueError here that lists all such layers."
    ),
    r"testModelEndToEndCustomNamePrefix": (
        "Looks for tfmot's `quantize_layer` and for layers that are renamed by a prefix, which"
        " `quantize_apply` does not pass on to a scheme. Layers keep their names here, so that"
        " rules and the teacher's features find them."
    ),
}
