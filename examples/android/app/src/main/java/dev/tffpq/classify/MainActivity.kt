package dev.tffpq.classify

import android.graphics.ImageDecoder
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.provider.MediaStore
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import kotlin.concurrent.thread

/** One button that picks a picture, one text with the best class and the latency. */
class MainActivity : ComponentActivity() {
    // Height and width of the model's input, and whether it has one channel.
    private val classifier by lazy { Classifier(assets, size = 224, grey = false) }
    private lateinit var answer: TextView
    private val pick =
        registerForActivityResult(ActivityResultContracts.GetContent()) { it?.let(::show) }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        answer = TextView(this).apply { textSize = 24f }
        val button = Button(this).apply {
            text = "Choose a picture"
            setOnClickListener { pick.launch("image/*") }
        }
        setContentView(
            LinearLayout(this).apply {
                orientation = LinearLayout.VERTICAL
                addView(button)
                addView(answer)
            }
        )
    }

    private fun show(picture: Uri) = thread {
        val found = classifier.classify(bitmap(picture))
        runOnUiThread {
            answer.text = "%s  (%.3f)\n%.2f ms".format(found.label, found.score, found.milliseconds)
        }
    }

    @Suppress("DEPRECATION")
    private fun bitmap(picture: Uri) =
        if (Build.VERSION.SDK_INT < 28) {
            MediaStore.Images.Media.getBitmap(contentResolver, picture)
        } else {
            // Pixels are read, so the picture must not stay in the graphics memory.
            ImageDecoder.decodeBitmap(ImageDecoder.createSource(contentResolver, picture)) { d, _, _ ->
                d.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
            }
        }

    override fun onDestroy() {
        classifier.close()
        super.onDestroy()
    }
}
