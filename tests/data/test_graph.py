import subprocess
import sys


def test_tensorflow_comes_without_keras_and_keras_can_come_later():
    program = (
        'import sys\nfrom ssljax.data.graph import tensorflow\ntf = tensorflow()\n'
        'print("keras" in sys.modules, tf.reduce_sum([1, 2]).numpy())\n'
        'import keras\nprint(tf.keras.layers.Dense is keras.layers.Dense)'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.stdout.split() == ['False', '3', 'True'], done.stderr
