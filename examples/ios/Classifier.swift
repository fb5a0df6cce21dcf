// An exported model with input_type="float32" and output_type="float32" in an iOS app.
// Podfile: pod 'TensorFlowLiteSwift'. The interpreter's default on the CPU is XNNPACK, on which the
// file computes the integer twin's codes; the Core ML and Metal delegates give other ones.

import Foundation
import TensorFlowLite

struct Answer {
  let label: String
  let score: Float
  let milliseconds: Double
}

final class Classifier {
  private let interpreter: Interpreter
  private let labels: [String]

  /// - Parameters:
  ///   - path: The `.tflite` file in the bundle.
  ///   - labels: Class names in the order of the outputs.
  init(path: String, labels: [String], threads: Int = 2) throws {
    var options = Interpreter.Options()
    options.threadCount = threads
    interpreter = try Interpreter(modelPath: path, options: options)
    try interpreter.allocateTensors()
    self.labels = labels
  }

  /// - Parameter pixels: Rows, then columns, then channels, preprocessed as in training.
  func best(of pixels: [Float]) throws -> Answer {
    try interpreter.copy(pixels.withUnsafeBytes { Data($0) }, toInputAt: 0)
    let start = DispatchTime.now().uptimeNanoseconds
    try interpreter.invoke()
    let elapsed = DispatchTime.now().uptimeNanoseconds - start
    let scores = try interpreter.output(at: 0).data.withUnsafeBytes {
      Array($0.bindMemory(to: Float.self))
    }
    guard let best = scores.indices.max(by: { scores[$0] < scores[$1] }) else {
      throw InterpreterError.invalidTensorDataCount(provided: 0, required: labels.count)
    }
    return Answer(
      label: labels[best], score: scores[best], milliseconds: Double(elapsed) / 1e6)
  }
}
