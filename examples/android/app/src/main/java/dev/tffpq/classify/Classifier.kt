package dev.tffpq.classify

import android.content.res.AssetManager
import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

/** The best class of an image, its score, and how long the model took. */
data class Answer(val label: String, val score: Float, val milliseconds: Double)

/**
 * An exported model with `input_type="float32"` and `output_type="float32"`.
 *
 * `Accelerator.CPU` is XNNPACK, the runtime on which the file computes the integer twin's codes. A
 * GPU computes in floating point and gives other ones.
 */
class Classifier(assets: AssetManager, private val size: Int, private val grey: Boolean) : AutoCloseable {
    private val labels = assets.open("labels.txt").bufferedReader().readLines()
    private val model =
        CompiledModel.create(assets, "model.tflite", CompiledModel.Options(Accelerator.CPU))
    private val inputs = model.createInputBuffers()
    private val outputs = model.createOutputBuffers()

    fun classify(image: Bitmap): Answer {
        inputs[0].writeFloat(pixels(image))
        val start = System.nanoTime()
        model.run(inputs, outputs)
        val milliseconds = (System.nanoTime() - start) / 1e6
        val scores = outputs[0].readFloat()
        val best = scores.indices.maxBy { scores[it] }
        return Answer(labels[best], scores[best], milliseconds)
    }

    /** The pixels in rows, channels last, as in training: `x = (pixel - MEAN) / STD`. */
    private fun pixels(image: Bitmap): FloatArray {
        val small = Bitmap.createScaledBitmap(image, size, size, true)
        val packed = IntArray(size * size)
        small.getPixels(packed, 0, size, 0, 0, size, size)
        val channels = if (grey) 1 else 3
        val values = FloatArray(packed.size * channels)
        packed.forEachIndexed { index, pixel ->
            val colours = intArrayOf(pixel shr 16 and 255, pixel shr 8 and 255, pixel and 255)
            if (grey) {
                values[index] = (colours.average().toFloat() - MEAN) / STD
            } else {
                colours.forEachIndexed { c, colour -> values[3 * index + c] = (colour - MEAN) / STD }
            }
        }
        return values
    }

    override fun close() {
        inputs.forEach { it.close() }
        outputs.forEach { it.close() }
        model.close()
    }

    private companion object {
        const val MEAN = 127.5f
        const val STD = 127.5f
    }
}
