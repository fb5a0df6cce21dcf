// Runs the model on a host as a microcontroller runs it: reads the int8 codes of inputs from
// standard input, one input after the other, and writes the int8 codes of the outputs.
//
// On a device, take what is between the dashed lines, with codes from the sensor:
//   code = clip(round(value / kInputScale) + kInputZeroPoint, -128, 127)

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "model.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

// Activations, and room for the interpreter's own records. Make it smaller until AllocateTensors
// fails; main prints what was used.
constexpr size_t kArenaBytes = 4 * kModelActivationBytes + 64 * 1024;
alignas(16) uint8_t arena[kArenaBytes];

}  // namespace

int main() {
  // ---------------------------------------------------------------------------------------------
  tflite::InitializeTarget();
  tflite::MicroMutableOpResolver<kModelOperators> resolver;
  if (AddModelOperators(resolver) != kTfLiteOk) return 1;
  tflite::MicroInterpreter interpreter(tflite::GetModel(kModel), resolver, arena, kArenaBytes);
  if (interpreter.AllocateTensors() != kTfLiteOk) return 2;
  // ---------------------------------------------------------------------------------------------
  std::fprintf(stderr, "arena: %zu bytes used\n", interpreter.arena_used_bytes());

  static int8_t codes[kInputElements];
  while (std::fread(codes, 1, kInputElements, stdin) == kInputElements) {
    // -------------------------------------------------------------------------------------------
    std::memcpy(interpreter.input(0)->data.int8, codes, kInputElements);
    if (interpreter.Invoke() != kTfLiteOk) return 3;
    const int8_t* scores = interpreter.output(0)->data.int8;
    // -------------------------------------------------------------------------------------------
    std::fwrite(scores, 1, kOutputElements, stdout);
  }
  return 0;
}
