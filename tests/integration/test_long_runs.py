"""What a process must keep up: the same bits for the same seed, and flat memory over epochs."""

import hashlib
import os
import pathlib
import subprocess
import sys

import pytest

_COMMON = """
import sys
import tensorflow as tf
from tests.tf_fpq.small_student import LOSS, images, labels, pair
import tf_fpq
from tf_fpq.keras_compat import keras

def model():
    teacher, student = pair()
    made = tf_fpq.QatModel(student, teacher, tf_fpq.fpq(probability=0.5) + tf_fpq.cr())
    made.compile(keras.optimizers.SGD(0.01, momentum=0.9), LOSS, metrics=["accuracy"])
    return made

def batches():
    data = tf.data.Dataset.from_tensor_slices((images(), labels())).shuffle(32, seed=1).batch(16)
    return tf_fpq.two_views(data, seed=2)
"""

_TWICE = (
    _COMMON
    + """
import hashlib
tf.config.experimental.enable_op_determinism()
for _ in range(2):
    made = model()
    made.fit(batches(), epochs=3, verbose=0)
    print(hashlib.sha256(b"".join(w.tobytes() for w in made.get_weights())).hexdigest())
"""
)

_LONG = (
    _COMMON
    + """
import os

made, traces = model(), 0
step = made.train_step

def counted(data):
    global traces
    traces += 1
    return step(data)

made.train_step = counted

class Watch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % 100 == 0:
            pages = int(open("/proc/self/statm").read().split()[1])
            things = (len(os.listdir(f"/proc/self/{name}")) for name in ("task", "fd"))
            print(epoch + 1, pages, *things, traces, flush=True)

made.fit(batches(), epochs=1000, verbose=0, callbacks=[Watch()])
"""
)


def printed(script: str, threads: int = 2) -> list[str]:
    environment = {"TF_NUM_INTRAOP_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    environment |= {"TF_NUM_INTEROP_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_seed_and_deterministic_operators_give_the_same_bits(threads):
    """Noise, distillation, an EMA teacher and augmentation."""
    first, second = printed(_TWICE, threads)
    assert first == second and len(first) == hashlib.sha256().digest_size * 2


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="reads Linux' /proc")
def test_a_thousand_epochs_need_no_more_than_a_hundred():
    """Memory within 2 %, threads and files constant, and no trace after the first epochs: Keras
    itself traces a step function once or twice."""
    rows = [list(map(int, line.split())) for line in printed(_LONG)]
    assert [row[0] for row in rows] == list(range(100, 1001, 100))
    pages = [row[1] for row in rows]
    assert max(pages) <= 1.02 * pages[0], pages
    assert {tuple(row[2:]) for row in rows} == {tuple(rows[0][2:])}, rows
    assert rows[0][4] <= 2
